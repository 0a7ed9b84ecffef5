"""kill -9 of a contributor to a secure sum at any moment: of each round one masked update leaves at
most, always the same bytes, and it is charged once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from confide.common.privacy.ledger import Ledger
from tests.crash.contributor import PLACES, RUN, prepare

ROOT = Path(__file__).resolve().parents[2]
SPENT = "ledger.task-spent"
FEW, MANY = 2 * len(PLACES), 200


def left_through(folder: Path, asked: Sequence[tuple[int, str]]) -> list[str]:
    """What left while a holder was asked for each round in turn, and killed at each place."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.contributor", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        left, told = list[str](), worker.stdout.readline()
        assert told == "over\n"
        for number, place in asked:
            worker.stdin.write(f"{number} {place}\n")
            worker.stdin.flush()
            while (told := worker.stdout.readline()) != "over\n":
                assert told, "it ended before it was told to"
                left.append(told.strip())
        worker.stdin.close()
        assert worker.wait(60) == 0
    return left


def problems(folder: Path, left: Sequence[str]) -> list[str]:
    """Rounds of which two updates left, and what no ledger has."""
    sent: dict[int, set[str]] = {}
    for line in left:
        number, digest = line.split()
        if digest != SPENT:
            sent.setdefault(int(number), set()).add(digest)
    found = [
        f"round {n}: {len(digests)} updates" for n, digests in sent.items() if len(digests) > 1
    ]
    with Ledger.open(folder / "own" / "ledger.sqlite", create=False) as ledger:
        payloads = [entry.payload for entry in ledger.entries()]
    rounds = Counter(p["round"] for p in payloads if p["state"] == "reserved" and p["run"] == RUN)
    booked = {p["reply"] for p in payloads if p["state"] == "released"}
    found += [f"round {n}: charged {times} times" for n, times in rounds.items() if times > 1]
    for number, digests in sent.items():
        if number not in rounds:
            found.append(f"round {number} left and was not charged")
        if not digests <= booked:
            found.append(f"round {number} left and was not booked")
    return found


def survive(folder: Path, model: Path, number: int, seed: int) -> tuple[list[str], list[str]]:
    """What left, and what was wrong with it, where half as many rounds are each asked for twice and
    killed at some place, and once more by a program that was started anew."""
    prepare(folder, model)
    chance, rounds = random.Random(seed), range(1, number // 2 + 1)
    asked = [
        (n, place) for n in rounds for place in (PLACES[n % len(PLACES)], chance.choice(PLACES))
    ]
    left = left_through(folder, asked)
    left += left_through(folder, [(n, "nowhere") for n in rounds])
    return left, problems(folder, left)


def test_no_kill_of_a_contributor_lets_two_masked_updates_of_a_round_leave(
    tmp_path: Path, tiny_model: Path
) -> None:
    left, found = survive(tmp_path, tiny_model, FEW, seed=1)
    assert found == []
    told = [line.split()[1] for line in left]
    assert SPENT in told, "a charge without an update is never given back"
    assert len(set(told)) < len(told), "what was booked leaves again as it was"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_of_two_hundred_lets_two_masked_updates_leave(
    tmp_path: Path, tiny_model: Path
) -> None:
    left, found = survive(tmp_path, tiny_model, MANY, seed=2)
    print(f"{MANY} kills of a contributor: {len(left)} answers left")
    assert found == []


def test_two_updates_and_what_nobody_booked_are_found(tmp_path: Path, tiny_model: Path) -> None:
    prepare(tmp_path, tiny_model)
    left = left_through(tmp_path, [(1, "nowhere")])
    assert problems(tmp_path, left) == []
    assert problems(tmp_path, [*left, "1 other", "2 more"]) == [
        "round 1: 2 updates",
        "round 1 left and was not booked",
        "round 2 left and was not charged",
        "round 2 left and was not booked",
    ]
