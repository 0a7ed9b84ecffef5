"""docs/deploy.md, executed as it stands: from an empty folder to a federation and a finished run.

Every line after ``$`` in a block of ``console`` is run by a shell, in order, at the coordinator or
at the holder. The test brings what the page says that its reader has: a place, a host, a port, a
scenario, the text, and the person who carries the kit. The slow one begins with nothing but Python,
pip and nginx and installs the project by the page's own commands.
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

pytestmark = [needs_nginx, pytest.mark.timeout(1500)]

RECORDS = 200
RUN = 8  # the last block
HOLDER = "north"
PLACE = re.compile(r"VENV=\S+")
OWN = re.compile(r"HOST=\S+ PORT=\S+ SCENARIO=\S+")
INSTALL_SECONDS = 3000.0  # libraries of 2 GB over a network, on a machine that does other work
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
        self.patience = 500.0
        self.env = {n: value for n, value in os.environ.items() if n != "XDG_RUNTIME_DIR"}
        self.env |= {"PYTHONPATH": str(ROOT)}
        self.env |= {"PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
        self.as_somebody = ANYBODY if os.geteuid() == 0 else []
        if self.as_somebody and subprocess.run([*ANYBODY, "true"], check=False).returncode:
            pytest.skip("this must not be root, or must be able to make a user namespace")

    def follow(self, where: str, commands: list[str], seconds: float | None = None) -> str:
        """Run a block in a folder, for ``patience`` unless told otherwise; returns what it said."""
        script = "\n".join(["set -eu", *commands])
        log = self.place / f"shell-{len(self.groups)}.log"
        with log.open("wb") as said:
            shell = subprocess.Popen(
                [*self.as_somebody, "bash", "-c", script],
                cwd=self.place / where,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.groups.append(shell.pid)
        try:
            status = shell.wait(seconds or self.patience)
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
    own = follow_to_a_joined_holder(shells)
    place, run = shells.place, blocks()[RUN]
    said = shells.follow("coordinator", [own, *run])
    assert f"{HOLDER} training" in said
    assert "round 2: 1 updates" in said
    (folder,) = (place / "coordinator" / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert 0 < report["claim"]["epsilon"] <= 8.0
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    with Ledger.open(place / "holder" / "text.jsonl.ledger.sqlite", create=False) as ledger:
        assert [e.payload["state"] for e in ledger.entries()].count("released") == 2


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_page_leads_from_a_machine_without_confide_to_a_joined_holder(shells: Shells) -> None:
    """An empty home, no variable of the project's, and a source without what was built in it."""
    place, install = shells.place, blocks()[0]
    assert PLACE.fullmatch(install[0])
    shutil.copytree(ROOT, place / "source", ignore=built)
    (place / "home").mkdir()
    kept = {name: v for name, v in os.environ.items() if name.lower().startswith(FROM_OUTSIDE)}
    shells.patience = 900.0  # what was just installed is compiled at its first use
    shells.env = {**kept, "HOME": str(place / "home"), "PATH": os.defpath}
    venv = place / "opt" / "confide"
    shells.follow("source", [f"VENV={venv}", *install[1:]], INSTALL_SECONDS)
    shells.env["PATH"] = f"{venv / 'bin'}{os.pathsep}{os.defpath}"
    where = shells.follow("home", ["python -c 'import confide.server; print(confide.__file__)'"])
    assert where.startswith(str(venv)), "what was installed is what runs"
    follow_to_a_joined_holder(shells)


# Where a machine's packages come from is its own affair.
FROM_OUTSIDE = ("pip_", "http_proxy", "https_proxy", "no_proxy", "ssl_", "lang")


def built(folder: str, names: list[str]) -> set[str]:
    """What a source that somebody was given does not have."""
    own = {"runs", "build", "dist"} if Path(folder) == ROOT else set()
    return {n for n in names if n.startswith(".") or n == "__pycache__" or n in own}


def follow_to_a_joined_holder(shells: Shells) -> str:
    """From an empty folder until the coordinator sees the holder; returns the host, port and
    scenario that the page's reader has."""
    place = shells.place
    model = tiny.save_model(place / "model")
    config = tiny.config(model, place / "public", place, round__min_holders=1)
    config |= {"privacy.delta": 1e-5, "train.batch": 100}
    del config["run.out"]
    _, provision, start, enrol, add, copy, init, join, _ = blocks()
    scenario = write_scenario(place / "own.toml", config)
    tiny.write_jsonl(place / "public" / "public.jsonl", tiny.rows(40, seed=1000))
    assert OWN.fullmatch(provision[0])
    own = f"HOST=localhost PORT={two_free_ports()} SCENARIO={shlex.quote(str(scenario))}"

    shells.follow("coordinator", [own, *provision[1:]])
    shells.follow("coordinator", [own, *start])

    tiny.write_jsonl(place / "holder" / "text.jsonl", tiny.rows(RECORDS, seed=1))
    shells.follow("holder", enrol)
    carry_request(place, "kit")
    assert enrol[0] == f"NAME={HOLDER}"
    assert "compare these words anew" in shells.follow("coordinator", [enrol[0], *add])
    carry_kit(place)
    said = shells.follow("holder", copy)
    assert re.search(r"^words: ([a-z]{5} ){11}[a-z]{5}$", said, re.MULTILINE)
    shells.follow("holder", init)
    written = place / "holder" / "own" / "policy.toml"
    policy = written.read_text(encoding="utf-8")
    assert "\nbase-models = []\n" in policy
    named = f"\nbase-models = [{json.dumps(str(model))}]\n"
    written.write_text(policy.replace("\nbase-models = []\n", named))
    said = shells.follow("holder", join)
    assert f"{RECORDS} records" in said
    assert "What will leave this machine" in said
    assert re.search(r"^alive +true$", said, re.MULTILINE)
    wait_connected(shells)
    return own


def carry_request(place: Path, folder: str) -> None:
    shutil.copy(place / "holder" / folder / "request.toml", place / "coordinator" / "request.toml")


def carry_kit(place: Path) -> None:
    """It has no secret, and lies at the coordinator for as long as that likes."""
    kit = place / "coordinator" / "federation" / "kits" / HOLDER
    assert not (kit / "node.key").exists()
    shutil.copytree(kit, place / "holder" / "given")


def wait_connected(shells: Shells) -> None:
    """As one looks at ``status`` until the holder is there."""
    deadline = time.monotonic() + shells.patience
    status = "confide server status federation --json"
    while '"connected": 1' not in shells.follow("coordinator", [status]):
        assert time.monotonic() < deadline
        time.sleep(1)
