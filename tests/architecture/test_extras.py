"""A holder installs what a holder needs: which library is whose, and a holder without the others.

The environment of a holder is made of links to what the core's requirements bring, and of the code
without the room ``simulations``; nothing else can be imported there. What an empty machine makes of
the wheel itself is ``tests/deployment/test_installed.py``.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from confide.client.guard.policy import Policy
from confide.common.errors import ConfideError
from confide.common.machine.installed import EXTRAS, library, need
from confide.common.wire.messages import request_to_bytes
from tests import tiny
from tests.client.conftest import Place

LABORATORY = ("ray", "matplotlib", "seaborn", "sklearn", "gguf", "datasets", "flwr_datasets")
LABORATORY += ("pandas", "pyarrow", "sacrebleu", "nltk", "optuna", "captum", "pytest")
FAILED = 1
Command = Callable[..., subprocess.CompletedProcess[str]]

ANSWER = """
import pickle, sys
from pathlib import Path
from confide.client.holder import Holder
from confide.common.wire.messages import request_from_bytes
place = Path(sys.argv[1])
site = pickle.loads((place / "site").read_bytes())
reply = Holder(site).handle(request_from_bytes((place / "request").read_bytes()))
print(type(reply).__name__, getattr(reply, "code", ""))
"""
IMPORT_ALL = """
import importlib, json, pkgutil
import confide.client, confide.common, confide.server
names = [
    found.name
    for room in (confide.client, confide.common, confide.server)
    for found in pkgutil.walk_packages(room.__path__, room.__name__ + ".")
]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""


def lines(pyproject: dict[str, Any], extra: str | None) -> list[str]:
    """The requirements of an extra, or of the core."""
    project = pyproject["project"]
    found: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return found


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def brought(requirements: list[str]) -> dict[str, Distribution]:
    """What these requirements install, all the way down, by name."""
    found: dict[str, Distribution] = {}
    seen, todo = set[tuple[str, str]](), [Requirement(line) for line in requirements]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        for extra in ("", *one.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found[name] = distribution(one.name)
            below = map(Requirement, found[name].requires or ())
            todo += [r for r in below if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def top_level(found: Distribution) -> Iterator[Path]:
    """What a distribution puts into the folder of packages."""
    for name in sorted({file.parts[0] for file in found.files or () if file.parts[0] != ".."}):
        place = Path(str(found.locate_file(name)))
        if name != "__pycache__" and place.exists():
            yield place


@pytest.fixture(scope="module")
def holder_environment(
    root: Path, pyproject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("holder")
    for found in brought(lines(pyproject, None)).values():
        for path in top_level(found):
            if not (place / path.name).exists():
                (place / path.name).symlink_to(path)
    plain = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "confide", place / "confide", ignore=plain)
    for room in ("client", "common", "server"):
        shutil.copytree(root / room, place / "confide" / room, ignore=plain)
    return place


@pytest.fixture
def as_holder(holder_environment: Path, tmp_path: Path) -> Command:
    def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": str(holder_environment), "HOME": str(tmp_path)}
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110, check=False
        )

    return python


def test_a_holder_answers_a_request_without_the_laboratory(
    as_holder: Command, tiny_model: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path, tiny_model, Policy(max_delta=1e-2, base_models=(str(tiny_model),)))
    (tmp_path / "site").write_bytes(pickle.dumps(place.site))
    (tmp_path / "request").write_bytes(request_to_bytes(place.task()))
    done = as_holder("-c", ANSWER, tmp_path)
    assert done.stdout.split() == ["Update"], done.stdout + done.stderr
    assert place.states() == ["created", "reserved", "released"]


def test_every_module_of_holder_and_coordinator_loads_without_the_laboratory(
    as_holder: Command,
) -> None:
    look = "import sys; from importlib.util import find_spec as f; "
    look += f"print([n for n in {(*LABORATORY, 'confide.simulations')!r} if f(n)])"
    assert as_holder("-c", look).stdout.strip() == "[]"
    done = as_holder("-W", "ignore", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) > 100


def test_a_holder_is_set_up_without_the_laboratory(as_holder: Command, tmp_path: Path) -> None:
    file = tiny.write_jsonl(tmp_path / "own.jsonl", tiny.rows(4, seed=1))
    for command in (["--version"], ["--help"], ["client", "init", "kit"], ["ledger", "--help"]):
        done = as_holder("-m", "confide", *command)
        assert done.returncode == 0, done.stderr
    done = as_holder("-m", "confide", "client", "check-data", file)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command", ["simulate nyt --set a=b", "tune x", "bench utility", "doctor", "server run nyt -x"]
)
def test_a_command_of_the_laboratory_says_what_to_install(as_holder: Command, command: str) -> None:
    done = as_holder("-m", "confide", *command.split())
    assert done.returncode == FAILED
    assert done.stderr.startswith("error [extra.missing] confide.simulations is not installed")
    assert "pip install 'confide[simulation]'" in done.stderr


def test_parquet_at_a_holder_without_its_extra_says_what_to_install(
    as_holder: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.parquet").write_bytes(b"PAR1")
    done = as_holder("-m", "confide", "client", "check-data", tmp_path / "own.parquet")
    assert done.returncode == FAILED
    assert "[extra.missing]" in done.stderr
    assert "pip install 'confide[parquet]'" in done.stderr


def test_a_missing_library_is_told_by_its_extra_and_one_of_its_own_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    for ask in (library, need):
        with pytest.raises(ConfideError, match=r"extra\.missing.*confide\[coordinator\]"):
            ask("nltk")
    (tmp_path / "nltk.py").write_text("import something_that_nltk_asks_for\n")
    monkeypatch.delitem(sys.modules, "nltk")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_nltk_asks_for"):
        library("nltk")


def imported(tree: ast.AST) -> Iterator[str]:
    """The first part of each absolute import outside of ``if TYPE_CHECKING``."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in tree.names)
    if isinstance(tree, ast.ImportFrom) and tree.module and not tree.level:
        yield tree.module.partition(".")[0]
    for child in ast.iter_child_nodes(tree):
        yield from imported(child)


def test_what_the_code_imports_is_what_the_core_declares(
    root: Path, product_files: list[Path], pyproject: dict[str, Any]
) -> None:
    """All else goes through ``library``, which names the extra."""
    declared, providers = names(lines(pyproject, None)), packages_distributions()
    undeclared = {
        f"{file}: {name}"
        for file in product_files
        for name in imported(ast.parse((root / file).read_text(encoding="utf-8")))
        if name not in sys.stdlib_module_names
        and name != "confide"
        and not declared & {canonicalize_name(one) for one in providers.get(name, ())}
    }
    assert undeclared == set()


@pytest.mark.parametrize("module", EXTRAS)
def test_the_extra_that_is_named_brings_the_library_and_the_core_does_not(
    module: str, pyproject: dict[str, Any]
) -> None:
    _, extra = EXTRAS[module]
    providers = {canonicalize_name(one) for one in packages_distributions()[module]}
    assert providers & set(brought(lines(pyproject, extra)))
    assert not providers & set(brought(lines(pyproject, None)))
