"""Noisy sums at the coordinator: weights, shares, the gate, and what a resumed run remembers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Receipt
from confide.common.settings import Settings, from_flat
from confide.common.wire.messages import NO_ADAPTER, Reply, TrainRequest, Update
from confide.server import sums
from confide.server.gate import check_sum, largest_norm
from confide.server.run_folder import RunFolder
from confide.server.senders import Senders
from confide.server.sums import Summed, balanced, measured, share_of

NOISE, DELTA = 5.0, 1e-5


def settings(**changes: Any) -> Settings:
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    flat = {
        "model.name": "m",
        "task.labels": "a,b",
        "task.class-weights": "counted",
        "privacy.sum-noise": NOISE,
        "privacy.delta": DELTA,
        "privacy.noise-multiplier": 2.0,
        "round.count": 3,
    }
    return from_flat(flat | named)


SETTINGS = settings()
TASK = TrainRequest(run="r", round=0, settings=SETTINGS.to_flat(), **NO_ADAPTER)


def steps(noise: float = NOISE, rate: float = 1.0, count: int = 1) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=count)


def receipt(*told: GaussianSteps, entries: int = 3) -> Receipt:
    return Receipt(
        ledger_id="0" * 32,
        head=f"{entries:064x}",
        entries=entries,
        delta=DELTA,
        epsilon=1.0,
        proven=8.0,
        unmasked=8.0,
        runs=1,
        limit=None,
        steps_run=told or (steps(),),
    )


def update(values: Any = (3.0, 4.0), holder: str = "holder-00", **changes: Any) -> Update:
    sent = Update(
        holder=holder,
        run="r",
        round=0,
        task_hash=TASK.hash,
        schema="",
        encoding="fp32",
        receipt=receipt().to_json(),
        values=np.asarray(values, dtype="<f4").tobytes(),
    )
    return dataclasses.replace(sent, **changes)


def summed(totals: tuple[float, ...], noise_std: float = 0.0, holders: int = 2) -> Summed:
    names = [f"holder-{i:02d}" for i in range(holders)]
    accepted = {name: check_sum(update(holder=name), TASK, SETTINGS, 2, None) for name in names}
    return Summed(totals=totals, noise_std=noise_std, accepted=accepted, left_out=[])


# What follows from a sum


def test_weights_are_the_inverse_shares_with_a_mean_of_one_over_the_records() -> None:
    weights, rates = balanced(summed((300.0, 100.0)))
    assert (weights, rates) == ("0.6667,2", "0.3333,1")
    assert abs(300 * 0.6667 + 100 * 2 - 400) < 0.1


@pytest.mark.parametrize(
    ("totals", "noise", "expected"),
    [
        ((100.0, -20.0), 0.0, "0.505,50.5"),  # at least one
        ((100.0, -20.0), 10.0, "0.55,5.5"),  # or as many as the noise hides
        ((-5.0, -20.0), 10.0, "1,1"),
        ((1e30, 0.0), 0.0, "0.5,1e+06"),
    ],
)
def test_a_class_of_which_nothing_is_seen_is_taken_for_what_the_noise_hides(
    totals: tuple[float, ...], noise: float, expected: str
) -> None:
    weights, rates = balanced(summed(totals, noise))
    assert weights == expected
    found = from_flat(
        SETTINGS.to_flat() | {"task.class-weights": f"counted {weights}", "task.class-rates": rates}
    )
    assert len(found.task.weights) == len(found.task.rates) == 2


def test_a_share_has_the_standard_error_that_the_noise_gives_it() -> None:
    generator, std = np.random.default_rng(0), 6.0
    found = share_of(summed((300.0, 100.0), std))
    assert found is not None
    share, error = found
    assert share == 0.75
    draws = np.array([300.0, 100.0]) + std * generator.standard_normal((100_000, 2))
    spread = (draws[:, 0] / draws.sum(axis=1)).std()
    assert error == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("totals", [(5.0, 5.0), (-50.0, 20.0), (0.0, 0.0), (20.0, 13.0)])
def test_a_share_that_the_noise_hides_is_not_told(totals: tuple[float, float]) -> None:
    assert share_of(summed(totals, 6.0)) is None


def test_a_share_is_between_0_and_1() -> None:
    assert share_of(summed((100.0, -3.0), 6.0))[0] == 1.0  # type: ignore[index]
    assert share_of(summed((-3.0, 100.0), 6.0))[0] == 0.0  # type: ignore[index]


def test_a_perplexity_is_that_of_the_mean_loss() -> None:
    asked = settings(
        task__kind="causal", task__labels="", task__class_weights="", data__target="",
        round__holder_metric="perplexity",
    )  # fmt: skip
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=100))
    found = measured(summed((50.0, 50.0), 1.0), asked, model)
    assert found["value"] == pytest.approx(10.0)  # the root of 100: half the loss of a guess
    assert found["error"] == pytest.approx(10.0 * math.log(100) * math.hypot(0.5, 0.5) / 100)


def test_too_few_holders_give_no_metric_and_no_weights() -> None:
    few = summed((50.0, 50.0), 1.0, holders=1)
    asked = settings(round__holder_metric="accuracy", round__min_holders=2)
    assert measured(few, asked, None) == {"value": None, "error": None}
    assert sums.counted(few, asked) == {}
    error = sums.no_count(few, asked)
    assert (error.code, "1 holders" in error.message) == ("run.no-count", True)
    assert sums.counted(summed((50.0, 50.0)), asked) == {"task.class-weights": "counted 1,1"}


# The gate


def test_an_honest_sum_passes() -> None:
    passed = check_sum(update(), TASK, SETTINGS, 2, None)
    assert passed.change.tolist() == [3.0, 4.0]
    assert check_sum(update((-1e9, 1e9)), TASK, SETTINGS, 2, None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"values": (1.0,)}, "wire.size"),
        ({"values": (1.0, 2.0, 3.0)}, "wire.size"),
        ({"values": (math.nan, 1.0)}, "gate.not-finite"),
        ({"values": (1.0, math.inf)}, "gate.not-finite"),
        ({"encoding": "bf16"}, "gate.encoding"),
        ({"schema": "0" * 64}, "gate.schema"),
        ({"round": 1}, "gate.task"),
        ({"task_hash": "0" * 64}, "gate.task"),
        ({"holder": "node-3"}, "gate.name"),
        ({"receipt": {}}, "gate.receipt"),
        ({"receipt": receipt(steps(NOISE / 2)).to_json()}, "gate.noise"),
        ({"receipt": receipt(steps(NOISE, 0.5)).to_json()}, "gate.noise"),
        ({"receipt": receipt(steps(2.0)).to_json()}, "gate.noise"),
        ({"receipt": receipt(steps(count=9)).to_json()}, "gate.receipt"),
    ],
)
def test_a_sum_that_is_none_is_turned_away(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfideError) as refused:
        check_sum(update(**changes), TASK, SETTINGS, 2, None)
    assert refused.value.code == code


def test_no_more_steps_than_there_are_sums_have_their_noise() -> None:
    asked = settings(privacy__noise_multiplier="auto", privacy__epsilon=1.0, privacy__sum_noise=3.0)
    task = dataclasses.replace(TASK, settings=asked.to_flat())
    told = receipt(steps(3.0, count=3)).to_json()
    sent = update(receipt=told, task_hash=task.hash)
    with pytest.raises(ConfideError, match=r"gate\.noise|privacy\.calibration"):
        check_sum(sent, task, asked, 2, None)


def test_the_longest_honest_change_has_the_noise_that_is_left_beside_sums() -> None:
    alone = settings(task__class_weights="", privacy__noise_multiplier="auto")
    beside = settings(privacy__noise_multiplier="auto", privacy__sum_noise=1.0)
    assert largest_norm(beside, 100) > largest_norm(alone, 100)


class Holders:
    """Answers that are given from outside."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = dict(enumerate(replies))

    def nodes(self) -> list[int]:
        return list(self.replies)

    def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> dict[int, Reply]:
        return {node: self.replies[node] for node in nodes}


def test_what_passes_is_added_up_and_what_does_not_is_named() -> None:
    good = [update((i, 10.0 * i), f"holder-{i:02d}") for i in (1, 2, 3, 4)]
    bad = update((math.nan, 0.0), "holder-05")
    transport = Holders(*good, bad)
    found = sums.ask(TASK, SETTINGS, transport, transport.nodes(), {}, ())
    assert found.totals == (10.0, 100.0)
    assert found.noise_std == NOISE * 2
    assert list(found.left_out) == [{"holder": "holder-05", "code": "gate.not-finite"}]


def test_a_sum_in_the_name_of_another_is_not_added_and_the_other_stays() -> None:
    transport = Holders(update((1.0, 10.0), "holder-00"), update((9.0, 9.0), "holder-00"))
    senders = Senders(known=lambda: {0: "holder-00", 1: "holder-01"})
    found = sums.ask(TASK, SETTINGS, transport, transport.nodes(), {}, (), senders)
    assert found.totals == (1.0, 10.0)
    assert list(found.left_out) == [{"holder": "holder-01", "code": "gate.sender"}]


def test_without_an_answer_there_is_a_sum_of_nothing() -> None:
    transport = Holders(update((math.nan, 0.0)))
    found = sums.ask(TASK, SETTINGS, transport, [0], {}, ())
    assert (found.totals, found.noise_std, dict(found.accepted)) == ((0.0, 0.0), 0.0, {})


# A resumed run


def test_a_count_is_remembered(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path), "sums")
    assert sums.remembered(folder, SETTINGS) == {}
    sums.remember(folder, {"task.class-weights": "counted 1,2"})
    assert sums.remembered(folder, SETTINGS) == {"task.class-weights": "counted 1,2"}


@pytest.mark.parametrize(
    "found",
    [
        "[1",
        "[" * 5000,
        '["task.class-weights"]',
        "{}",
        '{"privacy.epsilon": "100"}',
        '{"task.class-weights": "counted 1,2", "privacy.trust": "off"}',
        '{"task.class-weights": "counted 1,2", "task.class-rates": "counted 1,1"}',
        '{"task.class-rates": "counted 1,1"}',
        '{"task.class-weights": "counted"}',
        '{"task.class-weights": "1,2"}',
        '{"task.class-weights": "counted 1,2,3"}',
        '{"task.class-weights": "counted 1,-2"}',
        '{"task.class-weights": "counted 1,nan"}',
        '{"task.class-weights": "counted 1,2e9"}',
        '{"task.class-weights": ["counted 1,2"]}',
    ],
)
def test_a_foreign_folders_count_takes_the_place_of_no_other_setting(
    tmp_path: Path, found: str
) -> None:
    folder = RunFolder.create(str(tmp_path), "sums")
    folder.write(sums.COUNTED_FILE, found.encode())
    with pytest.raises(ConfideError) as caught:
        sums.remembered(folder, SETTINGS)
    assert caught.value.code == "run.resume"
