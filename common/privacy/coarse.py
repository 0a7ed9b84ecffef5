"""Upper bounds by PLD in some milliseconds, for lists too long for the figure of record.

The same privacy loss distribution as in ``accountant`` (Doroshenko et al. 2022, pessimistic
"connect the dots", by dp-accounting), on a grid ten times as coarse, and with one step's hockey-
stick divergence in closed form for all grid points together, which is what takes the time there.
It is above the fine figure, rarely by more than half a per cent; never shown as exact.

| input | epsilon |
|---|---|
| no steps | 0 |
| a step without noise | inf |
| little noise, RDP above 200, or above a million steps | the RDP bound |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accountant import GaussianSteps, epsilon_rdp, merge

INTERVAL = 1e-3  # of the discretised privacy loss
_LARGEST = 200.0  # epsilon above which no promise is left
_LEAST_NOISE = 0.2
_MOST_STEPS = 1_000_000
_TAIL = 10.0  # standard deviations that the grid spans; what lies beyond counts as infinite loss
_SOME_DELTA = 1e-5  # at which the size of a distribution is judged


def epsilon(steps: Sequence[GaussianSteps], delta: float) -> float:
    """An upper bound on ``accountant.epsilon_pld(steps, delta)``."""
    merged = merge(steps)
    bound = epsilon_rdp(merged, delta)
    if bound == 0 or bound > _LARGEST or not _fits(merged):
        return bound
    return min(bound, max(0.0, float(_pld(merged).get_epsilon_for_delta(delta))))


def deltas(steps: Sequence[GaussianSteps], epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bounds on delta at each epsilon >= 0, (E,) -> (E,); exact at sampling rate 1."""
    merged = merge(steps)
    if not merged:
        return np.zeros(len(epsilons))
    if not _fits(merged):
        return np.ones(len(epsilons))
    if all(s.sampling_rate == 1 for s in merged):
        # Gaussians add up to one of sensitivity / std = mu (Balle and Wang 2018).
        mu = math.sqrt(sum(s.steps / s.noise_multiplier**2 for s in merged))
        found = _removed(epsilons, 1 / mu, 1.0)
    else:
        pld = _pld(merged)
        found = np.array([pld.get_delta_for_epsilon(float(one)) for one in epsilons])
    return found.clip(0.0, 1.0)


def _fits(merged: tuple[GaussianSteps, ...]) -> bool:
    """Whether the discretised distribution is of a reasonable size."""
    small = any(s.noise_multiplier < _LEAST_NOISE or s.steps > _MOST_STEPS for s in merged)
    return not small and epsilon_rdp(merged, _SOME_DELTA) <= 2 * _LARGEST


@lru_cache(maxsize=64)
def _pld(merged: tuple[GaussianSteps, ...]) -> Any:
    whole = None
    for one in merged:
        part = _pld_of_one(one.noise_multiplier, one.sampling_rate).self_compose(one.steps)
        whole = part if whole is None else whole.compose(part)
    return whole


@lru_cache(maxsize=64)
def _pld_of_one(noise_multiplier: float, sampling_rate: float) -> Any:
    # Imported late: it takes a second.
    from dp_accounting.pld import (  # type: ignore[import-untyped,unused-ignore]
        pld_pmf,
        privacy_loss_distribution,
    )

    z, q = noise_multiplier, sampling_rate
    low, high = (_loss(x, z, q) for x in (-_TAIL * z, 1 + _TAIL * z))
    pmfs = []
    for (first, last), divergence in (((low, high), _removed), ((-high, -low), _added)):
        start, end = math.floor(first / INTERVAL), math.ceil(last / INTERVAL)
        losses = np.arange(start, end + 1, dtype=np.float64) * INTERVAL
        exact = divergence(losses, z, q)
        falling = np.minimum.accumulate(np.clip(exact, 0.0, 1.0))
        pmfs.append(
            pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(INTERVAL, start, end, falling)
        )
    return privacy_loss_distribution.PrivacyLossDistribution(*pmfs)


def _loss(x: float, z: float, q: float) -> float:
    """log of (1 - q) N(0, z^2) + q N(1, z^2) over N(0, z^2) at ``x``; it rises with ``x``."""
    return float(np.logaddexp(np.log1p(-q) if q < 1 else -np.inf, math.log(q) + _ratio(x, z)))


def _ratio(x: float, z: float) -> float:
    return (2 * x - 1) / (2 * z**2)


def _where(weight: NDArray[np.float64], z: float, q: float) -> NDArray[np.float64]:
    """The x at which exp(loss) - (1 - q) is ``weight``; at 0 and below, minus infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, z**2 * np.log(np.maximum(weight, 0.0) / q) + 0.5, -np.inf)


def _removed(epsilons: NDArray[np.float64], z: float, q: float) -> NDArray[np.float64]:
    """Hockey-stick divergence of the mixture from N(0, z^2): the mass where its loss is larger."""
    from scipy.special import ndtr

    weight = np.expm1(epsilons) + q
    x = _where(weight, z, q)
    found: NDArray[np.float64] = q * ndtr((1 - x) / z) - weight * ndtr(-x / z)
    return found


def _added(epsilons: NDArray[np.float64], z: float, q: float) -> NDArray[np.float64]:
    """The other way round: N(0, z^2) from the mixture."""
    from scipy.special import ndtr

    weight = np.expm1(-epsilons) + q
    x = _where(weight, z, q)
    found: NDArray[np.float64] = np.exp(epsilons) * (weight * ndtr(x / z) - q * ndtr((x - 1) / z))
    return np.where(weight > 0, found, 0.0)
