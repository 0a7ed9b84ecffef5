"""Nothing is spent for nothing: who can take part is asked first, and what cannot succeed ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.policy import SIMULATION, Policy
from confide.client.guard.runs import Decision, decide
from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import Refusal, Reply, TrainRequest
from confide.server import participants
from confide.server.checkpoint import MOST_ABANDONED
from confide.server.participants import is_lasting
from confide.server.run import run
from tests.server import federated

Spoil = Callable[[TrainRequest, dict[int, Reply]], Mapping[int, Reply]]
NAMES = ["holder-00", "holder-01", "holder-02"]


class Place(federated.Transport):
    """Three holders, whose answers may be spoilt, and the tasks that only asked."""

    def __init__(self, data: Path, out: Path, policies: Mapping[int, Policy] | None = None) -> None:
        members = federated.holders(data, out / "ledgers")
        for node, policy in (policies or {}).items():
            members[node].site = dataclasses.replace(members[node].site, policy=policy)
        super().__init__(members)
        self.out, self.questions = out, list[list[int]]()
        self.spoiler: Spoil = lambda _, replies: replies
        self.between: Callable[[], None] = lambda: None

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return self.spoiler(task, replies)

    def ready(
        self, nodes: Sequence[int], task: TrainRequest, timeout: float
    ) -> Mapping[int, Reply]:
        self.questions.append(list(nodes))
        said = super().ready(nodes, task, timeout)
        self.between()
        return said

    def ledger(self, node: int) -> Path:
        return self._holders[node].site.ledger

    def charged(self) -> list[int]:
        """The steps that each holder was charged."""
        found = []
        for node in self.nodes():
            if not self.ledger(node).exists():
                found.append(0)
                continue
            with Ledger.open(self.ledger(node), create=False) as ledger:
                found.append(sum(step.steps for step in ledger.steps()))
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return federated.events(federated.only_folder(self.out / "runs"), kind)


Make = Callable[..., tuple[Place, dict[str, Any]]]


@pytest.fixture
def make(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> Make:
    def made(policies: Mapping[int, Policy] | None = None, **changes: Any) -> Any:
        flat = federated.config(tiny_model, tiny_federation, tmp_path / "runs", **changes)
        return Place(tiny_federation, tmp_path, policies), flat

    return made


STRICT = dataclasses.replace(SIMULATION, max_delta=1e-9)
POOR = dataclasses.replace(SIMULATION, max_epsilon=1e-3)
PINNED = dataclasses.replace(SIMULATION, base_models=(f"/elsewhere@sha256:{'0' * 64}",))


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (STRICT, "policy.max-delta"),
        (POOR, "ledger.budget-exhausted"),
        (PINNED, "policy.base-models"),
    ],
)
def test_a_run_that_too_few_can_take_part_in_charges_nobody(
    make: Make, policy: Policy, code: str
) -> None:
    """FAULTS F2: eleven others were charged in each of twelve rounds, for no adapter."""
    place, flat = make({2: policy}, round__min_holders=3, round__count=12)
    with pytest.raises(ConfideError) as caught:
        run(flat, place)
    assert caught.value.code == "run.too-few-holders"
    assert f"holder-02 said {code}" in caught.value.message
    assert "2 of 3 holders" in caught.value.message
    assert place.charged() == [0, 0, 0]
    assert not any(place.ledger(node).exists() for node in range(3)), "not even a ledger is made"
    assert place.tasks == []
    assert place.events("ready")[0]["refused"] == [{"holder": "holder-02", "code": code}]
    assert place.events("end")[0]["code"] == "run.too-few-holders"


def test_who_cannot_take_part_is_asked_once_and_named_in_each_round(make: Make) -> None:
    place, flat = make({1: STRICT}, round__count=3)
    run(flat, place)
    assert place.asked == [[0, 2]] * 3
    told = [[(row["holder"], row["code"]) for row in e["left_out"]] for e in place.events("round")]
    assert told == [[("holder-01", "policy.max-delta")]] * 3
    assert place.charged() == [3, 0, 3]


def test_an_administrator_that_has_to_say_yes_is_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participants, "_AGAIN_SECONDS", 0.0)
    asks = dataclasses.replace(SIMULATION, ask_before_run=True)
    place, flat = make({0: asks}, round__min_holders=3)

    def allow() -> None:
        if len(place.questions) == 3:
            (folder,) = (place.out / "runs").iterdir()
            decide(folder.name, Decision.ALLOWED, place.ledger(0))

    place.between = allow
    for node in range(3):
        place.ledger(node).parent.mkdir(parents=True)
    run(flat, place)
    assert place.questions == [[0, 1, 2], [0], [0], [0]]
    assert place.charged() == [2, 2, 2]


def test_where_nobody_says_yes_in_time_the_run_ends_and_says_who(make: Make) -> None:
    asks = dataclasses.replace(SIMULATION, ask_before_run=True)
    place, flat = make({0: asks}, round__min_holders=3, round__timeout=1.0)
    place.ledger(0).parent.mkdir(parents=True)
    with pytest.raises(ConfideError, match=r"holder-00 said policy\.ask-before-run"):
        run(flat, place)
    assert place.charged() == [0, 0, 0]


def test_with_enough_that_can_nobody_is_waited_for(make: Make) -> None:
    asks = dataclasses.replace(SIMULATION, ask_before_run=True)
    place, flat = make({0: asks}, round__min_holders=2)
    place.ledger(0).parent.mkdir(parents=True)
    run(flat, place)
    assert place.questions == [[0, 1, 2]]
    told = [[(row["holder"], row["code"]) for row in e["left_out"]] for e in place.events("round")]
    assert told == [[("holder-00", "policy.ask-before-run")]] * 2, "and is asked in each round"


def test_once_too_few_are_left_the_run_ends_with_what_it_has(make: Make) -> None:
    """A budget that is used up, or a no, in the middle of a run of thirty rounds."""

    def denies(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round < 4:
            return replies
        return {**replies, 1: Refusal(holder="holder-01", task_hash=task.hash, code=CODE)}

    place, flat = make(round__min_holders=3, round__count=30)
    place.spoiler = denies
    folder = run(flat, place)
    assert [e["abandoned"] for e in place.events("round")] == [False, False, False, True]
    assert max(place.charged()) == 4, "one round was charged for nothing, and not twenty-seven"
    assert (folder.path / "adapter" / "adapter_model.safetensors").is_file()


CODE = "policy.run-denied"


@pytest.mark.parametrize(
    "code", ["transport.error-1", "holder.failed", "transport.no-answer", "ledger.locked"]
)
def test_at_most_three_rounds_in_a_row_are_charged_for_nothing(make: Make, code: str) -> None:
    """Promise 37: a worker that was killed, an answer that never comes."""

    def fails(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == 1:
            return replies
        return {**replies, 1: Refusal(holder="holder-01", task_hash=task.hash, code=code)}

    place, flat = make(round__min_holders=3, round__count=30)
    place.spoiler = fails
    run(flat, place)
    assert [e["abandoned"] for e in place.events("round")] == [False, *[True] * MOST_ABANDONED]
    assert max(place.charged()) == 1 + MOST_ABANDONED


def test_a_round_that_counts_between_them_begins_the_count_anew(make: Make) -> None:
    def fails(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return replies if task.round % 3 == 0 else {0: replies[0]}

    place, flat = make(round__min_holders=3, round__count=9)
    place.spoiler = fails
    run(flat, place)
    assert len(place.events("round")) == 9


def test_a_resumed_run_asks_again_and_a_round_that_was_charged_is_no_obstacle(make: Make) -> None:
    """Killed when the holders had answered the last round that their budget pays for."""

    def dies(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == 2:
            raise KeyboardInterrupt
        return replies

    place, flat = make(round__min_holders=3, round__count=2)
    place.spoiler = dies
    with pytest.raises(KeyboardInterrupt):
        run(flat, place)
    assert place.charged() == [2, 2, 2]
    spent = [
        dataclasses.replace(SIMULATION, max_epsilon=_epsilon(place, node)) for node in range(3)
    ]
    for holder, policy in zip(place._holders, spent, strict=True):
        holder.site = dataclasses.replace(holder.site, policy=policy)
    place.spoiler = lambda _, replies: replies
    flat["run.resume"] = str(federated.only_folder(place.out / "runs"))
    run(flat, place)
    assert place.charged() == [2, 2, 2]
    assert [e["ready"] for e in place.events("ready")] == [3, 3]


def _epsilon(place: Place, node: int) -> float:
    with Ledger.open(place.ledger(node), create=False) as ledger:
        return ledger.proven(1e-5, "")


def test_counted_classes_are_no_obstacle_to_the_question(make: Make) -> None:
    place, flat = make(task__class_weights="counted", privacy__sum_noise=1.0)
    run(flat, place)
    assert place.questions == [[0, 1, 2]]
    assert [task.round for task in place.tasks] == [0, 1, 2]


def test_a_run_of_one_holder_is_told_at_once_that_there_will_never_be_two(
    make: Make, tiny_federation: Path, tmp_path: Path
) -> None:
    """FAULTS F15: it waited for ten minutes without a word."""
    flat = make()[1] | {"round.timeout": 600.0}
    members = federated.holders(tiny_federation, tmp_path / "ledgers")[:1]
    with pytest.raises(ConfideError, match=r"1 holders are connected; the run needs"):
        run(flat, federated.Transport(members))


@pytest.mark.parametrize(
    "code",
    [
        "gate.noise", "transport.gone", "data.missing-file", "disk.full", "policy.ask-before-run",
        "ledger.locked", "ledger.task-spent",
    ],
)  # fmt: skip
def test_what_may_be_otherwise_the_next_time_is_asked_again(code: str) -> None:
    assert not is_lasting(code)
