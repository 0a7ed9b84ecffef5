"""A clip norm that follows the lengths of the updates, for the unit holder.

Behind its update, cut to the clip norm C, a holder sends one value more: +B if the update was no
longer than C, -B if it was. The norm of the next round is C exp(-0.2 (share - quantile)): less
where more than the ``quantile`` of updates fit, more where fewer do (Andrew, Thakkar, McMahan and
Ramaswamy 2021, with their rate of 0.2).

What it costs. Both together are one vector no longer than sqrt(C^2 + B^2), which gets the noise of
multiplier z of that length: the Gaussian mechanism that the plan charges, and no other. Neighbours
replace all of it by zero. So nothing is spent on the bit; there is more noise on the update. Where
s is the standard deviation of the noise on the number of updates that fit, B = C / sqrt((2 s / z)^2
- 1), and the update's own multiplier is (z^-2 - (2 s)^-2)^-1/2 (their theorem 1).

s is a twentieth of the fewest contributions, as they advise, and never below 1.6 z, so that the
update's noise is at most 5.4 % more than with a fixed norm.
"""

from __future__ import annotations

import math

_RATE = 0.2
_OF_CONTRIBUTIONS = 1 / 20
_OF_NOISE = 1.6
SMALLEST, LARGEST = 1e-6, 1e6  # of a clip norm


def bit_length(clip: float, noise_multiplier: float, least: int) -> float:
    """B, for the clip norm C in gradient units, the plan's multiplier z and its fewest
    contributions."""
    spread = count_std(noise_multiplier, least)
    return clip / math.sqrt((2 * spread / noise_multiplier) ** 2 - 1)


def count_std(noise_multiplier: float, least: int) -> float:
    """s, in updates."""
    return max(_OF_CONTRIBUTIONS * least, _OF_NOISE * noise_multiplier)


def longest_with_bit(clip: float, noise_multiplier: float, least: int) -> float:
    """sqrt(C^2 + B^2): what the mechanism's noise is a multiple of."""
    return math.hypot(clip, bit_length(clip, noise_multiplier, least))


def share_that_fits(total: float, bit: float, count: int) -> float:
    """The share of ``count`` updates that were no longer than the norm, in [0, 1], from the noisy
    ``total`` of their values of length ``bit``."""
    return min(max(0.5 + total / (2 * bit * count), 0.0), 1.0)


def next_clip(clip: float, share: float, quantile: float) -> float:
    """The clip norm of the round after one in which that share of updates was no longer."""
    moved = clip * math.exp(-_RATE * (share - quantile))
    return min(max(moved, SMALLEST), LARGEST)
