"""kill -9 at any moment: the ledger opens, and what it says was spent covers all that has left."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import KEPT_REPLIES, Ledger
from tests.crash.holder import MANNERS, PLACES

ROOT = Path(__file__).resolve().parents[2]
HONEST, *BROKEN = MANNERS
NOWHERE = "nowhere"
LONGEST = 0.2  # seconds of work before a kill from outside
FEW, MANY = 15, 200
# In one round SQLite makes about 60 operations; the first are those of a new file.
MOST_OPERATIONS = 300
KILLED = -9


@dataclass(frozen=True)
class Kill:
    """Where a holder dies: at a place of its own the ``count``th time, or from outside."""

    place: str
    count: int = 0


def kills(number: int, chance: random.Random) -> Iterator[Kill]:
    """From outside at random, then at each named place and among the operations, in turn."""
    for index in range(number):
        place = (*PLACES, NOWHERE, "operation", NOWHERE)[index % (len(PLACES) + 3)]
        most = MOST_OPERATIONS if place == "operation" else 3
        yield Kill(place, chance.randint(1, most))


def work_until_killed(path: Path, run: str, kill: Kill, manner: str, after: float) -> list[str]:
    """The lines of a holder that came to its end: task and hash of each update that left."""
    arguments = ["-m", "tests.crash.holder", path, run, kill.place, str(kill.count), manner]
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as worker:
        if worker.stdout is None:
            pytest.fail("no output")
        said = [worker.stdout.readline()]
        if kill.place == NOWHERE:
            time.sleep(after)
            worker.kill()
        said += worker.stdout.readlines()
    assert worker.returncode == KILLED, said
    return [line.strip() for line in said if line.strip() not in ("", "ready")]


def problems(path: Path, left: Sequence[str]) -> list[str]:
    """What the ledger does not account for, of all that ever left."""
    try:
        with Ledger.open(path, create=False) as ledger:
            payloads = [entry.payload for entry in ledger.entries()]
            spent = sum(steps.steps for steps in ledger.steps())
            kept = {p["task"]: p["reply"] for p in payloads if p["state"] == "released"}
            replies = {task: ledger.replay(task) for task in list(kept)[-KEPT_REPLIES:]}
    except ConfideError as error:
        return [error.code] if left else []
    found = [f"{len(left)} updates left, {spent} were charged"] if len(left) > spent else []
    charged = {p["task"] for p in payloads if p["state"] == "reserved"}
    for line in left:
        task, digest = line.split()
        if task not in charged:
            found.append(f"{task} left and was not charged")
        elif kept.get(task) != digest:
            found.append(f"{task} left and was not booked")
    for task, reply in replies.items():
        if reply is None or sha256(reply).hexdigest() != kept[task]:
            found.append(f"{task} would be answered by other bytes")
    return found


def survive(path: Path, number: int, manner: str, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill so many holders of one ledger; how often where, and what was wrong after each."""
    chance, left = random.Random(seed), list[str]()
    where: Counter[str] = Counter()
    found: list[str] = []
    for index, kill in enumerate(kills(number, chance)):
        after = chance.uniform(0, LONGEST)
        left += work_until_killed(path, f"run-{index}", kill, manner, after)
        where[kill.place] += 1
        found += problems(path, left)
    assert left
    return where, found


def test_no_kill_hides_what_has_left(tmp_path: Path) -> None:
    where, found = survive(tmp_path / "ledger.sqlite", FEW, HONEST, seed=1)
    assert found == []
    assert set(where) == {*PLACES, NOWHERE}


@pytest.mark.parametrize("count", [1, 14, 26, 32])
def test_a_kill_while_the_ledger_is_made_leaves_none_or_a_whole_one(
    tmp_path: Path, count: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    left = work_until_killed(path, "first", Kill("operation", count), HONEST, 0)
    assert left == []
    if path.exists():
        Ledger.open(path, create=False).close()
    left = work_until_killed(path, "second", Kill("left", 1), HONEST, 0)
    assert len(left) == 1
    assert problems(path, left) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_of_two_hundred_hides_what_has_left(tmp_path: Path) -> None:
    where, found = survive(tmp_path / "ledger.sqlite", MANY, HONEST, seed=2)
    assert found == []
    assert min(where.values()) >= MANY // (len(PLACES) + 3)


@pytest.mark.parametrize("manner", BROKEN)
def test_a_holder_that_breaks_the_order_is_found_out(tmp_path: Path, manner: str) -> None:
    _, found = survive(tmp_path / "ledger.sqlite", len(PLACES), manner, seed=3)
    assert any("was not" in problem or "were charged" in problem for problem in found)
