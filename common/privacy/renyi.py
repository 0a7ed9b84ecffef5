"""Renyi differential privacy of Poisson-sampled Gaussian steps (Mironov 2017; Mironov et al. 2019).

The divergence of order alpha of neighbouring texts, both ways round: the larger of the two is that
of the mixture from the plain Gaussian (Mironov et al. 2019, section 3.1). Orders are fixed, so that
an order that a ledger was begun with can always be read again.

| input | divergence |
|---|---|
| no steps | 0 |
| a step without noise | inf |
| sampling rate 1 | alpha / (2 z^2) |
| noise multiplier below 0.2 | as at sampling rate 1, which is above it |
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .steps import Steps, has_noise

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512)
_LEAST_NOISE = 0.2  # below it sampling is not credited


def divergences(merged: Steps) -> NDArray[np.float64]:
    """Renyi divergence of all steps together at every one of ``ORDERS``: they add up, also where
    each step is chosen by what the earlier ones showed (Feldman and Zrnic 2021)."""
    if not has_noise(merged):
        return np.full(len(ORDERS), math.inf)
    parts = (s.steps * of_one(s.noise_multiplier, s.sampling_rate) for s in merged)
    return sum(parts, np.zeros(len(ORDERS)))


def conversion(delta: float) -> NDArray[np.float64]:
    """What epsilon at ``delta`` is above the divergence, at every order; it may be negative.

    Canonne et al. 2020, proposition 12 (also Balle et al. 2020, theorem 21)."""
    orders = np.asarray(ORDERS)
    found: NDArray[np.float64] = np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return found


@lru_cache(maxsize=4096)
def epsilon(merged: Steps, delta: float) -> float:
    """The least epsilon over all orders: for steps that were fixed beforehand."""
    if not merged:
        return 0.0
    total = divergences(merged)
    epsilons = total + conversion(delta)
    # Total variation is at most sqrt(1 - exp(-KL)), and KL is below every order.
    epsilons[delta**2 + np.expm1(-total) > 0] = 0.0
    return max(0.0, float(epsilons.min()))


@lru_cache(maxsize=256)
def of_one(noise_multiplier: float, sampling_rate: float) -> NDArray[np.float64]:
    """Renyi divergence of one step at every order: alpha / (2 z^2) at rate 1, otherwise the
    integral of Mironov et al. 2019, section 3.1, by the trapezoid rule, which converges
    exponentially here. (The series that dp-accounting sums at fractional orders is up to 1e-4
    too high.) With next to no noise the sampling is not credited, which is an upper bound."""
    z, q = noise_multiplier, sampling_rate
    plain = np.asarray(ORDERS) / (2 * z**2)
    if q == 1 or z < _LEAST_NOISE:
        return plain
    grid = np.arange(-12 * z, max(ORDERS) + 12 * z, z / 16)
    log_density = -(grid**2) / (2 * z**2) - math.log(16 * math.sqrt(2 * math.pi))
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * grid - 1) / (2 * z**2))
    values = []
    for order in ORDERS:
        end = int((order + 24 * z) * 16 / z)  # beyond it the integrand is below 1e-31 of its peak
        exponent = log_density[:end] + order * log_ratio[:end]
        peak = exponent.max()
        values.append((peak + math.log(np.exp(exponent - peak).sum())) / (order - 1))
    return np.minimum(np.maximum(values, 0.0), plain)
