"""docs/deploy.md, executed as it stands: from an empty folder to a federation and a finished run.

Every line after ``$`` in a block of ``console`` is run by a shell, in order, at the coordinator or
at the holder. The test brings what the page says that its reader has: a host, a port, a scenario,
the text, and the person who carries the kit.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from confide.common.privacy.ledger import Ledger
from tests import tiny
from tests.deployment.conftest import ROOT, TOOLS
from tests.deployment.fleet import write_scenario
from tests.deployment.running import needs_nginx

pytestmark = [needs_nginx, pytest.mark.timeout(600)]

RECORDS = 200
OWN = re.compile(r"HOST=\S+ PORT=\S+ SCENARIO=\S+")
# The page's reader is no root, who would need two users; by another number, root is none either.
ANYBODY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def blocks() -> list[list[str]]:
    """The commands of each block, without their ``$``."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [block.splitlines() for block in found]
    assert all(line.startswith("$ ") for block in lines for line in block)
    return [[line.removeprefix("$ ") for line in block] for block in lines]


def two_free_ports() -> int:
    """A port that is free together with the next one, which is SuperLink's."""
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two ports are free")


class Shells:
    """Whoever follows the page; what it leaves in the background is ended at the end."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.groups: list[int] = []
        self.as_somebody = ANYBODY if os.geteuid() == 0 else []
        if self.as_somebody and subprocess.run([*ANYBODY, "true"], check=False).returncode:
            pytest.skip("this must not be root, or must be able to make a user namespace")

    def follow(self, where: str, commands: list[str], seconds: float = 250) -> str:
        """Run a block in a folder; returns what it said."""
        script = "\n".join(["set -eu", *commands])
        log = self.place / f"shell-{len(self.groups)}.log"
        env = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        env |= {"PYTHONPATH": str(ROOT), "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
        with log.open("wb") as said:
            shell = subprocess.Popen(
                [*self.as_somebody, "bash", "-c", script],
                cwd=self.place / where,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.groups.append(shell.pid)
        try:
            status = shell.wait(seconds)
        except subprocess.TimeoutExpired:
            shell.kill()
            shell.wait()
            status = -1
        text = log.read_text(encoding="utf-8", errors="replace")
        assert status == 0, f"{commands} ended with {status}:\n{text}"
        return text

    def end(self) -> None:
        """Each shell leads a group, of which its background commands are."""
        for group in reversed(self.groups):
            everybody = below(group)
            for number, patience in ((signal.SIGTERM, 100), (signal.SIGKILL, 10)):
                try:
                    os.killpg(group, number)
                except ProcessLookupError:
                    break
                psutil.wait_procs(everybody, timeout=patience)
            assert [process for process in everybody if process.is_running()] == []


def below(group: int) -> list[psutil.Process]:
    """The group's members and all that they started."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found += [process, *process.children(recursive=True)]
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture
def shells() -> Iterator[Shells]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for who in ("coordinator", "holder"):
            (place / who).mkdir()
        made = Shells(place)
        try:
            yield made
        finally:
            made.end()


def test_the_page_leads_from_an_empty_folder_to_a_finished_run(shells: Shells) -> None:
    place = shells.place
    model = tiny.save_model(place / "model")
    config = tiny.config(model, place / "public", place, round__min_holders=1)
    config |= {"privacy.delta": 1e-5, "train.batch": 100}
    del config["run.out"]
    scenario = write_scenario(place / "own.toml", config)
    tiny.write_jsonl(place / "public" / "public.jsonl", tiny.rows(40, seed=1000))
    provision, start, join, run = blocks()
    assert OWN.fullmatch(provision[0])
    own = f"HOST=localhost PORT={two_free_ports()} SCENARIO={shlex.quote(str(scenario))}"

    shells.follow("coordinator", [own, *provision[1:]])
    shells.follow("coordinator", [own, *start])

    kits = place / "coordinator" / "federation" / "kits"
    kit = place / "holder" / "kit"
    shutil.move(kits / "holder-1", kit)
    tiny.write_jsonl(place / "holder" / "text.jsonl", tiny.rows(RECORDS, seed=1))
    policy = (kit / "policy.toml").read_text(encoding="utf-8")
    assert "\nbase-models = []\n" in policy
    named = f"\nbase-models = [{json.dumps(str(model))}]\n"
    (kit / "policy.toml").write_text(policy.replace("\nbase-models = []\n", named))
    said = shells.follow("holder", join)
    assert f"{RECORDS} records" in said
    assert "What will leave this machine" in said
    assert re.search(r"^alive +true$", said, re.MULTILINE)
    wait_connected(shells)

    said = shells.follow("coordinator", [own, *run])
    assert "holder-1 training, holder-2 away, holder-3 away" in said
    assert "round 2: 1 updates" in said
    (folder,) = (place / "coordinator" / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert 0 < report["claim"]["epsilon"] <= config.get("privacy.epsilon", 8.0)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    with Ledger.open(place / "holder" / "text.jsonl.ledger.sqlite", create=False) as ledger:
        assert [e.payload["state"] for e in ledger.entries()].count("released") == 2


def wait_connected(shells: Shells, seconds: float = 100) -> None:
    """As one looks at ``status`` until the holder is there."""
    deadline = time.monotonic() + seconds
    status = f"{shlex.quote(sys.executable)} -m confide server status federation --json"
    while '"connected": 1' not in shells.follow("coordinator", [status]):
        assert time.monotonic() < deadline
        time.sleep(1)
