"""The privacy loss of one Poisson-sampled Gaussian step, discretised.

The distribution is dp-accounting's: the pessimistic "connect the dots" of Doroshenko et al. 2022,
which needs the hockey-stick divergence of the step at every point of a grid. dp-accounting finds
that point by point; here it is the same closed form (Balle and Wang 2018, with the loss of the
mixture inverted) for all points together, seven to ten times as fast.
``tests/common/privacy/test_loss.py`` holds the two against each other.

| input | result |
|---|---|
| sampling rate 1 | the plain Gaussian mechanism |
| a loss beyond ten standard deviations of the noise | counts as infinite |
| noise multiplier 0 | not for this: the loss is infinite |
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TAIL = 10.0  # standard deviations; what lies beyond has a probability below 1e-22


def of_one_step(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    """dp-accounting's ``PrivacyLossDistribution`` of adding or removing one unit, on a grid of
    losses that are ``interval`` apart; an upper bound on the exact one."""
    # Imported late: it takes a second, and most uses of a ledger need no epsilon.
    from dp_accounting.pld import (  # type: ignore[import-untyped,unused-ignore]
        pld_pmf,
        privacy_loss_distribution,
    )

    z, q = noise_multiplier, sampling_rate
    low, high = (_loss(x, z, q) for x in (-_TAIL * z, 1 + _TAIL * z))
    ways = [((low, high), removed), ((-high, -low), _added)]
    pmfs = []
    for (first, last), divergence in ways[:1] if q == 1 else ways:  # both are alike at rate 1
        start, end = math.floor(first / interval), math.ceil(last / interval)
        losses = np.arange(start, end + 1, dtype=np.float64) * interval
        exact = divergence(losses, z, q)
        falling = np.minimum.accumulate(np.clip(exact, 0.0, 1.0))
        pmfs.append(
            pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, start, end, falling)
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


def removed(epsilons: NDArray[np.float64], z: float, q: float) -> NDArray[np.float64]:
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
