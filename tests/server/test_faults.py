"""Holders that time out, crash, answer late, twice, for another round or run, that join and leave.

Each over whole rounds: who is named, whose change counts, and what every ledger has booked. What a
transport makes of silence and of answers to something else is in ``test_transport.py``; a
coordinator that is killed is in ``tests/crash/test_coordinator_kills.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client import holder as holder_module
from confide.client.training.trainer import Trainer
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import Refusal, Reply, TrainRequest, Update
from tests.server.federated import SeededHolder
from tests.server.test_rounds import NAMES, Bench, Spoil

SECOND = 1  # the node whose holder is at fault
ROUNDS = 3
Make = Callable[..., Bench]


@pytest.fixture
def make(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> Make:
    def bench(**overrides: Any) -> Bench:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        return Bench(tiny_model, tiny_federation, out, **{"round__count": ROUNDS, **overrides})

    return bench


def booked(bench: Bench) -> list[int]:
    """Steps that stand in each holder's ledger, whether their update was released or not."""
    steps = []
    for member in bench.transport._holders:
        with Ledger.open(member.site.ledger) as ledger:
            steps.append(sum(s.steps for s in ledger.steps()))
    return steps


def silence(task: TrainRequest, replies: Mapping[int, Reply]) -> Mapping[int, Reply]:
    """What a transport makes of a holder that it hears nothing from."""
    missing = Refusal(holder="", task_hash=task.hash, code="transport.no-answer")
    return {**replies, SECOND: missing}


def in_round(number: int, spoil: Spoil) -> Spoil:
    return lambda task, replies: spoil(task, replies) if task.round == number else replies


def without_the_second_in(make: Make, number: int, **overrides: Any) -> torch.Tensor:
    """The adapter of a run in which nobody heard of the second holder in that round."""
    bench = make(**overrides)
    bench.run(in_round(number, silence))
    return bench.adapter()


def test_a_holder_that_times_out_is_named_and_stays_charged_and_takes_part_again(
    make: Make,
) -> None:
    bench = make()
    bench.run(in_round(2, silence))
    assert bench.accepted() == [NAMES, ["holder-00", "holder-02"], NAMES]
    assert bench.left_out() == [[], [("node-1", "transport.no-answer")], []]
    assert booked(bench) == [ROUNDS] * 3  # it trained and released; that nobody heard is no refund
    last = bench.rounds()[-1]["accepted"][1]["receipt"]
    assert sum(s["steps"] for s in last["steps_run"]) == ROUNDS


@pytest.mark.parametrize("when", ["training", "releasing"])
def test_a_holder_that_crashes_in_mid_round_stays_charged_and_takes_part_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It dies after the charge, and somebody starts it again on the same ledger."""
    bench, calls = make(), []
    what = Trainer if when == "training" else holder_module
    name = "train" if when == "training" else "release"
    whole = getattr(what, name)

    class Died(BaseException):
        pass

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # the second holder in round 2
            raise Died
        return whole(*args, **kwargs)

    monkeypatch.setattr(what, name, dies)

    def restart(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        members = bench.transport._holders
        members[SECOND] = SeededHolder(members[SECOND].site)
        return silence(task, replies)

    bench.run(in_round(2, restart))
    assert bench.left_out() == [[], [("node-1", "transport.no-answer")], []]
    assert bench.accepted()[2] == NAMES
    assert booked(bench) == [ROUNDS] * 3
    assert torch.equal(bench.adapter(), without_the_second_in(make, 2))


def test_an_answer_that_comes_after_its_round_is_refused_and_changes_nothing(make: Make) -> None:
    bench, late = make(), list[Reply]()

    def comes_late(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == 1:
            late.append(replies[SECOND])
            return silence(task, replies)
        return {**replies, SECOND: late[0]} if task.round == 2 else replies

    bench.run(comes_late)
    refused = [[("node-1", "transport.no-answer")], [("holder-01", "gate.task")], []]
    assert bench.left_out() == refused

    def silent_twice(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return silence(task, replies) if task.round < ROUNDS else replies

    other = make()
    other.run(silent_twice)
    assert torch.equal(bench.adapter(), other.adapter())


def test_an_answer_that_came_in_time_does_not_count_again_in_the_next_round(make: Make) -> None:
    bench, first = make(), dict[int, Reply]()

    def repeats(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == 1:
            first.update(replies)
        return {**replies, SECOND: first[SECOND]} if task.round == 2 else replies

    bench.run(repeats)
    assert bench.left_out() == [[], [("holder-01", "gate.task")], []]
    assert torch.equal(bench.adapter(), without_the_second_in(make, 2))


def test_one_update_from_two_nodes_counts_for_neither(make: Make) -> None:
    """Nobody can tell whose it is; one holder must not count twice."""
    bench = make(round__min_holders=1)
    bench.run(in_round(1, lambda task, replies: {**replies, 2: replies[SECOND]}))
    assert bench.accepted()[0] == ["holder-00"]
    assert bench.left_out() == [[("holder-01", "gate.duplicate")] * 2, [], []]


def test_a_task_that_arrives_twice_is_one_charge_and_one_update(make: Make) -> None:
    bench, answers = make(), list[tuple[Reply, Reply]]()

    def again(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        repeated = bench.transport._holders[SECOND].handle(task)
        answers.append((replies[SECOND], repeated))
        return {**replies, SECOND: repeated}

    bench.run(again)
    assert all(once == twice for once, twice in answers)
    assert bench.left_out() == [[]] * ROUNDS
    assert booked(bench) == [ROUNDS] * 3


@pytest.mark.parametrize("change", [{"run": "another-run"}, {"round": 3}, {"task_hash": "0" * 64}])
def test_an_answer_for_another_round_or_run_is_refused_and_changes_nothing(
    make: Make, change: dict[str, Any]
) -> None:
    def elsewhere(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        update = replies[SECOND]
        assert isinstance(update, Update)
        return {**replies, SECOND: dataclasses.replace(update, **change)}

    bench = make(round__count=2)
    bench.run(in_round(2, elsewhere))
    assert bench.left_out() == [[], [("holder-01", "gate.task")]]
    assert torch.equal(bench.adapter(), without_the_second_in(make, 2, round__count=2))


def test_holders_join_and_leave_between_rounds_and_each_is_charged_for_its_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, there = make(), {1: [0, 1], 2: [0, 1, 2], 3: [1, 2]}
    monkeypatch.setattr(
        bench.transport, "nodes", lambda: there[min(len(bench.transport.asked) + 1, ROUNDS)]
    )
    bench.run(nodes=(0, 1))
    assert bench.transport.asked == list(there.values())
    assert bench.accepted() == [NAMES[:2], NAMES, NAMES[1:]]
    assert bench.left_out() == [[], [], [("node-0", "transport.gone")]]
    assert booked(bench) == [2, 3, 2]


def test_a_round_with_too_few_is_abandoned_and_those_who_released_stay_charged(
    make: Make,
) -> None:
    bench = make(round__min_holders=3)
    bench.run(in_round(2, silence))
    assert [one["abandoned"] for one in bench.rounds()] == [False, True, False]
    assert booked(bench) == [ROUNDS] * 3
    # In the abandoned round nothing moved: the adapter that goes down next is that of round 1.
    assert bench.transport.tasks[1].adapter == bench.transport.tasks[2].adapter
    told = [row["receipt"]["steps_run"] for row in bench.rounds()[-1]["accepted"]]
    assert [sum(s["steps"] for s in steps) for steps in told] == [ROUNDS] * 3
