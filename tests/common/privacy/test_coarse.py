"""The quick bound: above the figure of record everywhere, and close to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from confide.common.privacy import accountant, coarse
from confide.common.privacy.accountant import GaussianSteps

DELTA = 1e-5
SETTINGS = list(itertools.product((0.7, 1.5, 4.0, 30.0), (0.004, 1 / 32, 0.3, 1.0), (1, 20, 300)))
ROUNDING = 1e-7


def taken(noise: float, rate: float, steps: int) -> list[GaussianSteps]:
    return [GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=steps)]


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_it_is_above_the_fine_figure_and_close_to_it(noise: float, rate: float, steps: int) -> None:
    fine = accountant.epsilon_pld(taken(noise, rate, steps), DELTA)
    found = coarse.epsilon(taken(noise, rate, steps), DELTA)
    assert fine - ROUNDING <= found <= 1.005 * fine + 0.005


def test_different_kinds_of_steps_compose() -> None:
    mixed = taken(1.5, 1.0, 3) + taken(1.0, 0.1, 50)
    fine = accountant.epsilon_pld(mixed, DELTA)
    assert fine - ROUNDING <= coarse.epsilon(mixed, DELTA) <= fine + 0.005


def test_delta_and_epsilon_are_inverse() -> None:
    steps = taken(1.025, 1 / 32, 320)
    found = coarse.epsilon(steps, DELTA)
    at, below = coarse.deltas(steps, np.array([found, found - 0.01]))
    assert at <= DELTA * (1 + 1e-6) < below


def test_the_ends_of_the_range() -> None:
    assert coarse.epsilon([], DELTA) == 0.0
    assert coarse.epsilon(taken(0.0, 1.0, 1), DELTA) == math.inf
    loud = taken(0.1, 1.0, 1)
    assert coarse.epsilon(loud, DELTA) == accountant.epsilon_rdp(loud, DELTA)
    at = np.array([0.0, 1.0])
    assert (coarse.deltas([], at) == 0).all()
    assert (coarse.deltas(loud, at) == 1).all()
