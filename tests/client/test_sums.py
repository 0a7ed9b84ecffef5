"""Noisy sums at a holder: sensitivity, noise, and the order of events."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from confide.client import holder as holder_module
from confide.client.guard.policy import Policy, review_plan, review_sum
from confide.client.training import sums as sums_module
from confide.client.training.sums import clipped_sum, noisy_sum, shares_of_classes, shares_of_scores
from confide.common.adapter.encoding import decode_vector
from confide.common.adapter.schema import flatten
from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import load_model
from confide.common.plans import (
    SENSITIVITY,
    Sum,
    largest_loss,
    plan_of,
    plan_of_sum,
    planned_steps,
    steps_of_sums,
)
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Ledger
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Trust
from confide.common.settings import from_flat
from confide.common.tasks import Example
from confide.common.text.readers import read_records
from confide.common.wire.messages import TrainRequest, Update, reply_to_bytes
from tests import tiny
from tests.client.conftest import RECORDS, Place, code, least_limit
from tests.client.opened import OPENED, watching

DELTA = 1e-3
NOISE = 5.0
MakePlace = Callable[..., Place]
COUNTS = {"task__class_weights": "counted", "privacy__sum_noise": NOISE}
SCORES = {"round__holder_metric": "accuracy", "privacy__sum_noise": NOISE}


def plan(noise: float = NOISE, trust: Trust = Trust.LOCAL) -> Plan:
    return Plan(
        clip_norm=1.0,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=DELTA,
        trust=trust,
    )


# Sensitivity

EXTREMES = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, 0.0, 1.0],
        [1.0, 1.0, 1.0],
        [1e300, -1e300, 1e300],
        [math.inf, 0.0, 0.0],
        [math.nan, 1.0, 0.0],
        [0.0, 0.0, 0.0],
        [1 / 3, 1 / 3, 1 / 3],
        [-1.0, 0.0, 0.0],
    ]
)


@pytest.mark.parametrize("left_out", range(len(EXTREMES)))
def test_one_record_moves_the_sum_by_at_most_one(left_out: int) -> None:
    units = [[i] for i in range(len(EXTREMES))]
    without = [unit for unit in units if unit != [left_out]]
    with np.errstate(over="ignore", invalid="ignore"):
        moved = clipped_sum(EXTREMES, units, 1.0) - clipped_sum(EXTREMES, without, 1.0)
    assert np.isfinite(moved).all()
    assert np.linalg.norm(moved) <= 1 + 1e-12


@pytest.mark.parametrize("size", [2, 3, 7])
def test_one_person_moves_the_sum_by_at_most_one_however_many_records(size: int) -> None:
    persons = [list(unit) for unit in itertools.combinations(range(len(EXTREMES)), size)][:60]
    with np.errstate(over="ignore", invalid="ignore"):
        whole = clipped_sum(EXTREMES, persons, 1.0)
        for number in range(len(persons)):
            rest = clipped_sum(EXTREMES, persons[:number] + persons[number + 1 :], 1.0)
            assert np.linalg.norm(whole - rest) <= 1 + 1e-9


def test_a_persons_records_are_averaged_and_a_record_counts_as_one() -> None:
    shares = np.array(shares_of_classes([0, 0, 1, 2], 3))
    assert clipped_sum(shares, [[0], [1], [2], [3]], 1.0).tolist() == [2.0, 1.0, 1.0]
    assert clipped_sum(shares, [[0, 1], [2, 3]], 1.0).tolist() == [1.0, 0.5, 0.5]


# Noise


def test_the_noise_is_the_generators_times_the_plans_standard_deviation() -> None:
    shares = shares_of_classes([0, 1, 1], 2)
    found = noisy_sum(shares, 2, [[0], [1], [2]], plan(), SecureGenerator.insecure_seeded(4))
    draw = SecureGenerator.insecure_seeded(4).normal(2)
    right = np.round((np.array([1.0, 2.0]) + NOISE * draw) * 1024) / 1024
    assert found.tolist() == right.tolist()


@pytest.mark.parametrize("noise", [0.5, NOISE])
def test_the_noise_is_normal_with_the_plans_standard_deviation(noise: float) -> None:
    size = 20_000
    shares = np.zeros((1, size))
    found = noisy_sum(shares, size, [[0]], plan(noise), SecureGenerator()).numpy() / noise
    assert stats.kstest(found, "norm").pvalue > 1e-6
    assert abs(found.std() - 1) < 5 / math.sqrt(2 * size)
    again = noisy_sum(shares, size, [[0]], plan(noise), SecureGenerator()).numpy() / noise
    assert abs(np.corrcoef(found, again)[0, 1]) < 6 / math.sqrt(size)


def test_every_number_of_a_sum_has_noise_of_its_own() -> None:
    draws = [
        noisy_sum(np.zeros((1, 2)), 2, [[0]], plan(), SecureGenerator()).numpy()
        for _ in range(2000)
    ]
    both = np.stack(draws)
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.15
    assert stats.kstest(both[:, 0] / NOISE, "norm").pvalue > 1e-6


def test_an_outcome_lies_on_a_grid_whatever_was_counted() -> None:
    found = noisy_sum(np.ones((1, 100)) / 100, 100, [[0]], plan(), SecureGenerator()).numpy()
    assert (found * 1024 == np.round(found * 1024)).all()


def test_a_broken_source_of_noise_is_refused() -> None:
    class Silent(SecureGenerator):
        def normal(self, n: int) -> Any:
            return np.zeros(n)

    with pytest.raises(ConfideError, match=r"train\.noise"):
        noisy_sum(np.zeros((1, 1000)), 1000, [[0]], plan(), Silent())


def test_without_noise_the_sum_is_exact() -> None:
    shares = shares_of_classes([0, 1, 1], 2)
    bare = plan(0.0, Trust.OFF)
    assert noisy_sum(shares, 2, [[0], [1], [2]], bare, SecureGenerator()).tolist() == [1.0, 2.0]


# Scores


def scores(
    place: Place, adapter: torch.Tensor, kind: Sum, generator: SecureGenerator | None = None
) -> np.ndarray:
    loaded = load_model(from_flat(place.settings))
    target = from_flat(place.settings).data.target or None
    records = read_records(place.data, text="text", target=target)
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    found = shares_of_scores(loaded, adapter, examples, kind, generator or SecureGenerator())
    return np.array(found)


def initial(place: Place, scale: float = 1.0) -> torch.Tensor:
    loaded = load_model(from_flat(place.settings))
    return flatten(loaded.initial, loaded.schema.shapes) * scale


def test_a_score_says_for_each_record_whether_the_adapter_is_right(place: Place) -> None:
    adapter = initial(place) + 0.3
    found = scores(place, adapter, Sum.ACCURACY)
    loaded = load_model(from_flat(place.settings))  # it carries the adapter now
    records = read_records(place.data, text="text", target="label")
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    batch = EncodedText(examples, loaded).together(range(len(examples)))
    with torch.no_grad():
        right = forward(loaded, loaded.task, batch).argmax(-1) == batch.targets
    assert 0 < right.sum() < len(right)
    assert found[:, 0].tolist() == right.double().tolist()
    assert (found.sum(axis=1) == 1).all()


@pytest.mark.parametrize("task", ["causal", "masked", "seq2seq"])
def test_a_loss_counts_as_a_share_of_that_of_a_guess(
    tmp_path_factory: pytest.TempPathFactory, make_place: MakePlace, task: str
) -> None:
    model = tiny.save_task_model(tmp_path_factory.mktemp(task), task)
    place = make_place(round__holder_metric="perplexity", **tiny.TASKS[task])
    place.settings["model.name"] = str(model)
    words = [tiny.for_task(task, row) for row in tiny.rows(RECORDS, seed=3)]
    tiny.write_jsonl(place.data, words)
    found = scores(place, initial(place), Sum.PERPLEXITY)
    assert (found[:, 0] > 0.5).all()  # nothing was learnt yet
    assert (found >= 0).all()
    assert np.allclose(found.sum(axis=1), 1)
    assert largest_loss(load_model(from_flat(place.settings)).model) > 1
    lost = scores(place, torch.full_like(initial(place), 1e30), Sum.PERPLEXITY)
    assert ((lost >= 0) & (lost <= 1)).all()


@pytest.mark.parametrize(
    ("loss", "share"), [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (9.0, 1.0), (math.inf, 1.0)]
)
def test_a_loss_above_the_largest_counts_as_that(loss: float, share: float) -> None:
    assert sums_module._share(loss, 2.0) == share
    assert sums_module._share(math.nan, 2.0) == 1.0


def test_what_one_record_adds_does_not_depend_on_the_others(place: Place) -> None:
    adapter = initial(place) + 0.3
    whole = scores(place, adapter, Sum.ACCURACY)
    rows = tiny.rows(RECORDS, seed=3)
    for left_out in (0, RECORDS // 2):
        tiny.write_jsonl(place.data, rows[:left_out] + rows[left_out + 1 :])
        rest = scores(place, adapter, Sum.ACCURACY)
        assert rest.tolist() == np.delete(whole, left_out, axis=0).tolist()


# The order of events


def asked(place: Place, number: int = 0, **changes: Any) -> TrainRequest:
    """The honest task of a sum; a count needs no adapter."""
    if number == 0:
        changes = {"schema": "", "adapter": b""} | changes
    return place.task(number, **changes)


def values(reply: Any, size: int = 2) -> list[float]:
    assert isinstance(reply, Update), reply
    return [float(x) for x in decode_vector(reply.values, reply.encoding, size)]


LAST = 3  # one more than the place's rounds
KINDS = [pytest.param(COUNTS, 0, id="classes"), pytest.param(SCORES, LAST, id="accuracy")]


@pytest.mark.parametrize(("changes", "number"), KINDS)
def test_a_sum_is_charged_before_the_text_is_used_and_then_released(
    make_place: MakePlace, changes: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, found = make_place(**changes), list[str]()

    def looking(name: str) -> None:
        original = getattr(holder_module, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            found.append(f"{name} after {place.states()[-1]}")  # by a connection of its own
            return original(*args, **kwargs)

        monkeypatch.setattr(holder_module, name, wrapper)

    for name in ("shares_of_classes", "shares_of_scores", "noisy_sum", "release"):
        looking(name)
    assert code(place.holder.handle(asked(place, number))) == "update"
    shares = "shares_of_classes" if number == 0 else "shares_of_scores"
    assert found == [f"{name} after reserved" for name in (shares, "noisy_sum", "release")]
    assert place.states() == ["created", "reserved", "released"]


@pytest.mark.parametrize(("changes", "number"), KINDS)
def test_the_ledger_has_a_sum_as_one_gaussian_of_its_noise(
    make_place: MakePlace, changes: Any, number: int
) -> None:
    place = make_place(**changes)
    reply = place.holder.handle(asked(place, number))
    told = {"noise_multiplier": NOISE, "sampling_rate": 1.0, "steps": 1}
    assert reply.receipt["steps_run"] == [told]  # type: ignore[union-attr]
    with Ledger.open(place.site.ledger) as ledger:
        charged = steps_of_sums(from_flat(place.settings), 1)
        assert ledger.epsilon(DELTA) == epsilon_pld(charged, DELTA) < 1


@pytest.mark.parametrize(("changes", "number"), KINDS)
def test_a_sum_delivered_five_times_is_one_charge_and_five_equal_replies(
    make_place: MakePlace, changes: Any, number: int
) -> None:
    place = make_place(**changes)
    task = asked(place, number)
    replies = [place.holder.handle(task) for _ in range(3)]
    replies += [place.holder.handle(task) for _ in range(2) if place.restart()]
    assert all(isinstance(reply, Update) for reply in replies)
    assert len({reply_to_bytes(reply) for reply in replies}) == 1
    assert place.charges() == 1


@pytest.mark.parametrize(("changes", "number"), KINDS)
def test_a_sum_that_does_not_fit_is_refused_before_the_text_is_opened(
    make_place: MakePlace, changes: Any, number: int
) -> None:
    place = make_place(privacy__noise_multiplier=20.0, **changes)
    settings = from_flat(place.settings)
    once = least_limit(planned_steps(settings), steps_of_sums(settings, 1), DELTA)
    task = asked(place, number)
    place.restart(max_epsilon=once - 1e-6)
    with watching():
        assert code(place.holder.handle(task)) == "ledger.budget-exhausted"
    assert str(place.data) not in OPENED.names
    assert place.charges() == 0
    place.restart(max_epsilon=once)
    assert code(place.holder.handle(task)) == "update"


def test_the_count_that_leaves_is_not_the_count(make_place: MakePlace) -> None:
    place = make_place(**COUNTS)
    found = [values(place.holder.handle(asked(place, run=f"run-{i}"))) for i in range(6)]
    labels = [row["label"] for row in tiny.rows(RECORDS, seed=3)]
    right = [labels.count("negative"), labels.count("positive")]
    off = np.array(found) - right
    assert (np.abs(off) > 1e-3).all()
    assert len({tuple(one) for one in found}) == 6
    assert stats.kstest((off / NOISE).ravel(), "norm").pvalue > 1e-6


def test_a_count_of_persons_is_of_persons(make_place: MakePlace) -> None:
    place = make_place(
        Policy(max_delta=1e-2, allow_unprotected=True, base_models=()),
        **{**COUNTS, "privacy__trust": "off", "privacy__unit": "person", "data__person": "person"},
    )
    place.restart(base_models=(str(place.model),))
    assert sum(values(place.holder.handle(asked(place)))) == pytest.approx(RECORDS / 3)


def test_a_record_of_no_class_is_counted_nowhere(make_place: MakePlace) -> None:
    limits = Policy(max_delta=1e-2, allow_unprotected=True)
    place = make_place(limits, **COUNTS, privacy__trust="off")
    place.restart(base_models=(str(place.model),))
    rows = tiny.rows(RECORDS, seed=3)
    tiny.write_jsonl(place.data, [rows[0] | {"label": "other"}, *rows[1:]])
    assert sum(values(place.holder.handle(asked(place)))) == RECORDS - 1
    assert place.holder.unused == 1


def test_a_count_of_labels_that_the_text_does_not_have_is_refused(make_place: MakePlace) -> None:
    place = make_place(**COUNTS)
    place.settings["task.labels"] = "negative,other"
    assert code(place.holder.handle(asked(place))) == "contract.labels"
    assert place.charges() == 0


@pytest.mark.parametrize("kind", [Sum.ACCURACY, Sum.PERPLEXITY])
def test_what_cannot_be_scored_is_no_score(
    place: Place, kind: Sum, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, examples: Sequence[Example], place: object) -> None:
        raise RuntimeError(f"cannot collate {examples}")

    loaded = load_model(from_flat(place.settings))
    monkeypatch.setattr(type(loaded.task), "collate", broken)
    monkeypatch.setattr(sums_module, "largest_loss", lambda _: 1.0)
    example = Example((1, 2), 0)
    found = shares_of_scores(loaded, initial(place), [example, None], kind, SecureGenerator())
    assert found == [None, None]


# How often, and in which order


def test_a_run_gets_each_sum_once_and_all_its_rounds(make_place: MakePlace) -> None:
    place = make_place(privacy__epsilon=3.0, **(COUNTS | SCORES))
    place.restart(max_epsilon=3.0, max_epsilon_per_run=3.0)
    assert code(place.holder.handle(asked(place))) == "update"
    other = place.settings | {"train.lr": 0.5}
    assert code(place.holder.handle(asked(place, settings=other))) == "task.too-many-rounds"
    place.settings["task.class-weights"] = "counted 1,2"
    for number in (1, 2, LAST):
        assert code(place.holder.handle(place.task(number))) == "update", number
    again = place.task(2, adapter=bytes(len(place.task().adapter)))
    assert code(place.holder.handle(again)) == "task.too-many-rounds"
    assert place.charges() == 4
    with Ledger.open(place.site.ledger) as ledger:
        assert 0.99 * 3 <= ledger.epsilon(DELTA) <= 3.0
        assert ledger.charged("run-1") == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_run_that_does_not_fit_as_a_whole_gets_no_sum(make_place: MakePlace) -> None:
    place = make_place(privacy__noise_multiplier=2.0, **COUNTS)
    plan = plan_of(from_flat(place.settings))
    whole = epsilon_pld((plan.steps(2), *steps_of_sums(from_flat(place.settings))), DELTA)
    place.restart(max_epsilon_per_run=whole - 1e-3, max_epsilon=100.0)
    assert code(place.holder.handle(asked(place))) == "policy.max-epsilon-per-run"
    assert place.charges() == 0
    place.restart(max_epsilon_per_run=whole + 1e-3)
    assert code(place.holder.handle(asked(place))) == "update"


def test_nothing_is_trained_with_weights_that_were_not_counted(make_place: MakePlace) -> None:
    place = make_place(**COUNTS)
    assert code(place.holder.handle(place.task(1))) == "task.uncounted"
    assert place.charges() == 0


@pytest.mark.parametrize("number", [0, LAST])
def test_a_sum_that_the_settings_do_not_ask_for_is_refused(place: Place, number: int) -> None:
    assert code(place.holder.handle(asked(place, number))) == "task.round"
    assert place.charges() == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": "0" * 64}, "task.schema"),
        ({"adapter": b""}, "wire.size"),
        ({"adapter": b"poison"}, "adapter.not-finite"),
    ],
)
def test_a_metric_of_no_adapter_is_refused_before_the_text_is_opened(
    make_place: MakePlace, changes: dict[str, Any], expected: str
) -> None:
    place = make_place(**SCORES)
    if changes.get("adapter") == b"poison":
        whole = np.frombuffer(place.task(LAST).adapter, dtype="<f4").copy()
        whole[3] = math.nan
        changes = {"adapter": whole.tobytes()}
    task = asked(place, LAST, **changes)
    with watching():
        assert code(place.holder.handle(task)) == expected
    assert str(place.data) not in OPENED.names
    assert not place.site.ledger.exists()


# The policy


def test_a_holder_may_refuse_sums_and_train_nevertheless(make_place: MakePlace) -> None:
    place = make_place(**SCORES)
    place.restart(allow_sums=False)
    with watching():
        assert code(place.holder.handle(asked(place, LAST))) == "policy.allow-sums"
    assert str(place.data) not in OPENED.names
    assert code(place.holder.handle(place.task(1))) == "update"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_noise_multiplier": NOISE}, ""),
        ({"min_noise_multiplier": NOISE * (1 + 1e-9)}, "policy.min-noise-multiplier"),
        ({"max_sampling_rate": 0.99}, "policy.max-sampling-rate"),
        ({"allow_sums": False}, "policy.allow-sums"),
    ],
)
def test_a_sum_is_held_against_the_limits(limits: dict[str, Any], expected: str) -> None:
    settings = from_flat({"model.name": "m", "task.labels": "a,b", "privacy.sum-noise": NOISE})
    if not expected:
        review_sum(settings, Policy(**limits))
        return
    with pytest.raises(ConfideError) as refused:
        review_sum(settings, Policy(**limits))
    assert refused.value.code == expected
    assert refused.value.hint


def test_sums_to_come_are_part_of_what_a_run_may_spend() -> None:
    settings = from_flat({"model.name": "m", "task.labels": "a,b", "task.class-weights": "counted"})
    sums = steps_of_sums(settings)
    rounds = dataclasses.replace(plan(10.0), max_rounds=5)
    whole = epsilon_pld((rounds.steps(5), *sums), DELTA)
    enough = Policy(max_epsilon_per_run=whole + 1e-6, max_delta=1e-2)
    less = Policy(max_epsilon_per_run=whole - 1e-3, max_delta=1e-2)
    review_plan(rounds, enough, (), 0, sums)
    with pytest.raises(ConfideError, match="and its sums"):
        review_plan(rounds, less, (), 0, sums)
    charged: Sequence[Any] = (rounds.steps(1), *sums)
    review_plan(rounds, enough, charged, 1, ())
    with pytest.raises(ConfideError, match=r"max-epsilon-per-run"):
        review_plan(rounds, less, charged, 1, ())


def test_the_plan_of_a_sum_uses_every_unit_and_has_the_settings_noise() -> None:
    settings = from_flat({"model.name": "m", "task.labels": "a,b", "privacy.sum-noise": NOISE})
    made = plan_of_sum(settings)
    assert (made.sampling_rate, made.noise_std, made.steps().steps) == (1.0, NOISE, 1)
    assert SENSITIVITY == made.clip_norm == 1.0
