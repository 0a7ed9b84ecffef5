"""docs/deploy.md, followed as written: from nothing to a joined holder and a finished run.

Every line of a ``console`` block that begins with ``$`` is run, in order, in one shell, by a user
without rights. What the page leaves to people is done in between: they choose host, port and
scenario, carry the kit to the holder, and name the base model in the policy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.deployment.running import free_ports, needs_nginx

# Root joins by two users that an administrator has made; this is somebody else, who still may read
# what root owns (user_namespaces(7)).
SOMEBODY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
SECONDS = 540  # of which a quiet machine takes 60
CARRIED = """
cp -r federation/kits/holder-1 kit
sed -i 's|^base-models = \\[\\]|base-models = ["'$PWD'/model"]|' kit/policy.toml
"""


def blocks(root: Path) -> list[str]:
    """The commands of each block."""
    text = (root / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in found]
    return ["\n".join(block) for block in lines]


def test_the_page_has_the_steps_in_their_order(root: Path) -> None:
    provision, start, join, run = blocks(root)
    assert "confide server provision" in provision
    assert "confide server start" in start
    assert "confide client join" in join
    assert "confide server run" in run


@pytest.fixture
def place(root: Path, tiny_model: Path) -> Iterator[Path]:
    """A folder with the holder's text, the coordinator's public text, and a scenario."""
    folder = Path(tempfile.mkdtemp(prefix="confide-page-"))
    shutil.copytree(tiny_model, folder / "model")
    tiny.write_jsonl(folder / "text.jsonl", tiny.rows(24, seed=1))
    tiny.write_jsonl(folder / "public" / "public.jsonl", tiny.rows(20, seed=2))
    config = tiny.config(
        folder / "model",
        folder / "public",
        folder / "runs",
        privacy__delta=1e-4,
        round__count=1,
        round__min_holders=1,
    )
    rows = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in config.items()]
    scenario = ['source = "none"', "holders = 1", 'partition = "unit"', "[config]", *rows]
    (folder / "it.toml").write_text("\n".join(scenario) + "\n", encoding="utf-8")
    program = folder / "bin" / "confide"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m confide "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_nginx
@pytest.mark.timeout(600)
def test_the_page_leads_to_a_joined_holder_and_a_finished_run(root: Path, place: Path) -> None:
    if not (root / "client" / "join_cli.py").is_file():
        pytest.skip("the holder's commands are not there yet")
    provision, start, join, run = blocks(root)
    port = free_ports(1)[0]
    for name, value in (("HOST", "localhost"), ("PORT", port), ("SCENARIO", "it.toml")):
        provision = re.sub(rf"\b{name}=\S+", f"{name}={value}", provision)
    steps = (provision, start, CARRIED, join, run)
    script = "\n".join(("set -eu", "trap 'kill $(jobs -p); wait' EXIT", *steps))
    done = subprocess.run(
        [*as_somebody(), "timeout", str(SECONDS), "bash", "-c", script],
        cwd=place,
        env={
            **os.environ,
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "HOME": str(place),
            "CONFIDE_CACHE": str(place / "cache"),
            "HF_HOME": str(place / "huggingface"),
            "XDG_RUNTIME_DIR": str(place),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (folder,) = (place / "runs").iterdir()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["claim"]["epsilon"] <= 8.0
    assert (place / "text.jsonl.ledger.sqlite").is_file()


def as_somebody() -> list[str]:
    """What makes a command of root's one of somebody's; nothing for who is not root."""
    if os.geteuid() != 0:
        return []
    if subprocess.run([*SOMEBODY, "true"], check=False).returncode != 0:
        pytest.skip("root cannot become somebody else here")
    return SOMEBODY
