"""Noise in shares: what each holder of a secure sum adds, and what the sum is then worth.

Theorem (docs/secure-sum.md proves it). In one round each of at least ``least`` contributors sends
round((s_i + g_i) / step) modulo 2^32 behind masks; s_i is the sum of its units' terms, each clipped
to L2 norm C, over a Poisson batch of its own secret coins at rate q, and g_i is N(0, share^2) on
each value, share = z C / sqrt(h), h = least - colluding. Whoever sees the sum, and is told
everything by any ``colluding`` contributors, learns of one unit of another contributor no more than
from one step of the Poisson-sampled Gaussian mechanism of noise multiplier z and rate q, up to

    2 d ln((1 + tau) / (1 - tau)),   tau = 10 sum_{k=1}^{h-1} exp(-2 pi^2 (share/step)^2 k/(k+1))

of epsilon a step over d values. The sensitivity is C exactly: rounding comes after the noise, so
that the sum of rounded parts is post-processing of sum(s_i) + N(0, h share^2) (the lattice argument
of Kairouz, Liu and Steinke 2021, theorem 1 and its proof). So a round is charged as one Gaussian
step of multiplier z, by the accountant of every other run.

| condition | where it is held |
|---|---|
| one private step between two sums, for records and persons | ``Plan`` |
| share >= ``COARSEST`` steps, where tau is below 1e-60 | ``step_of`` |
| no sum wraps: each s_i is cut to a public length before its noise | ``step_of``, private step |
| at least ``least`` contributions, or nothing is opened | the openers (``common.masking``) |
| masks, coins and noise are computational | docs/secure-sum.md |

More contributors than ``least`` mean more noise than is claimed. With h = 1 a share is all of the
noise, and the sum protects no better than local noise does.
"""

from __future__ import annotations

import math

from ..errors import ConfideError

COARSEST, FINEST = 8.0, 128.0  # the share of noise, in steps
MOST_MEMBERS = 4096  # of a sum, however many of them contribute
_LARGEST_DRAW = 8.6  # standard deviations; no draw of ``SecureGenerator.normal`` is beyond
_RING = 2.0**31


def tau(share_in_steps: float, honest: int) -> float:
    """The most by which the probability of an outcome of the sum differs, per value and as a
    share, from that of a rounded Gaussian."""
    square = 2 * math.pi**2 * share_in_steps**2
    return 10 * sum(math.exp(-square * k / (k + 1)) for k in range(1, honest))


def besides(share_in_steps: float, honest: int, values: int, steps: int) -> float:
    """What rounding and summing rounded parts add to epsilon over a run: infinite where the theorem
    says nothing, and nothing that float64 can show from four steps a share on."""
    error = tau(share_in_steps, honest)
    if error >= 0.5:
        return math.inf
    return 2 * values * steps * (math.log1p(error) - math.log1p(-error))


def step_of(share: float, longest: float) -> float:
    """The public step of a sum: the finest power of two with which ``MOST_MEMBERS`` vectors do not
    wrap, at most ``FINEST`` steps to a share.

    Args:
        share: standard deviation of one holder's noise on each value.
        longest: what a holder's sum is cut to (L2) before the noise.

    Raises:
        ConfideError: ``sum.range`` where the ring of 32 bits is too small for that.
    """
    largest = longest + _LARGEST_DRAW * share
    step = 2.0 ** max(
        math.ceil(math.log2(share / FINEST)),
        math.ceil(math.log2(MOST_MEMBERS * largest / (_RING - MOST_MEMBERS))),
    )
    if share / step < COARSEST:
        raise ConfideError(
            "sum.range",
            f"A sum of length {longest:g} with a share of noise of {share:g} does not fit 32 bits.",
            "Choose more noise or a smaller train.batch.",
        )
    return step
