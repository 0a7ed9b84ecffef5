"""One step's privacy loss is dp-accounting's, which finds it point by point."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from confide.common.privacy.accountant import of_one_step

EPSILONS = np.linspace(0.0, 1.0, 40)
FEW = 1e-12  # of delta: rounding in float64
DRAWN = random.Random(1)
STEPS = [
    (0.2, 1.0),
    (0.2, 0.001),
    (0.45, 0.3),
    (1.0, 0.9999),
    (1.11, 0.3),
    (3.0, 1.0),
    (30.0, 0.7),
    *(
        (round(10 ** DRAWN.uniform(-0.4, 1.2), 3), round(10 ** DRAWN.uniform(-3, 0), 5))
        for _ in range(13)
    ),
]


def theirs(noise: float, rate: float, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        sampling_prob=rate,
    )


def deltas(found: Any, epsilons: np.ndarray) -> np.ndarray:
    return np.array([found.get_delta_for_epsilon(float(epsilon)) for epsilon in epsilons])


@pytest.mark.parametrize(("noise", "rate"), STEPS)
def test_a_step_is_dp_accountings_everywhere(noise: float, rate: float) -> None:
    most = 1.2 * math.log1p(rate * math.expm1(min(600.0, 10 / noise + 1 / noise**2)))
    epsilons = np.linspace(0, most, 60)
    ours, known = (deltas(f(noise, rate, 1e-3), epsilons) for f in (of_one_step, theirs))
    assert np.abs(ours - known).max() <= FEW


@pytest.mark.parametrize(("noise", "rate"), [step for step in STEPS if step[1] < 1])
def test_so_is_each_way_round(noise: float, rate: float) -> None:
    """At an epsilon of 0 or more the removed unit decides, so that the other is looked at alone."""
    ours, known = (f(noise, rate, 1e-3)._pmf_add for f in (of_one_step, theirs))
    assert np.abs(deltas(ours, EPSILONS) - deltas(known, EPSILONS)).max() <= FEW


@pytest.mark.parametrize(("noise", "rate"), STEPS)
@pytest.mark.parametrize("steps", [3, 200])
def test_so_are_many_composed(noise: float, rate: float, steps: int) -> None:
    ours, known = (f(noise, rate, 1e-3).self_compose(steps) for f in (of_one_step, theirs))
    for delta in (1e-3, 1e-5, 1e-7):
        found, expected = (pld.get_epsilon_for_delta(delta) for pld in (ours, known))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("noise", "rate"), STEPS)
def test_it_is_an_upper_bound_between_the_points_of_the_grid_too(noise: float, rate: float) -> None:
    """Of both directions, by the mass beyond the place where the loss passes epsilon."""
    found = of_one_step(noise, rate, 1e-2)
    for epsilon in np.random.default_rng(1).uniform(0.0, 3.0, 40):
        exact = max(_removed(epsilon, noise, rate), _added(epsilon, noise, rate))
        assert found.get_delta_for_epsilon(float(epsilon)) >= exact - FEW


def _removed(epsilon: float, z: float, q: float) -> float:
    weight = math.exp(epsilon) - (1 - q)
    x = z**2 * math.log(weight / q) + 0.5
    return float(
        q * norm.sf(x, 1, z) + (1 - q) * norm.sf(x, 0, z) - math.exp(epsilon) * norm.sf(x, 0, z)
    )


def _added(epsilon: float, z: float, q: float) -> float:
    weight = math.exp(-epsilon) - (1 - q)
    if weight <= 0:
        return 0.0
    x = z**2 * math.log(weight / q) + 0.5
    mixture = q * norm.cdf(x, 1, z) + (1 - q) * norm.cdf(x, 0, z)
    return float(norm.cdf(x, 0, z) - math.exp(epsilon) * mixture)
