"""An outsider's figure: exact sums by hand, the classical formula's failure, and the ends."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.outsider import outsider_epsilon, worst_epsilon

DELTA = 1e-5
NORMAL = NormalDist()


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta of one Gaussian with sensitivity / std = mu (Balle and Wang 2018)."""
    if mu == 0:
        return 0.0
    return NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * NORMAL.cdf(
        -mu / 2 - epsilon / mu
    )


def full(noise: float, steps: int = 1) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=noise, sampling_rate=1.0, steps=steps)


@pytest.mark.parametrize(("rounds", "rate"), [(1, 0.1), (5, 0.3), (20, 0.5), (200, 0.05)])
def test_delta_is_the_mean_over_how_often_the_holder_is_drawn(rounds: int, rate: float) -> None:
    noise = 2.0
    epsilon = outsider_epsilon(full(noise), rounds=rounds, rate=rate, delta=DELTA)

    def exact(at: float) -> float:
        return math.fsum(
            math.comb(rounds, k)
            * rate**k
            * (1 - rate) ** (rounds - k)
            * gaussian_delta(math.sqrt(k) / noise, at)
            for k in range(rounds + 1)
        )

    assert exact(epsilon) <= DELTA  # an upper bound
    assert exact(epsilon * 0.95) > DELTA  # and a close one
    assert epsilon < epsilon_pld([full(noise, rounds)], DELTA)


def test_the_formula_for_records_says_too_little_of_drawn_holders() -> None:
    """A holder whose part in a round is plain to see: without it the adapter lies far away."""
    noise, rate = 1.0, 0.1
    claimed = math.log1p(rate * math.expm1(epsilon_pld([full(noise)], DELTA / rate)))
    grid = np.linspace(-20, 120, 2_000_001)

    def density(centre: float) -> np.ndarray:
        return np.exp(-((grid - centre) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    absent = (1 - rate) * density(100.0)
    with_it, without_it = (absent + rate * density(centre) for centre in (1.0, 0.0))

    def delta_at(epsilon: float) -> float:
        gap = np.maximum(with_it - math.exp(epsilon) * without_it, 0.0)
        return float(gap.sum() * (grid[1] - grid[0]))

    assert delta_at(claimed) > 100 * DELTA
    ours = outsider_epsilon(full(noise), rounds=1, rate=rate, delta=DELTA)
    assert delta_at(ours) <= DELTA
    assert ours > 2 * claimed


def test_without_a_draw_nothing_is_amplified() -> None:
    whole = epsilon_pld([full(3.0, 20)], DELTA)
    assert outsider_epsilon(full(3.0), rounds=20, rate=1.0, delta=DELTA) == whole


def test_the_smaller_the_rate_the_smaller_the_figure_and_never_above_the_coordinators() -> None:
    one = GaussianSteps(noise_multiplier=1.2, sampling_rate=0.1, steps=4)
    whole = epsilon_pld([GaussianSteps(noise_multiplier=1.2, sampling_rate=0.1, steps=80)], DELTA)
    found = [
        outsider_epsilon(one, rounds=20, rate=rate, delta=DELTA)
        for rate in (0.01, 0.1, 0.3, 0.9, 1.0)
    ]
    assert found == sorted(found)
    assert found[-1] == whole
    assert found[0] < 0.6 * whole


def test_ten_thousand_rounds_are_rounded_up_and_not_forgotten() -> None:
    rounds, rate, noise = 10_000, 0.1, 100.0
    epsilon = outsider_epsilon(full(noise), rounds=rounds, rate=rate, delta=DELTA)
    usual = epsilon_pld([full(noise, int(rounds * rate))], DELTA)
    assert usual < epsilon < 1.3 * usual


def test_of_many_kinds_of_holders_the_worst_counts() -> None:
    def kind(number: int) -> GaussianSteps:
        return GaussianSteps(
            noise_multiplier=2.0 + 0.01 * number, sampling_rate=0.2 + 0.01 * number, steps=1
        )

    few = [kind(number) for number in range(3)]
    found = worst_epsilon(few, rounds=10, rate=0.5, delta=DELTA)
    each = [outsider_epsilon(one, rounds=10, rate=0.5, delta=DELTA) for one in few]
    assert found == max(each)
    many = [kind(number) for number in range(12)]
    bound = worst_epsilon(many, rounds=10, rate=0.5, delta=DELTA)
    worst = GaussianSteps(noise_multiplier=2.0, sampling_rate=0.2 + 0.11, steps=1)
    assert bound == pytest.approx(outsider_epsilon(worst, rounds=10, rate=0.5, delta=DELTA))
    assert all(
        outsider_epsilon(one, rounds=10, rate=0.5, delta=DELTA) <= bound for one in many[::4]
    )
    assert worst_epsilon([], rounds=10, rate=0.5, delta=DELTA) == 0.0


def test_the_ends_of_the_range() -> None:
    assert outsider_epsilon(full(1.0), rounds=0, rate=0.5, delta=DELTA) == 0.0
    assert outsider_epsilon(full(0.0), rounds=3, rate=0.5, delta=DELTA) == math.inf


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"rate": 0.0}, "privacy.rate"),
        ({"rate": 1.1}, "privacy.rate"),
        ({"rate": math.nan}, "privacy.rate"),
        ({"rounds": -1}, "privacy.rounds"),
        ({"rounds": 1.5}, "privacy.rounds"),
        ({"delta": 0.0}, "privacy.delta"),
    ],
)
def test_impossible_numbers_are_refused(bad: dict[str, float], code: str) -> None:
    values = {"rounds": 5, "rate": 0.5, "delta": DELTA} | bad
    with pytest.raises(ConfideError) as caught:
        outsider_epsilon(full(1.0), **values)  # type: ignore[arg-type]
    assert caught.value.code == code
