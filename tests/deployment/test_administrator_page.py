"""docs/administrator.md, executed as it stands, behind docs/deploy.md: a holder's other days.

The test brings what the page says that its reader has: a run's id, a head, a name, a hash, the
person who carries the kit, and whoever ends ``join``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from confide.common.machine.kit import read_kit
from tests.deployment.running import needs_nginx
from tests.deployment.test_deploy_page import (
    HOLDER,
    RUN,
    Shells,
    below,
    blocks,
    carry_kit,
    carry_request,
    follow_to_a_joined_holder,
    shells,
)

__all__ = ["shells"]

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(1500)]


class Days:
    """The holder and its coordinator, and the page's blocks by section."""

    def __init__(self, shells: Shells) -> None:
        self.shells, self.place = shells, shells.place
        self.own = follow_to_a_joined_holder(shells)
        self.joined = shells.groups[6]  # behind provision, start, enrol, add, copy, init
        self.sections = sections()

    def blocks(self, section: str) -> list[list[str]]:
        return self.sections[section]

    def block(self, section: str) -> list[str]:
        """Of a section with one."""
        (only,) = self.sections[section]
        return only

    def holder(self, commands: list[str], **has: str) -> str:
        return self.shells.follow("holder", [*given(has), *commands])

    def coordinator(self, commands: list[str], **has: str) -> str:
        return self.shells.follow("coordinator", [*given(has), *commands])

    def end_join(self) -> None:
        """As an administrator ends it; nothing of it is left."""
        everybody = below(self.joined)
        os.killpg(self.joined, signal.SIGTERM)
        _, left = psutil.wait_procs(everybody, timeout=100)
        assert left == []

    def join(self, commands: list[str], **has: str) -> str:
        said = self.holder(commands, **has)
        self.joined = self.shells.groups[-1]
        return said

    def run(self, *, well: bool = True) -> Path:
        """A run of the coordinator's, with this holder."""
        before = set((self.place / "coordinator").glob("runs/*"))
        (command,) = blocks()[RUN]
        self.coordinator([self.own, command if well else f"{command} || true"])
        (folder,) = set((self.place / "coordinator").glob("runs/*")) - before
        return folder

    def connected(self) -> dict[str, Any]:
        """The one that is, as the coordinator sees it."""
        deadline = time.monotonic() + self.shells.patience
        while True:
            said = self.coordinator(["confide server status federation --json"])
            found = json.loads(said)["holders"]
            there = [holder for holder in found if holder["state"] == "connected"]
            if there:
                return dict(there[0])
            assert time.monotonic() < deadline
            time.sleep(1)


def sections() -> dict[str, list[list[str]]]:
    page = Path(__file__).parents[2] / "docs" / "administrator.md"
    found = {}
    for part in page.read_text(encoding="utf-8").split("\n## ")[1:]:
        name = part.partition("\n")[0]
        fences = re.findall(r"^```console\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
        found[name] = [[line.removeprefix("$ ") for line in f.splitlines()] for f in fences]
    return found


def given(has: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in has.items()]


@pytest.fixture
def days(shells: Shells) -> Days:
    return Days(shells)


def test_a_holders_other_days_go_as_the_page_says(days: Days) -> None:
    days.holder(days.block("A backup"))
    run = days.run().name
    said = days.holder(days.block("Are we connected?"))
    assert re.search(r"^connected +yes, since 20", said, re.MULTILINE)
    assert re.search(r"^left .* is left", said, re.MULTILINE)
    say_no(days, run)
    restore(days)
    renew(days)
    new_roster(days)
    upgrade(days)
    leave(days)


def say_no(days: Days, run: str) -> None:
    no, yes = days.blocks("Saying no to a run")
    said = days.holder(no, RUN=run)
    assert f"{run} is denied" in said
    assert said_of(days, run) == "denied"
    days.holder(yes, RUN=run)
    assert said_of(days, run) == "allowed"


def said_of(days: Days, run: str) -> str:
    told = json.loads(days.holder(["confide client runs kit --json"]))
    assert "is left" in told["left"][0]
    (row,) = [row for row in told["runs"] if row["run"] == run]
    return str(row["said"])


def restore(days: Days) -> None:
    """From a backup that goes on from the newest receipt; one that does not is told by the page's
    first command, and where it is used all the same, by the coordinator."""
    home = days.place / "holder"
    receipts = days.place / "coordinator" / "federation" / "receipts.json"
    head = json.loads(receipts.read_text(encoding="utf-8"))[HOLDER]["receipt"]["head"]
    verify, *back = days.block("Restoring")
    assert "[ledger.corrupt]" in days.holder([f"if {verify}; then exit 9; fi"], HEAD=head)
    (home / "backup").rename(home / "older")
    days.holder(days.block("A backup"))
    days.end_join()
    for path in home.glob("text.jsonl*"):
        path.unlink()
    assert not list((home / "backup").glob("*keys*"))
    assert "sound:" in days.join([verify, *back], HEAD=head)
    days.end_join()
    days.join([line.replace("backup/", "older/") for line in back])
    days.connected()
    days.run(well=False)
    assert days.connected()["ledger"].startswith("gate.ledger in ")
    days.end_join()
    days.join(back)


def renew(days: Days) -> None:
    home, mine = days.place / "holder", "max-epsilon = 1.0\n"
    (home / "kit" / "policy.toml").write_text(mine, encoding="utf-8")
    node = days.connected()["node"]
    roster = (home / "kit" / "roster.toml").read_bytes()
    enrol, at_coordinator, at_holder = days.blocks("A renewed kit")
    days.holder(enrol, HOLDER=HOLDER)
    carry_request(days.place, "renewed")
    said = days.coordinator(at_coordinator, HOLDER=HOLDER)
    assert "another one now" not in said, "the signing key is the same"
    shutil.rmtree(home / "given")
    carry_kit(days.place)
    days.holder(at_holder)
    assert (home / "kit" / "roster.toml").read_bytes() == roster
    while (now := days.connected()["node"]) == node:
        time.sleep(1)
    assert now is not None
    assert "yes, since" in days.holder(["confide client status kit"])
    assert (home / "kit" / "policy.toml").read_text(encoding="utf-8") == mine


def new_roster(days: Days) -> None:
    """Somebody else joins; the test is that administrator, too."""
    home, fed = days.place / "holder", days.place / "coordinator" / "federation"
    enrol = "confide client enrol theirs/kit --name south --data theirs.jsonl"
    days.holder(["cp text.jsonl theirs.jsonl", enrol])
    shutil.copy(home / "theirs" / "kit" / "request.toml", days.place / "coordinator")
    days.coordinator(["confide server provision federation --add south --request request.toml"])
    shutil.copy(fed / "roster.toml", home / "roster.toml")
    told = json.loads(days.coordinator(["confide server roster federation --json"]))
    said = days.holder(days.block("A new roster"), ROSTER=told["digest"])
    assert said.count(told["words"]) == 2
    assert "The policy has this roster." in said
    days.coordinator(["confide server provision federation --revoke south"])


def upgrade(days: Days) -> None:
    at_coordinator, at_holder = days.blocks("Upgrading")
    (bundle,) = re.findall(r"\b[0-9a-f]{64}\b", days.coordinator(at_coordinator))
    kit = days.place / "holder" / "kit"
    before = read_kit(kit)
    days.end_join()
    days.join(at_holder, BUNDLE=bundle)
    assert read_kit(kit).bundles == (bundle, *before.bundles)
    days.connected()


def leave(days: Days) -> None:
    at_holder, at_coordinator = days.blocks("Leaving")
    days.end_join()
    said = days.holder(at_holder)
    assert "is left" in said
    assert (days.place / "holder" / "spent.jsonl").is_file()
    assert not (days.place / "holder" / "kit").exists()
    assert not list((days.place / "holder").glob("keys-of-text*"))
    days.coordinator(at_coordinator, HOLDER=HOLDER)
    found = json.loads(days.coordinator(["confide server status federation --json"]))["holders"]
    assert {h["name"]: h["state"] for h in found}[HOLDER] == "revoked"
