"""Filters and odometer against an adversary that stops when it pleases, and a second accountant."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from confide.common.privacy import filters, renyi
from confide.common.privacy.accountant import GaussianSteps, calibrate, epsilon_pld
from confide.common.privacy.filters import (
    LEVELS,
    LIMIT_SHARE,
    Terms,
    bound,
    enforced,
    holds,
    settle,
)
from confide.common.privacy.steps import Steps

DELTA = 1e-5
ROUNDS = 20
LOSSES = np.linspace(-40, 60, 8001)  # of the adversary, in nats
CLOSE = 1.02  # what the grid of losses may cost
MANY_TIMES = 4  # the delta of the figure of what was spent, against a claim of delta


def steps(noise: float, rate: float = 1.0, count: int = 1) -> Steps:
    return (GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=count),)


def exact_delta(mu: float, epsilon: float) -> float:
    """Of a mechanism that is mu-GDP (Dong et al. 2019, corollary 1)."""
    low = math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return float(ndtr(-epsilon / mu + mu / 2) - low)


def worst_delta(
    noise: float, claim: Callable[[int], float], sizes: tuple[int, ...] = (1,)
) -> float:
    """What the best adversary makes of a claim: the most of P(S) - sum of exp(claim) P'(S), over
    all ways to stop, and to take one of ``sizes`` steps at a time, by what was seen so far.

    By going back from the last step. At loss l, whoever stops gains 1 - exp(claim - l).
    """
    value: list[np.ndarray] = [np.zeros(0)] * (ROUNDS + 1)
    for done in range(ROUNDS, -1, -1):
        best = np.maximum(0.0, -np.expm1(np.minimum(claim(done) - LOSSES, 0.0)))
        for size in sizes:
            if done + size <= ROUNDS:
                mean, spread = size / (2 * noise**2), math.sqrt(size) / noise
                points, weights = np.polynomial.hermite_e.hermegauss(61)
                moved = LOSSES[:, None] + mean + spread * points
                ahead = np.interp(moved, LOSSES, value[done + size])
                best = np.maximum(best, ahead @ weights / math.sqrt(2 * math.pi))
        value[done] = best
    return float(np.interp(0.0, LOSSES, value[0]))


@pytest.fixture(scope="module")
def noise() -> float:
    return calibrate(epsilon=8.0, delta=DELTA, sampling_rate=1.0, steps=ROUNDS)


def test_a_figure_of_what_was_spent_is_false_where_the_end_depends_on_what_was_seen(
    noise: float,
) -> None:
    def spent(done: int) -> float:
        return epsilon_pld(steps(noise, count=done), DELTA)

    assert worst_delta(noise, spent) > MANY_TIMES * DELTA


def test_the_figure_of_the_whole_plan_holds_whenever_somebody_stops(noise: float) -> None:
    assert worst_delta(noise, lambda _: 8.0) <= CLOSE * DELTA


@pytest.mark.parametrize("limit", [None, 5.0, 8.0])
def test_the_odometer_holds_whenever_somebody_looks_and_whatever_comes_next(
    noise: float, limit: float | None
) -> None:
    terms = settle(steps(noise, count=4), DELTA, limit)
    told = [bound(terms, steps(noise, count=done), DELTA) for done in range(ROUNDS + 1)]
    assert worst_delta(noise, lambda done: told[done], sizes=(1, 4)) <= DELTA
    assert told == sorted(told)


def test_at_rate_one_the_limit_is_that_of_one_gaussian(noise: float) -> None:
    terms = settle(steps(noise, count=ROUNDS), DELTA, 10.0)
    for count in range(1, 60):
        mu = math.sqrt(count) / noise
        fits = exact_delta(mu, 10.0) <= LIMIT_SHARE * (1 - filters.SAMPLED_SHARE) * DELTA
        assert enforced(terms, steps(noise, count=count), 10.0, DELTA) == fits


@pytest.mark.parametrize("epsilon", [0.5, 4.0, 10.0])
def test_the_gaussian_filter_ends_where_its_part_of_delta_does(epsilon: float) -> None:
    terms, part = settle(steps(5.0), DELTA, epsilon), (1 - filters.SAMPLED_SHARE) * DELTA
    mu = brentq(lambda mu: exact_delta(mu, epsilon) - part, 1e-3, 20)
    assert holds(terms, steps(1 / mu * (1 + 1e-6)), epsilon, DELTA)
    assert not holds(terms, steps(1 / mu * (1 - 1e-6)), epsilon, DELTA)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.05), (2.0, 0.3)])
def test_a_sampled_run_is_held_to_one_renyi_order_as_dp_accounting_computes_it(
    noise: float, rate: float
) -> None:
    terms = settle(steps(noise, rate, 100), DELTA, 6.0)
    assert not terms.plain
    event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    for count in (1, 50, 100, 300, 1000):
        # At whole orders dp-accounting's series is exact; at others a little too high.
        order = [terms.order]
        rho = float(RdpAccountant(order).compose(event, count)._rdp[0])
        gap = math.log1p(-1 / terms.order)
        gap -= math.log(LIMIT_SHARE * DELTA * terms.order) / (terms.order - 1)
        if abs(rho + gap - 6.0) > 1e-3 * rho:
            assert enforced(terms, steps(noise, rate, count), 6.0, DELTA) == (rho + gap <= 6.0)


def test_where_nothing_is_sampled_the_gaussian_filter_is_the_wider_one() -> None:
    """So that which of the two let a step pass adds nothing to delta (see the module)."""
    for limit in (0.5, 2.0, 8.0, 20.0):
        terms = settle(steps(5.0), DELTA, limit)
        only_renyi = Terms(order=terms.order, plain=False, limit=limit)
        for mu in np.geomspace(0.05, 4, 60):
            one = steps(1 / float(mu))
            if holds(only_renyi, one, limit, filters.SAMPLED_SHARE * DELTA):
                assert exact_delta(float(mu), limit) <= (1 - filters.SAMPLED_SHARE) * DELTA


def test_after_a_first_run_of_all_units_a_sampled_one_has_its_own_part_of_delta() -> None:
    terms = settle(steps(20.0), DELTA, 8.0)
    mixed = (*steps(20.0), *steps(1.0, 0.01, 50))
    assert enforced(terms, mixed, 8.0, DELTA)
    place = renyi.ORDERS.index(terms.order)
    share = LIMIT_SHARE * filters.SAMPLED_SHARE * DELTA
    least = renyi.divergences(mixed)[place] + renyi.conversion(share)[place]
    assert enforced(terms, mixed, least * (1 + 1e-9), DELTA)
    assert not enforced(terms, mixed, least * (1 - 1e-9), DELTA)


def test_the_parts_of_delta_add_up_to_delta() -> None:
    assert LIMIT_SHARE + len(LEVELS) * filters._LEVEL_SHARE == pytest.approx(1.0)
    assert sorted(LEVELS) == list(LEVELS)


def test_two_runs_planned_for_eight_are_told_as_more_than_their_sum(noise: float) -> None:
    both = steps(noise, count=2 * ROUNDS)
    assert epsilon_pld(both, DELTA) > 12.24
    assert bound(settle(steps(noise, count=ROUNDS), DELTA, None), both, DELTA) == 15.0
    assert bound(settle(steps(noise, count=ROUNDS), DELTA, 13.0), both, DELTA) == 13.0


def test_the_ends() -> None:
    terms = settle(steps(1.0), DELTA, None)
    assert bound(terms, (), DELTA) == 0.0
    assert bound(terms, steps(0.0), DELTA) == math.inf
    assert bound(terms, steps(0.05), DELTA) == math.inf
    assert settle(steps(0.0), DELTA, 8.0).order in renyi.ORDERS
    assert settle(steps(1.0), DELTA, 1e-9).order in renyi.ORDERS
    assert not enforced(terms, steps(1.0), 0.0, DELTA)


def test_the_order_is_settled_by_the_first_plan_and_the_limit_alone() -> None:
    first = steps(1.0, 0.05, 100)
    assert settle(first, DELTA, 8.0) == settle(
        (*steps(1.0, 0.05, 60), *steps(1.0, 0.05, 40)), DELTA, 8.0
    )
    terms = settle(first, DELTA, 8.0)
    place = renyi.ORDERS.index(terms.order)
    room = (8.0 - renyi.conversion(LIMIT_SHARE * DELTA)) / renyi.divergences(first)
    assert room.argmax() == place
