"""Which sums a run asks for, how they are numbered, and what they cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.plans import (
    Sum,
    is_sum,
    largest_loss,
    noise_of,
    numbers_in_sum,
    steps_of_sums,
    sums_of,
    with_counted,
)
from confide.common.privacy.accountant import GaussianSteps, calibrate, epsilon_pld
from confide.common.settings import Settings, from_flat

DELTA = 1e-5


def settings(**changes: Any) -> Settings:
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return from_flat({"model.name": "m", "task.labels": "a,b,c", "round.count": 7} | named)


BOTH = {"task__class_weights": "counted", "round__holder_metric": "accuracy"}


def test_a_run_asks_for_no_sum_unless_it_says_so() -> None:
    assert sums_of(settings()) == {}
    assert steps_of_sums(settings()) == ()
    assert sums_of(settings(task__class_weights="1,2,3")) == {}


def test_a_sum_has_a_number_that_no_round_has() -> None:
    assert sums_of(settings(**BOTH)) == {0: Sum.CLASSES, 8: Sum.ACCURACY}
    assert sums_of(settings(task__class_rates="counted")) == {0: Sum.CLASSES}


def test_a_run_whose_classes_were_counted_has_the_same_sums_as_before() -> None:
    asked = settings(**BOTH)
    found = with_counted(asked, "0.5,1,2", "1,0.5,0.25")
    assert found == {"task.class-weights": "counted 0.5,1,2"}
    later = from_flat(asked.to_flat() | found)
    assert sums_of(later) == sums_of(asked)
    assert (asked.task.uncounted, later.task.uncounted) == (True, False)
    assert (asked.task.weights, later.task.weights) == ((), (0.5, 1.0, 2.0))
    assert later.task.rates == ()


def test_weights_and_rates_may_both_be_counted_by_one_sum() -> None:
    asked = settings(task__class_weights="counted", task__class_rates="counted")
    assert sums_of(asked) == {0: Sum.CLASSES}
    later = from_flat(asked.to_flat() | with_counted(asked, "0.5,1,2", "1,0.5,0.25"))
    assert (later.task.weights, later.task.rates) == ((0.5, 1.0, 2.0), (1.0, 0.5, 0.25))


def test_sizes_noise_and_steps_are_those_of_the_settings() -> None:
    asked = settings(privacy__sum_noise=5.0, **BOTH)
    assert [numbers_in_sum(kind, asked) for kind in Sum] == [3, 2, 2]
    assert noise_of(asked) == 5.0
    two = GaussianSteps(noise_multiplier=5.0, sampling_rate=1.0, steps=2)
    assert steps_of_sums(asked) == (two,)
    assert is_sum(two, asked)
    assert not is_sum(two, settings(privacy__sum_noise=5.0))
    assert not is_sum(GaussianSteps(noise_multiplier=5.0, sampling_rate=0.5, steps=2), asked)
    assert noise_of(settings(privacy__trust="off", **BOTH)) == 0.0


def test_the_largest_loss_that_counts_is_that_of_a_guess_among_all_words() -> None:
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=1))
    assert largest_loss(model) == 0.0
    model.config.vocab_size = 1000
    assert largest_loss(model) == pytest.approx(6.9077, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task__kind": "regression", "task__labels": "", "round__holder_metric": "accuracy"},
         ("'accuracy'", "'regression'", "public text")),
        ({"round__holder_metric": "perplexity"}, ("'perplexity'", "'accuracy'")),
        ({"task__kind": "seq2seq", "task__labels": "", "round__holder_metric": "accuracy"},
         ("'accuracy'", "'perplexity'")),
        ({"round__holder_metric": "f1"}, ("'f1'", "accuracy, perplexity")),
        ({"task__kind": "regression", "task__labels": "", "task__class_weights": "counted"},
         ("'regression'", "no classes")),
        ({"task__class_weights": "counted", "aggregate__robust": "median",
          "round__min_holders": 3}, ("'median'", "as numbers")),
        ({"task__class_weights": "counted 1,2"}, ("3 numbers", "'counted'")),
        ({"task__class_weights": "counted 1,2,0"}, ("3 numbers",)),
        ({"task__class_rates": "counted 1,2,1"}, ("(0, 1]",)),
        ({"task__class_weights": "countedly"}, ("3 numbers",)),
        ({"privacy__sum_noise": 0.0}, ("privacy.sum-noise", "(0, 10000]")),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_remedy(
    changes: dict[str, Any], says: tuple[str, ...]
) -> None:
    with pytest.raises(ConfideError) as refused:
        settings(**changes)
    assert all(word in str(refused.value) for word in says), str(refused.value)


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize(("epsilon", "noise"), [(8.0, 10.0), (3.0, 3.0), (1.0, 10.0)])
def test_steps_and_sums_together_spend_the_target_and_no_more(
    epsilon: float, noise: float, rate: float
) -> None:
    sums = (GaussianSteps(noise_multiplier=noise, sampling_rate=1.0, steps=2),)
    found = calibrate(epsilon=epsilon, delta=DELTA, sampling_rate=rate, steps=20, besides=sums)
    alone = calibrate(epsilon=epsilon, delta=DELTA, sampling_rate=rate, steps=20)
    steps = GaussianSteps(noise_multiplier=found, sampling_rate=rate, steps=20)
    assert 0.995 * epsilon <= epsilon_pld((steps, *sums), DELTA) <= epsilon
    assert found > alone


def test_sums_that_leave_next_to_nothing_to_train_with_are_refused() -> None:
    sums = (GaussianSteps(noise_multiplier=3.0, sampling_rate=1.0, steps=2),)
    with pytest.raises(ConfideError) as refused:
        calibrate(epsilon=1.0, delta=DELTA, sampling_rate=1.0, steps=20, besides=sums)
    assert refused.value.code == "privacy.calibration"
    assert "privacy.sum-noise" in refused.value.hint
