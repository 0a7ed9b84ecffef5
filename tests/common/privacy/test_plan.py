"""One plan: its sampler, its noise and its event say the same."""

import math
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from confide.common.errors import ConfideError
from confide.common.privacy import accountant
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Trust, Unit

PLAN = Plan(
    clip_norm=0.5,
    noise_multiplier=2.0,
    sampling_rate=0.1,
    steps_per_round=3,
    max_rounds=4,
    delta=1e-5,
)
OFF = replace(PLAN, trust=Trust.OFF, noise_multiplier=0.0)
STANDARD_DEVIATIONS = 4


def test_a_calibrated_plan_spends_its_epsilon_over_all_its_rounds() -> None:
    plan = Plan.calibrate(
        epsilon=8.0, delta=1e-5, sampling_rate=1.0, steps_per_round=2, max_rounds=10, clip_norm=1
    )
    spent = PLDAccountant().compose(plan.event(plan.max_rounds)).get_epsilon(plan.delta)
    assert 0.999 * 8.0 <= spent <= 8.0
    assert plan.trust is Trust.LOCAL
    assert plan.unit is Unit.RECORD


def test_event_and_steps_are_the_same_mechanism() -> None:
    by_event = PLDAccountant().compose(PLAN.event(4)).get_epsilon(PLAN.delta)
    assert accountant.epsilon_pld([PLAN.steps(4)], PLAN.delta) == pytest.approx(by_event, abs=1e-6)
    assert PLAN.steps(4).steps == 12


def test_full_batches_are_not_called_sampled() -> None:
    event = replace(PLAN, sampling_rate=1.0).event()
    assert event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 3)


def test_noise_on_the_sum_is_multiplier_times_clip() -> None:
    assert PLAN.noise_std == 1.0


def test_a_plan_without_noise_is_never_private() -> None:
    off = Plan.calibrate(
        epsilon=8.0,
        delta=1e-5,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        clip_norm=1.0,
        trust=Trust.OFF,
    )
    assert isinstance(off.event(), dp_accounting.NonPrivateDpEvent)
    assert accountant.epsilon_pld([off.steps()], 1e-5) == math.inf


def test_each_unit_is_drawn_as_often_as_the_rate_says() -> None:
    units, draws, generator = 50, 4000, SecureGenerator.insecure_seeded(1)
    q = PLAN.sampling_rate
    drawn = np.zeros((draws, units))
    for row in drawn:
        row[PLAN.draw(units, generator)] = 1
    largest = STANDARD_DEVIATIONS * math.sqrt(q * (1 - q) / draws)
    assert np.abs(drawn.mean(axis=0) - q).max() <= largest
    together = np.corrcoef(drawn, rowvar=False)[np.triu_indices(units, k=1)]
    assert np.abs(together).mean() <= 1 / math.sqrt(draws)  # of independent coins: 0.8 of that


def test_the_size_of_a_batch_varies_like_a_binomial() -> None:
    units, draws, generator = 200, 4000, SecureGenerator.insecure_seeded(2)
    q = PLAN.sampling_rate
    variance = np.var([PLAN.draw(units, generator).size for _ in range(draws)])
    expected = units * q * (1 - q)
    assert abs(variance - expected) <= STANDARD_DEVIATIONS * expected * math.sqrt(2 / draws)


def test_a_batch_is_ascending_and_without_repeats() -> None:
    batch = PLAN.draw(1000, SecureGenerator())
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()


def test_at_rate_1_everybody_is_drawn() -> None:
    everybody = replace(PLAN, sampling_rate=1.0).draw(100, SecureGenerator())
    assert everybody.tolist() == list(range(100))


def test_a_batch_can_be_empty_and_its_step_still_counts() -> None:
    generator = SecureGenerator.insecure_seeded(3)
    sizes = {PLAN.draw(5, generator).size for _ in range(200)}
    assert 0 in sizes
    assert PLAN.draw(0, generator).size == 0
    assert PLAN.steps().steps == PLAN.steps_per_round


@pytest.mark.parametrize("plan", [PLAN, OFF, replace(PLAN, unit=Unit.PERSON)])
def test_a_plan_survives_json(plan: Plan) -> None:
    data = plan.to_json()
    assert all(type(value) in (str, int, float) for value in data.values())
    assert Plan.from_json(data) == plan


def test_whole_numbers_and_floats_make_the_same_plan() -> None:
    assert replace(PLAN, clip_norm=1).to_json() == replace(PLAN, clip_norm=1.0).to_json()
    assert type(replace(PLAN, clip_norm=1).clip_norm) is float


@pytest.mark.parametrize(
    "bad",
    [
        {"unit": "holder"},
        {"relation": "replace-one"},
        {"trust": "central"},
        {"trust": "off"},
        {"trust": ["local"]},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": "2"},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"steps_per_round": 0},
        {"steps_per_round": 1.0},
        {"max_rounds": True},
        {"delta": 0.0},
        {"delta": 1.0},
        {"path": "/etc"},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfideError) as caught:
        Plan.from_json({**PLAN.to_json(), **bad})
    assert caught.value.code == "privacy.plan"
    assert next(iter(bad)) in caught.value.message or "path" in bad or bad == {"trust": "off"}


def test_a_delta_at_or_above_one_over_n_is_refused_with_a_better_one() -> None:
    plan = replace(PLAN, delta=0.01)
    plan.check_units(99)
    with pytest.raises(ConfideError) as caught:
        plan.check_units(100)
    assert caught.value.code == "privacy.delta"
    assert "0.001" in caught.value.hint


def test_a_person_is_one_unit_and_costs_what_a_record_would() -> None:
    persons = replace(PLAN, unit=Unit.PERSON)
    assert persons.steps(4) == PLAN.steps(4)
    assert persons.noise_std == PLAN.noise_std
    assert persons.to_json() != PLAN.to_json()
    with pytest.raises(ConfideError) as caught:
        replace(persons, delta=0.01).check_units(100)
    assert "more persons" in caught.value.hint


def test_a_plan_for_nobody_is_refused() -> None:
    with pytest.raises(ConfideError) as caught:
        PLAN.check_units(0)
    assert caught.value.code == "privacy.units"
