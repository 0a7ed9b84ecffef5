"""The holder: the order of events, the budget, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from confide.client import holder as holder_module
from confide.client.guard.policy import SIMULATION
from confide.client.holder import Holder
from confide.client.text.taken import take_in
from confide.client.training.trainer import Trainer
from confide.common.adapter.encoding import pack
from confide.common.adapter.schema import flatten
from confide.common.models import loading as models
from confide.common.models.loading import load_model
from confide.common.plans import plan_of
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.filters import enforced, settle
from confide.common.privacy.ledger import Ledger
from confide.common.settings import from_flat
from confide.common.tasks.classification import Classification
from confide.common.wire.messages import Ready, TrainRequest, Update, reply_to_bytes
from tests import tiny
from tests.client.conftest import RECORDS, Place, code, least_limit
from tests.client.opened import OPENED, watching

DELTA = 1e-3
NOISE = 4.0
MakePlace = Callable[..., Place]


def update(place: Place, task: TrainRequest) -> Update:
    reply = place.holder.handle(task)
    assert isinstance(reply, Update), reply
    return reply


def spent(rounds: int) -> float:
    """Epsilon of that many rounds with all records and NOISE."""
    steps = GaussianSteps(noise_multiplier=NOISE, sampling_rate=1.0, steps=rounds)
    return epsilon_pld([steps], DELTA)


def limit_for(rounds: int, planned: int = 2, rate: float = 1.0) -> float:
    """The least limit that so many rounds fit into, of a run of more, or of several runs."""
    one = GaussianSteps(noise_multiplier=NOISE, sampling_rate=rate, steps=1)
    whole, taken = ((replace(one, steps=steps),) for steps in (planned, rounds))
    return least_limit(whole, taken, DELTA)


def epsilon_of(place: Place) -> float:
    with Ledger.open(place.site.ledger) as ledger:
        return ledger.epsilon(DELTA)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order."""
    seen: list[str] = []

    def record(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            seen.append(name)
            return result

        monkeypatch.setattr(owner, name, wrapper)

    record(Ledger, "charge")
    record(Trainer, "train")
    record(Ledger, "release")
    return seen


# The order of events


def test_a_task_is_charged_then_trained_then_released(place: Place, events: list[str]) -> None:
    update(place, place.task())
    assert events == ["charge", "train", "release"]
    assert place.states() == ["created", "reserved", "released"]


def test_the_charge_is_in_the_file_before_a_step_is_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []
    train = Trainer.train

    def looking(*args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(place.states())  # through a connection of its own
        return train(*args, **kwargs)

    monkeypatch.setattr(Trainer, "train", looking)
    update(place, place.task())
    assert [states[-1] for states in found] == ["reserved"]


def test_nothing_is_trained_and_nothing_leaves_when_the_charge_is_refused(
    make_place: MakePlace, events: list[str]
) -> None:
    place = make_place(privacy__noise_multiplier=NOISE)
    place.restart(max_epsilon=spent(1) / 2)
    assert code(place.holder.handle(place.task())) == "ledger.budget-exhausted"
    assert events == []
    assert place.charges() == 0


def test_a_release_that_cannot_be_booked_does_not_leave_and_stays_charged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    task = place.task()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", broken)
        assert code(place.holder.handle(task)) == "holder.failed"
    assert place.charges() == 1
    assert code(place.holder.handle(task)) == "ledger.task-spent"


def test_an_interrupt_gets_out_and_the_charge_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.holder.handle(place.task())
    assert place.charges() == 1


def test_a_task_delivered_five_times_is_one_charge_and_five_equal_replies(place: Place) -> None:
    task = place.task()
    replies = [update(place, task) for _ in range(3)]
    replies += [update(place, task) for _ in range(2) if place.restart()]
    assert len({reply_to_bytes(reply) for reply in replies}) == 1
    assert place.charges() == 1


def test_two_tasks_never_get_the_same_noise(place: Place) -> None:
    first, second = update(place, place.task(1)), update(place, place.task(2))
    assert first.values != second.values


def test_a_holder_that_begins_again_without_a_ledger_has_other_noise(place: Place) -> None:
    task = place.task()
    first = update(place, task)
    for file in place.site.ledger.parent.glob(place.site.ledger.name + "*"):
        file.unlink()
    place.restart()
    second = update(place, task)
    assert first.task_hash == second.task_hash
    assert first.values != second.values


def test_the_receipt_is_that_of_the_ledger(place: Place) -> None:
    reply = update(place, place.task())
    with Ledger.open(place.site.ledger) as ledger:
        entries = ledger.entries()
        assert reply.receipt["head"] == entries[-2].hash  # of the charge; the release comes after
        assert reply.receipt["ledger_id"] == ledger.ledger_id
        assert reply.receipt["epsilon"] == ledger.epsilon(DELTA)


# The budget


def affordable(place: Place, limit: float) -> int:
    """How many rounds of the place's plan fit into ``limit``."""
    plan = plan_of(from_flat(place.settings))
    terms = settle((plan.steps(plan.max_rounds),), DELTA, limit)
    fits = [enforced(terms, (plan.steps(k),), limit, DELTA) for k in range(1, 10)]
    assert fits[0]
    return fits.index(False)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, limit_for(3)),
        ({}, limit_for(3) + 0.01),
        ({"train__rate": 0.25}, 0.4),
        ({"round__mode": "steps", "train__steps": 3, "train__lr": 0.01}, 3.0),
        ({"privacy__unit": "person", "data__person": "person"}, limit_for(2)),
    ],
    ids=["met exactly", "some left over", "a sample", "several steps", "persons"],
)
def test_the_last_affordable_round_runs_and_the_next_is_refused_without_opening_a_file(
    make_place: MakePlace, settings: dict[str, Any], limit: float
) -> None:
    place = make_place(privacy__noise_multiplier=NOISE, round__count=10, **settings)
    place.restart(max_epsilon=limit)
    rounds = affordable(place, limit)
    for number in range(1, rounds + 1):
        task = place.task(number)
        with watching():
            update(place, task)
        assert str(place.data) in OPENED.names
        place.restart()  # whatever the last one kept in memory
    task = place.task(rounds + 1)
    with watching():
        assert code(place.holder.handle(task)) == "ledger.budget-exhausted"
    own = str(place.site.ledger)
    assert [name for name in OPENED.names if own not in name and name != os.devnull] == []
    assert place.charges() == rounds
    assert epsilon_of(place) <= limit


@pytest.mark.parametrize("slack", [0.0, -1e-6])
def test_the_limit_is_met_exactly_and_never_passed(make_place: MakePlace, slack: float) -> None:
    place = make_place(privacy__noise_multiplier=NOISE, round__count=1)
    place.restart(max_epsilon=spent(1) + slack)
    expected = "update" if slack == 0 else "ledger.budget-exhausted"
    assert code(place.holder.handle(place.task())) == expected


def test_the_limit_of_a_run_is_met_exactly_and_counts_that_run_alone(
    make_place: MakePlace,
) -> None:
    place = make_place(privacy__noise_multiplier=NOISE, round__count=3)
    place.restart(max_epsilon=100.0, max_epsilon_per_run=spent(3))
    for number in (1, 2, 3):
        update(place, place.task(number))
    update(place, place.task(1, run="run-2"))
    place.restart(max_epsilon_per_run=spent(3) - 1e-6)
    assert code(place.holder.handle(place.task(2, run="run-2"))) == "policy.max-epsilon-per-run"
    assert place.charges() == 4


def test_the_ledger_holds_a_run_to_its_limit_whatever_happens_between_review_and_charge(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch, events: list[str]
) -> None:
    place = make_place(privacy__noise_multiplier=NOISE, round__count=3)
    place.restart(max_epsilon_per_run=limit_for(2))
    monkeypatch.setattr(holder_module, "review_plan", lambda *_, **__: None)
    for number in (1, 2):
        update(place, place.task(number))
    events.clear()
    assert code(place.holder.handle(place.task(3))) == "policy.max-epsilon-per-run"
    assert events == []
    assert place.charges() == 2
    assert code(place.holder.handle(place.task(1, run="run-2"))) == "update"


def test_an_interrupt_carries_nothing_of_what_it_interrupted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        try:
            raise ValueError("a private sentence")
        except ValueError:
            sys.exit("a private sentence")

    monkeypatch.setattr(Trainer, "train", interrupted)
    with pytest.raises(SystemExit) as caught:
        place.holder.handle(place.task())
    assert caught.value.code == 1
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: sys.exit(3))
    with pytest.raises(SystemExit) as caught:
        place.holder.handle(place.task(2))
    assert caught.value.code == 3


def test_another_run_goes_on_from_what_was_spent(make_place: MakePlace) -> None:
    place = make_place(privacy__noise_multiplier=NOISE)
    place.restart(max_epsilon=limit_for(3))
    update(place, place.task(1))
    update(place, place.task(2))
    place.restart()
    update(place, place.task(1, run="run-2"))
    assert code(place.holder.handle(place.task(2, run="run-2"))) == "ledger.budget-exhausted"
    assert epsilon_of(place) == spent(3)


def test_a_run_has_no_more_rounds_than_its_noise_is_for(place: Place) -> None:
    place.restart(max_epsilon=100.0)
    for number in (1, 2):
        update(place, place.task(number))
    again = place.task(2, adapter=bytes(len(place.task().adapter)))
    assert code(place.holder.handle(again)) == "task.too-many-rounds"
    assert place.charges() == 2
    assert code(place.holder.handle(place.task(1, run="run-2"))) == "update"


@pytest.mark.parametrize("number", [0, 3])
def test_a_round_that_the_run_does_not_have_is_refused(place: Place, number: int) -> None:
    assert code(place.holder.handle(place.task(number))) == "task.round"
    assert place.charges() == 0


def test_the_noise_is_for_all_rounds_of_the_run(place: Place) -> None:
    settings = from_flat(place.settings | {"round.count": 20})
    plan = plan_of(settings)
    assert epsilon_pld([plan.steps(20)], DELTA) <= settings.privacy.epsilon
    assert epsilon_pld([plan.steps(21)], DELTA) > settings.privacy.epsilon


@pytest.mark.parametrize("unit", ["record", "person"])
def test_no_delta_is_held_against_what_the_holder_has(make_place: MakePlace, unit: str) -> None:
    place = make_place(privacy__delta=0.09, privacy__unit=unit, data__person="person")
    place.restart(max_delta=0.1)
    assert code(place.holder.handle(place.task())) == "update"  # a refusal would tell n


def test_without_noise_the_budget_is_gone_for_good(make_place: MakePlace) -> None:
    place = make_place(privacy__trust="off")
    assert code(place.holder.handle(place.task())) == "policy.allow-unprotected"
    place.restart(allow_unprotected=True)
    assert update(place, place.task()).receipt["epsilon"] is None
    place.settings["privacy.trust"] = "local"
    assert code(place.holder.handle(place.task(2))) == "ledger.budget-exhausted"


# Persons

PERSONS = RECORDS // 3  # three records each, see tests/tiny.py
BY_PERSON = {"privacy__unit": "person", "data__person": "person"}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The units that training was called with; the training itself is left out."""
    seen: list[Any] = []

    def standing_still(
        self: Trainer, adapter: torch.Tensor, *_: Any, units: Any = None
    ) -> torch.Tensor:
        seen.append(units)
        return torch.zeros(self._loaded.schema.trained_size)

    monkeypatch.setattr(Trainer, "train", standing_still)
    return seen


def test_persons_are_drawn_and_booked_and_not_counted(
    make_place: MakePlace, handed: list[Any]
) -> None:
    place = make_place(train__rate=0.75, **BY_PERSON)
    receipt = update(place, place.task()).receipt
    assert [step["sampling_rate"] for step in receipt["steps_run"]] == [0.75]
    assert handed == [[[3 * i, 3 * i + 1, 3 * i + 2] for i in range(PERSONS)]]
    with Ledger.open(place.site.ledger) as ledger:
        reserved, released = (entry.payload for entry in ledger.entries()[1:])
        identity = ledger.identity
    assert (reserved["plan"]["unit"], reserved["person"]) == ("person", "person")
    assert released["text"] == identity
    assert "units" not in reserved | released


def test_each_record_is_handed_on_as_a_unit_of_its_own(place: Place, handed: list[Any]) -> None:
    update(place, place.task())
    assert handed == [[[i] for i in range(RECORDS)]]


def test_no_request_chooses_the_unit_or_binds_the_ledger_to_one(
    make_place: MakePlace, handed: list[Any]
) -> None:
    place, noise = make_place(**BY_PERSON), {"privacy__noise_multiplier": 10_000.0}
    by_label = place.hostile(data__person="label", **noise)
    assert code(place.holder.handle(by_label)) == "contract.person"
    by_record = place.hostile(privacy__unit="record", **noise)
    assert code(place.holder.handle(by_record)) == "contract.unit"
    assert not place.site.ledger.exists()
    assert code(place.holder.handle(place.task())) == "update"


def test_a_ledger_goes_on_with_its_unit_even_where_the_contract_changed(
    make_place: MakePlace, handed: list[Any]
) -> None:
    place = make_place(**BY_PERSON)
    update(place, place.task())
    place.settings |= {"privacy.unit": "record", "data.person": ""}
    place.restart(data=tiny.contract(place.settings))
    assert code(place.holder.handle(place.task(2))) == "ledger.unit"
    assert place.charges() == 1


def test_a_record_of_nobody_is_a_unit_of_nothing(make_place: MakePlace, handed: list[Any]) -> None:
    place = make_place(**BY_PERSON)
    rows = tiny.rows(RECORDS, seed=3)
    tiny.write_jsonl(place.data, [{**rows[0], "person": None}, *rows[3:]])
    assert code(place.holder.handle(place.task())) == "update"
    assert handed == [[[], *([3 * i + 1, 3 * i + 2, 3 * i + 3] for i in range(PERSONS - 1))]]


# The data set and its ledger


def test_a_changed_file_is_another_text_under_the_same_budget(make_place: MakePlace) -> None:
    place, seen = make_place(), []
    for number in (1, 2):
        update(place, place.task(number))
        with Ledger.open(place.site.ledger) as ledger:
            seen.append(ledger.identity)
        tiny.write_jsonl(place.data, tiny.rows(30, seed=9))
    assert len(set(seen)) == 2
    assert place.states() == ["created", *["reserved", "released"] * 2]  # no entry of its own
    with Ledger.open(place.site.ledger) as ledger:
        assert sum(step.steps for step in ledger.steps()) == 2


def test_a_changed_file_is_read_again(place: Place, handed: list[Any]) -> None:
    update(place, place.task(1))
    tiny.write_jsonl(place.data, tiny.rows(30, seed=9))
    update(place, place.task(2))
    assert [len(units) for units in handed] == [RECORDS, 30]


def test_a_text_that_was_changed_since_it_was_taken_in_is_not_used_and_nothing_is_charged(
    make_place: MakePlace, events: list[str]
) -> None:
    place = make_place(round__count=9)
    update(place, place.task(1))
    take_in(place.site.data, place.site.ledger)
    update(place, place.task(2))
    events.clear()
    with place.site.data.open("a") as file:
        file.write('{"text": "warm", "label": "positive"}\n')
    for dry in (True, False):
        asked = replace(place.task(3), dry=dry)
        assert code(place.holder.handle(asked)) == "data.changed"
    assert events == []
    take_in(place.site.data, place.site.ledger)
    update(place, place.task(3))


def test_who_only_asks_is_answered_at_no_charge_and_without_a_look_at_the_text(
    place: Place, events: list[str]
) -> None:
    with watching():
        asked = replace(place.task(1), dry=True)
        assert place.holder.handle(asked) == Ready(holder=place.site.name, task_hash=asked.hash)
    assert str(place.data) not in OPENED.names
    assert OPENED.for_writing == []
    assert events == []
    assert not place.site.ledger.exists()
    update(place, place.task(1))


def test_a_tampered_ledger_stops_the_holder(place: Place) -> None:
    update(place, place.task())
    with sqlite3.connect(place.site.ledger) as sql:
        sql.execute("DROP TRIGGER entries_stay")
        sql.execute("UPDATE entries SET payload = replace(payload, 'run-1', 'run-2')")
    sql.close()
    assert code(place.holder.handle(place.task(2))) == "ledger.corrupt"


# Tasks that do not fit (the hostile ones: test_hostile_tasks.py)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora__rank": 3}, "task.schema"),
        ({"lora__layers": 2}, "task.schema"),
        ({"lora__layers": 9}, "settings.range"),
        ({"lora__targets": "word_embeddings"}, "settings.range"),
        ({"lora__targets": "../x"}, "settings.range"),
        ({"train__max_length": 65}, "settings.range"),
        ({"data__text": "body"}, "contract.text"),
        ({"data__person": "/etc/passwd"}, "contract.person"),
        ({"task__labels": "good,bad"}, "contract.labels"),
    ],
)
def test_a_task_that_does_not_fit_the_text_or_the_model_is_not_charged(
    place: Place, changes: dict[str, Any], expected: str, events: list[str]
) -> None:
    assert code(place.holder.handle(place.hostile(**changes))) == expected
    assert events == []


def test_a_model_that_mixes_examples_is_found_out_before_it_costs_anything(
    place: Place, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def averaged(self: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, targets).unsqueeze(0)

    models._load.cache_clear()  # a model that was checked already is not checked again
    monkeypatch.setattr(Classification, "losses", averaged)
    assert code(place.holder.handle(place.task())) == "train.self-check"
    assert events == []
    assert not place.site.ledger.exists()


def poisoned(place: Place, value: float) -> bytes:
    size = load_model(from_flat(place.settings)).schema.size
    adapter = torch.zeros(size)
    adapter[size // 2] = value
    return adapter.numpy().tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_adapter_that_is_not_finite_is_refused_before_it_costs_anything(
    place: Place, value: float, events: list[str]
) -> None:
    task = place.task(adapter=poisoned(place, value))
    assert code(place.holder.handle(task)) == "adapter.not-finite"
    assert events == []


def test_an_adapter_so_large_that_every_gradient_overflows_gives_finite_noise(
    place: Place,
) -> None:
    reply = update(place, place.task(adapter=poisoned(place, 3e38)))
    values = torch.frombuffer(bytearray(reply.values), dtype=torch.float32)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"adapter": b""}, "wire.size"), ({"adapter": b"12345"}, "wire.size"),
     ({"schema": ""}, "task.schema"), ({"schema": "0" * 64}, "task.schema")],
)  # fmt: skip
def test_an_adapter_of_another_shape_is_refused_before_it_costs_anything(
    place: Place, changes: dict[str, Any], expected: str, events: list[str]
) -> None:
    assert code(place.holder.handle(place.task(**changes))) == expected
    assert events == []


# Bad input at the holder

GOOD_ROW = {"text": "a fine day", "label": "positive", "person": "1"}
MISSING: list[tuple[str, bytes | None, str]] = [
    ("text.jsonl", None, "data.missing-file"),
    ("text.doc", b"a day\n", "data.unknown-suffix"),
]
BAD_FILES: list[tuple[str, bytes]] = [
    ("text.jsonl", b""),
    ("text.jsonl", b"\n\n"),
    ("text.jsonl", b"\x00\x01\x02"),
    ("text.jsonl", b"\xff\xfe"),
    ("text.jsonl", b"not json\n"),
    ("text.jsonl", b"[" * 100_000),
    ("text.jsonl", json.dumps({"text": "a day"}).encode()),
    ("text.jsonl", json.dumps(GOOD_ROW | {"label": "mixed"}).encode()),
    ("text.jsonl", json.dumps(GOOD_ROW | {"text": ""}).encode()),
    ("text.jsonl", json.dumps(GOOD_ROW | {"text": None}).encode()),
    ("text.jsonl", json.dumps(GOOD_ROW | {"text": [GOOD_ROW]}).encode()),
    ("text.csv", b"text,label\na day\n"),
    ("text.csv", b'text,label\n"a day'),
    ("text.parquet", b"no parquet"),
    ("text.txt", b"a day\n"),
]


@pytest.mark.parametrize(("name", "content", "expected"), MISSING)
def test_a_file_that_is_not_there_is_refused_and_not_charged(
    place: Place, name: str, content: bytes | None, expected: str, events: list[str]
) -> None:
    assert code(with_file(place, name, content).handle(place.task())) == expected
    assert events == []
    assert not place.site.ledger.exists()


@pytest.mark.parametrize(("name", "content"), BAD_FILES)
def test_whatever_is_in_the_file_the_answer_is_an_update(
    place: Place, name: str, content: bytes, handed: list[Any]
) -> None:
    holder = with_file(place, name, content)
    assert code(holder.handle(place.task())) == "update"
    assert all(unit == [] for unit in handed[0])
    assert holder.unused == len(handed[0])


def with_file(place: Place, name: str, content: bytes | None) -> Holder:
    """The place's holder with another file, or none, in the place of its text."""
    place.data.unlink()
    data = place.data.with_name(name)
    if content is not None:
        data.write_bytes(content)
    return Holder(dataclasses.replace(place.site, data=data))


def test_a_folder_in_the_place_of_the_file_is_refused(place: Place) -> None:
    place.data.unlink()
    place.data.mkdir()
    assert code(place.holder.handle(place.task())) == "data.missing-file"


@pytest.mark.parametrize(
    "rows",
    [
        [GOOD_ROW],
        [GOOD_ROW, GOOD_ROW | {"text": "people of the town " * 1000}],
        [GOOD_ROW] * 5,  # one label only
        [GOOD_ROW, GOOD_ROW | {"text": "\u200b"}, GOOD_ROW | {"text": "日記 été ???"}],
    ],
    ids=["one record", "longer than the model", "one label", "no known word"],
)
def test_unusual_text_is_trained_on(place: Place, rows: list[dict[str, str]]) -> None:
    tiny.write_jsonl(place.data, rows)
    assert code(place.holder.handle(place.task())) == "update"


def test_a_holder_goes_on_after_every_kind_of_refusal(place: Place) -> None:
    place.holder.handle(place.hostile(train__batch=0))
    kept = place.data.read_bytes()
    place.data.write_bytes(b"broken")
    os.utime(place.data, ns=(0, 0))
    place.holder.handle(place.task())
    place.data.write_bytes(kept)
    assert code(place.holder.handle(place.task())) == "update"


def test_a_simulated_holder_may_use_any_model_folder(make_place: MakePlace) -> None:
    place = make_place(SIMULATION)
    assert code(place.holder.handle(place.task())) == "update"


def test_a_holder_whose_seed_gives_other_values_refuses_before_it_costs_anything(
    place: Place, events: list[str]
) -> None:
    loaded = load_model(from_flat(place.settings))
    adapter = flatten(loaded.initial, loaded.schema.shapes)
    theirs = {name: value + 1 for name, value in loaded.initial.items()}
    parcel = pack(loaded.schema, adapter + 1, theirs)
    assert "1" not in parcel.sent
    task = place.task(sent=parcel.sent, rest=parcel.rest, adapter=b"")
    assert code(place.holder.handle(task)) == "task.initial"
    assert events == []
    assert not place.site.ledger.exists()
    mine = pack(loaded.schema, adapter, loaded.initial)
    assert code(place.holder.handle(place.task(sent=mine.sent, rest=mine.rest, adapter=b""))) == (
        "update"
    )
