"""The wheel in an empty environment: what a holder gets, what it does not, and what it does there.

``tests/architecture/test_extras.py`` is the quick half: the same holder over links to libraries.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from confide import __version__
from confide.client.guard.policy import Policy
from confide.common.wire.messages import request_to_bytes
from tests import tiny
from tests.architecture.test_extras import ANSWER, LABORATORY
from tests.client.conftest import Place
from tests.deployment.fleet import write_scenario
from tests.deployment.test_deploy_page import FROM_OUTSIDE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

FROM_WHEELS = ("--only-binary", ":all:")
PINNED = "2.13.0"  # a bare "torch" may be a build of several GB


class Empty:
    """An environment with pip and nothing else; commands run outside of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.folder = folder / "venv" / "bin", folder
        venv.create(folder / "venv", with_pip=True)
        kept = {k: v for k, v in os.environ.items() if k.lower().startswith(FROM_OUTSIDE)}
        self.env = {**kept, "HOME": str(folder), "PATH": f"{self.bin}{os.pathsep}{os.defpath}"}

    def run(self, program: str, *arguments: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the files that git knows, as somebody builds it who has cloned them."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "source").mkdir()
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, capture_output=True, check=True).stdout
    for name in names.decode().split("\0"):
        if name and (root / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((root / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place]
    subprocess.run([*build, place / "source"], check=True, timeout=600)
    (found,) = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Empty:
    return Empty(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def holder(root: Path, wheel: Path, empty: Empty) -> Empty:
    """A holder's machine after the two lines of docs/deploy.md, from wheels alone."""
    pins = ["-c", root / "constraints.txt"]
    empty.run("pip", "install", "-q", *FROM_WHEELS, *pins, "setuptools", f"torch=={PINNED}")
    empty.run("pip", "install", "-q", *FROM_WHEELS, *pins, wheel)
    return empty


def test_a_holder_has_none_of_the_laboratory(holder: Empty) -> None:
    look = "import json; from importlib.util import find_spec as f; "
    look += f"print(json.dumps([n for n in {LABORATORY!r} if f(n)]))"
    assert json.loads(holder.run("python", "-c", look)) == []
    holder.run("pip", "check")


def test_the_wheel_says_the_version_of_the_source(holder: Empty) -> None:
    assert holder.run("confide", "--version").split() == ["confide", __version__]
    look = "from importlib.metadata import version; print(version('confide'))"
    assert holder.run("python", "-c", look).strip() == __version__


def test_a_holder_is_set_up_and_answers_a_request(
    holder: Empty, tiny_model: Path, tmp_path: Path
) -> None:
    assert "client" in holder.run("confide", "--help")
    holder.run("confide", "client", "init", tmp_path / "kit")
    place = Place(tmp_path, tiny_model, Policy(max_delta=1e-2, base_models=(str(tiny_model),)))
    holder.run("confide", "client", "check-data", place.data)
    (tmp_path / "site").write_bytes(pickle.dumps(place.site))
    (tmp_path / "request").write_bytes(request_to_bytes(place.task()))
    assert "Update" in holder.run("python", "-c", ANSWER, tmp_path)
    assert place.states() == ["created", "reserved", "released"]


def test_a_simulation_says_what_to_install(
    holder: Empty, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs")
    scenario = write_scenario(tmp_path / "own.toml", config)
    said = holder.run("confide", "simulate", scenario, status=1)
    assert "error [extra.missing]" in said
    assert "pip install 'confide[simulation]'" in said


@pytest.mark.parametrize(
    "extra", ["parquet", "coordinator", "simulation", "tune", "explain", "track", "dev"]
)
def test_every_extra_installs_from_wheels(
    extra: str, root: Path, wheel: Path, holder: Empty
) -> None:
    pins = ["-c", root / "constraints.txt", "--dry-run"]
    holder.run("pip", "install", "-q", *FROM_WHEELS, *pins, f"{wheel}[{extra}]")
