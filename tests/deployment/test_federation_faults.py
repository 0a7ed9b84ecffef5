"""What dies or is cut off in mid-round, over real processes: a run goes on, and nobody is charged
twice or too little.

Minutes, since Flower takes one to notice that a holder is gone. A moment in mid-round is found by
the wire: it is cut when a holder's update sets out, which was charged and booked by then.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from tests.deployment.conftest import wait_for
from tests.deployment.fleet import HOLDERS, Fleet, Member, Run, a_fleet, rounds_of
from tests.deployment.running import needs_nginx

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(1200)]

UPDATE = b"/v1/fleet/push-messages"
TIMEOUT = 240.0  # of a round
NOISE, DELTA = 2.0, 1e-3


@pytest.fixture(scope="module")
def whole() -> Iterator[Fleet]:
    with a_fleet() as made:
        yield made


@pytest.fixture
def fleet(whole: Fleet) -> Fleet:
    """All are connected again, however the last test ended."""
    for holder in whole.holders.values():
        holder.wire.trap = b""
        holder.wire.mend()
    wait_for(whole.connected, 200)
    return whole


def begin(fleet: Fleet, name: str, rounds: int) -> Run:
    return fleet.begin(
        name,
        round__count=rounds,
        round__timeout=TIMEOUT,
        privacy__noise_multiplier=NOISE,
    )


def check_books(fleet: Fleet, folder: Path) -> list[dict[str, Any]]:
    """Nobody was charged twice for a round, and whatever was accepted was charged; returns the
    rounds."""
    rounds = rounds_of(folder)
    for name, holder in fleet.holders.items():
        booked = holder.booked(folder.name)
        charged = [number for number, state in booked if state == "reserved"]
        assert len(charged) == len(set(charged)), f"{name} was charged twice: {booked}"
        accepted = {
            one["round"] for one in rounds for row in one["accepted"] if row["holder"] == name
        }
        assert accepted <= set(charged)
        released = [number for number, state in booked if state == "released"]
        assert accepted <= set(released)
    return rounds


def answered(rounds: list[dict[str, Any]], holder: Member) -> list[bool]:
    return [any(row["holder"] == holder.name for row in one["accepted"]) for one in rounds]


def spent(rounds: int) -> float:
    steps = GaussianSteps(noise_multiplier=NOISE, sampling_rate=1.0, steps=rounds)
    return epsilon_pld([steps], DELTA)


def test_a_budget_that_ends_in_mid_run_is_named_and_the_run_goes_on(fleet: Fleet) -> None:
    poor = fleet.holders["holder-3"]
    poor.allow(max_epsilon=(spent(1) + spent(2)) / 2)
    try:
        folder = fleet.run("budget", round__count=3, privacy__noise_multiplier=NOISE)
    finally:
        poor.allow()
    rounds = check_books(fleet, folder)
    accepted = [sorted(row["holder"] for row in one["accepted"]) for one in rounds]
    assert accepted == [list(HOLDERS), list(HOLDERS[:2]), list(HOLDERS[:2])]
    for one in rounds[1:]:
        left = [(row["holder"], row["code"]) for row in one["left_out"]]
        assert left == [("holder-3", "ledger.budget-exhausted")]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "ledger.budget-exhausted" in report
    assert poor.booked(folder.name) == [(1, "reserved"), (1, "released")]


def test_a_holder_killed_in_mid_round_comes_back_and_is_charged_once(fleet: Fleet) -> None:
    holder = fleet.holders["holder-2"]
    run = begin(fleet, "killed", 3)
    try:
        run.wait_round(1)
        holder.wire.trap = UPDATE
        wait_for(holder.wire.is_cut, 60)
        booked = holder.booked(run.folder.name)
        holder.kill()
        holder.wire.mend()
        holder.start()
        folder = run.end(400)
    finally:
        run.stop()
    cut = booked[-1][0]
    assert booked[-2:] == [(cut, "reserved"), (cut, "released")]
    rounds = check_books(fleet, folder)
    assert len(rounds) == 3
    assert answered(rounds, holder)[0]
    assert not answered(rounds, holder)[cut - 1], "Flower asks a node once for a message"
    assert all(answered(rounds, fleet.holders["holder-1"]))
    assert (cut, "reserved") in holder.booked(folder.name), "what was charged stays charged"


def test_a_superlink_killed_in_mid_round_goes_on_from_the_checkpoint(fleet: Fleet) -> None:
    run = begin(fleet, "superlink", 3)
    try:
        run.wait_round(1)
        for holder in fleet.holders.values():
            holder.wire.trap = UPDATE
        wait_for(lambda: any(h.wire.is_cut() for h in fleet.holders.values()), 60)
        os.kill(process_of(fleet, "superlink"), signal.SIGKILL)
        for holder in fleet.holders.values():
            holder.wire.trap = b""
            holder.wire.mend()
        folder = run.end(500)
    finally:
        run.stop()
    rounds = check_books(fleet, folder)
    assert [one["round"] for one in rounds] == [1, 2, 3]
    assert "it goes on after round" in run.said
    assert all(len(one["accepted"]) >= 2 for one in rounds)


def test_a_holder_cut_off_for_a_while_costs_a_wait_and_nothing_else(fleet: Fleet) -> None:
    holder = fleet.holders["holder-3"]
    run = begin(fleet, "cut", 3)
    try:
        run.wait_round(1)
        holder.wire.trap = UPDATE
        wait_for(holder.wire.is_cut, 60)
        with pytest.raises(AssertionError):
            wait_for(lambda: run.process.poll() is not None, 12)  # nothing ends meanwhile
        holder.wire.mend()
        folder = run.end(400)
    finally:
        run.stop()
    rounds = check_books(fleet, folder)
    assert len(rounds) == 3
    assert all(answered(rounds, fleet.holders["holder-1"]))


def test_a_holder_that_answers_as_another_is_named_and_the_other_stays(fleet: Fleet) -> None:
    liar = fleet.holders["holder-3"]
    liar.stop()
    liar.call("holder-1")
    liar.start()
    try:
        wait_for(liar.well, 200)
        wait_for(fleet.connected, 200)
        run = begin(fleet, "liar", 2)
        try:
            folder = run.end(400)
        finally:
            run.stop()
    finally:
        liar.stop()
        liar.call(liar.name)
        liar.start()
    rounds = check_books(fleet, folder)
    assert len(rounds) == 2
    for one in rounds:
        assert sorted(row["holder"] for row in one["accepted"]) == list(HOLDERS[:2])
        assert one["left_out"] == [{"holder": "holder-3", "code": "gate.sender"}]
    assert liar.booked(folder.name), "it did answer"
    assert "gate.sender" in (folder / "report.html").read_text(encoding="utf-8")


def test_no_marker_left_a_holder_in_all_of_that(fleet: Fleet) -> None:
    fleet.check_no_marker()


def process_of(fleet: Fleet, name: str) -> int:
    """The newest process that the server started under this name."""
    lines = (fleet.fed.logs / "server.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := json.loads(line))["event"] == "started"]
    return int([row["pid"] for row in rows if row["process"] == name][-1])
