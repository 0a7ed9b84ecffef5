"""kill -9 of an opener at any moment: no two sets of one sum are ever opened."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from confide.common.privacy.ledger import Ledger
from tests.crash.opener import PLACES, prepare

ROOT = Path(__file__).resolve().parents[2]
NOWHERE, LONGEST, KILLED = "nowhere", 0.3, -9
FEW, MANY = 5, 200


def left_until_killed(folder: Path, seed: int, place: str, count: int, after: float) -> list[str]:
    """The lines of an opener that came to its end: a call and a set for each answer that left."""
    arguments = ["-m", "tests.crash.opener", str(folder), str(seed), place, str(count)]
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        said = [worker.stdout.readline()]
        if place == NOWHERE:
            time.sleep(after)
            worker.kill()
        said += worker.stdout.readlines()
    assert worker.returncode == KILLED, said
    return [line.strip() for line in said if line.strip() not in ("", "ready")]


def problems(folder: Path, left: Sequence[str]) -> list[str]:
    """Calls of which two sets left, and answers that no ledger has."""
    sets: dict[str, set[str]] = {}
    for line in left:
        number, chosen = line.split()
        sets.setdefault(number, set()).add(chosen)
    found = [
        f"two sets of {number}: {chosen}" for number, chosen in sets.items() if len(chosen) > 1
    ]
    with Ledger.open(folder / "ledger.sqlite", create=False) as ledger:
        booked = [e.payload["call"] for e in ledger.entries() if e.payload["state"] == "opened"]
    if len(set(booked)) != len(booked):
        found.append("a call is booked twice")
    if len(sets) > len(booked):
        found.append(f"{len(sets)} calls were answered, {len(booked)} booked")
    return found


def survive(folder: Path, number: int, seed: int) -> list[str]:
    prepare(folder)
    chance, left, found = random.Random(seed), list[str](), list[str]()
    for index in range(number):
        place = (*PLACES, NOWHERE)[index % (len(PLACES) + 1)]
        after = chance.uniform(0, LONGEST)
        left += left_until_killed(folder, seed + index, place, chance.randint(1, 3), after)
        found += problems(folder, left)
    assert left
    return found


def test_no_kill_of_an_opener_opens_two_sets(tmp_path: Path) -> None:
    assert survive(tmp_path, FEW, seed=1) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_of_two_hundred_opens_two_sets(tmp_path: Path) -> None:
    assert survive(tmp_path, MANY, seed=2) == []


def test_two_sets_and_what_nobody_booked_are_found(tmp_path: Path) -> None:
    prepare(tmp_path)
    first, second = problems(tmp_path, ["7 0", "7 1"])
    assert first.startswith("two sets of 7")
    assert second == "1 calls were answered, 0 booked"
