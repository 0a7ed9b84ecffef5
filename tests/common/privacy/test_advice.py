"""Noise per unit of signal: the formula by simulation, and what it says of batches and steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.advice import advise, noise_to_signal, same_computing, same_steps

DELTA, UNITS = 1e-6, 4000


def test_the_figure_is_that_of_sums_which_were_drawn() -> None:
    """2,000 runs of 25 steps: units whose gradients are all the unit vector, so that the signal is
    the longest there can be; the second coordinate holds nothing but noise."""
    units, rate, noise, steps, runs = 400, 0.25, 3.0, 25, 2000
    generator = np.random.default_rng(0)
    drawn = generator.binomial(units, rate, size=(runs, steps)).sum(axis=1)
    noises = noise * generator.standard_normal((runs, steps, 2)).sum(axis=1)
    signal = (drawn + noises[:, 0]).mean()
    found = noises[:, 1].std() / signal
    expected = noise_to_signal(noise, sampling_rate=rate, units=units, steps=steps)
    assert found == pytest.approx(expected, rel=0.06)  # four standard errors


def test_with_every_unit_in_each_step_the_number_of_steps_does_not_matter() -> None:
    pairs = [(UNITS, steps) for steps in (1, 10, 100, 1000)]
    figures = [c.noise_to_signal for c in advise(pairs, epsilon=4.0, delta=DELTA, units=UNITS)]
    assert max(figures) <= 1.002 * min(figures)


@pytest.mark.parametrize(("epsilon", "steps"), [(1.0, 10), (8.0, 200)])
def test_a_smaller_batch_never_gives_less_noise(epsilon: float, steps: int) -> None:
    for pairs in (same_steps(UNITS, steps), same_computing(UNITS, UNITS, steps)):
        choices = advise(pairs, epsilon=epsilon, delta=DELTA, units=UNITS)
        figures = [choice.noise_to_signal for choice in choices]
        assert [choice.best for choice in choices] == [True, *[False] * (len(choices) - 1)]
        assert all(b >= a * 0.995 for a, b in pairwise(figures))
        assert figures[-1] > 1.02 * figures[0]


def test_the_noise_of_every_row_keeps_the_epsilon_and_wastes_little_of_it() -> None:
    for choice in advise(same_steps(UNITS, 50), epsilon=3.0, delta=DELTA, units=UNITS):
        taken = GaussianSteps(
            noise_multiplier=choice.noise_multiplier,
            sampling_rate=min(1.0, choice.batch / UNITS),
            steps=choice.steps,
        )
        assert 2.9 <= epsilon_pld([taken], DELTA) <= 3.0


def test_rows_of_the_same_computing_take_as_many_gradients() -> None:
    pairs = same_computing(UNITS, 300, 100)
    assert (300, 100) in pairs
    assert pairs[0] == (UNITS, 8)
    for batch, steps in pairs:
        assert batch * steps == pytest.approx(30_000, rel=0.1)


def test_less_computing_than_one_full_step_is_one_step_on_what_there_is() -> None:
    assert same_computing(UNITS, 10, 20)[0] == (200, 1)
    assert same_computing(1, 64, 3) == [(1, 3)]
    assert same_steps(1, 3) == [(1, 3)]
