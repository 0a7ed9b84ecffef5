"""Which batch and how many steps give the least noise for the same epsilon.

Noise per unit of signal, in one figure. A step adds up the clipped gradients g_i, ``|g_i| <= C``,
of a Poisson batch of n units drawn at rate q, and noise N(0, z^2 C^2) on each coordinate (Abadi et
al. 2016). With g their mean over all units, the sum is q n g on average, and T steps along a steady
g add up to T q n g with noise of std sqrt(T) z C. Divided by the batch, or by anything else that is
public, the ratio stays; per unit of the longest signal, ``|g| = C``, it is

    noise_to_signal = z / (q n sqrt(T))        on one coordinate; times sqrt(d) over d of them

With every unit in each step (q = 1) T Gaussians are one, z = sqrt(T) / mu (Dong et al. 2019), and
the figure is 1 / (n mu) for any T: the steps are free, only computing pays for them. A smaller
batch gives no less noise for the same epsilon, since what sampling amplifies falls short of 1/q
wherever z is not large; what it saves is computing (McMahan et al. 2018, De et al. 2022 and
Ponomareva et al. 2023 found the same by training). Not in the figure: that small batches differ by
chance, and that a gradient turns as the model moves, for which a handful of steps is too few.

Noise is calibrated on the coarse grid (``COARSE``), which errs upwards by half a per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from .accountant import COARSE, GaussianSteps, calibrate, epsilon_pld

_HALVINGS = 5  # rows of a table below the largest batch
_CLOSE = 0.005  # of log noise at which the search ends
_MOST_STEPS = 100_000  # more make the search slow, and nobody would take them


@dataclass(frozen=True, kw_only=True)
class Choice:
    """``steps`` steps on ``batch`` of the units each, on average, at one epsilon."""

    batch: int
    steps: int
    noise_multiplier: float
    noise_to_signal: float
    best: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def noise_to_signal(
    noise_multiplier: float, *, sampling_rate: float, units: int, steps: int
) -> float:
    """Noise on one coordinate after all steps, per unit of the longest signal that they can add."""
    return noise_multiplier / (sampling_rate * units * math.sqrt(steps))


def same_steps(units: int, steps: int) -> list[tuple[int, int]]:
    """(batch, steps) from every unit downwards: what smaller batches cost in the same rounds."""
    return [(batch, steps) for batch in _halves(units)]


def same_computing(units: int, batch: int, steps: int) -> list[tuple[int, int]]:
    """(batch, steps) with as many gradients as ``steps`` steps on ``batch`` units, ``batch`` itself
    among them, largest batch first."""
    gradients = min(batch, units) * steps
    sizes = set(_halves(min(units, gradients))) | {min(batch, units)}
    pairs = [(size, max(1, round(gradients / size))) for size in sorted(sizes, reverse=True)]
    return [pair for pair in pairs if pair[1] <= _MOST_STEPS or pair[0] == batch]


def advise(
    pairs: Iterable[tuple[int, int]], *, epsilon: float, delta: float, units: int
) -> tuple[Choice, ...]:
    """Each pair with the noise that ``epsilon`` at ``delta`` asks for; the least is the best.

    Raises:
        ConfideError: what ``calibrate`` refuses.
    """
    rows = []
    for batch, steps in pairs:
        rate = min(1.0, batch / units)
        noise = _multiplier(epsilon, delta, rate, steps)
        figure = noise_to_signal(noise, sampling_rate=rate, units=units, steps=steps)
        rows.append((batch, steps, noise, figure))
    least = min((figure for *_, figure in rows), default=0.0)
    return tuple(
        Choice(
            batch=batch,
            steps=steps,
            noise_multiplier=noise,
            noise_to_signal=figure,
            best=figure == least,
        )
        for batch, steps, noise, figure in rows
    )


def _halves(largest: int) -> list[int]:
    return sorted({max(1, round(largest / 2**power)) for power in range(_HALVINGS + 1)})[::-1]


@lru_cache(maxsize=256)
def _multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """As ``calibrate``, in a fraction of its time where units are sampled."""
    if rate == 1:
        return calibrate(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)

    def enough(log_noise: float) -> bool:
        one = GaussianSteps(noise_multiplier=math.exp(log_noise), sampling_rate=rate, steps=steps)
        return epsilon_pld([one], delta, interval=COARSE) <= epsilon

    # All units in every step need no less noise, but for the error of the coarse grid.
    whole = calibrate(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=steps)
    high = math.log(whole) + 4 * _CLOSE
    low = high - 1.0
    while enough(low):
        low, high = low - 1.0, low
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.exp(high)
