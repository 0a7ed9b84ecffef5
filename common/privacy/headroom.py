"""Whether one more round fits into a limit, without a new privacy loss distribution every round.

More steps never tell less: once a longer history is known to fit, each part of it fits. So the
first time that the quick bounds do not decide, the rest of the run is looked at as a whole: does it
fit, every round of it is known to; does it not, the last round that does is sought once, by
bisection. What was learnt is kept in memory for as long as the process lives; nothing of it is
needed for a right answer.

Exact where it matters. Refused is only what ``epsilon_pld`` of everything puts above the limit,
computed for that very history. Allowed without computing is only a part of a history that stays
``INTERVAL`` below the limit: so much could the figure of a part, which is discretised anew, be off.

| case | answer |
|---|---|
| a step without noise | as ``within``: fits no finite limit |
| the rest of the run fits by the RDP bound | yes, at once |
| another run charges in between | that history is computed, as if nothing were known |
| limit 0, or below ``INTERVAL`` | always computed |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .accountant import INTERVAL, GaussianSteps, merge, within

_Steps = tuple[GaussianSteps, ...]


@dataclass
class _Known:
    """Of one mechanism on top of one unchanged rest: up to ``fits`` steps fit, by a margin; from
    ``edge`` on each number of steps is to be computed. ``asked`` is the first that was."""

    fits: int = 0
    edge: float = math.inf
    asked: int = 0


@lru_cache(maxsize=256)
def _known(rest: _Steps, mechanism: tuple[float, float], delta: float, limit: float) -> _Known:
    """The one record of this key; it is meant to be changed."""
    return _Known()


def fits(
    history: Sequence[GaussianSteps],
    one_round: GaussianSteps,
    delta: float,
    limit: float,
    *,
    rounds_after: int = 0,
) -> bool:
    """Whether ``within((*history, one_round), delta, limit)``.

    Args:
        rounds_after: how many more rounds of the same are to be expected. They do not change the
            answer; 0 computes nothing ahead.
    """
    total = merge((*history, one_round))
    mechanism = (float(one_round.noise_multiplier), float(one_round.sampling_rate))
    rest = tuple(s for s in total if (s.noise_multiplier, s.sampling_rate) != mechanism)
    steps = sum(s.steps for s in total) - sum(s.steps for s in rest)
    known = _known(rest, mechanism, delta, limit)
    if steps <= known.fits:
        return True

    def at(steps: int, limit: float) -> bool:
        mine = GaussianSteps(noise_multiplier=mechanism[0], sampling_rate=mechanism[1], steps=steps)
        return within((*rest, mine), delta, limit)

    if rounds_after and steps < known.edge:
        _look_ahead(known, at, steps, one_round.steps, rounds_after, limit)
    return steps <= known.fits or at(steps, limit)


def _look_ahead(
    known: _Known,
    at: Callable[[int, float], bool],
    steps: int,
    size: int,
    rounds: int,
    limit: float,
) -> None:
    """Learn how far it is to the limit from ``steps``, in rounds of ``size`` steps."""
    if at(steps + rounds * size, limit - INTERVAL):
        known.fits = steps + rounds * size
        return
    if known.asked in (0, steps):
        known.asked = steps  # a search pays only if the rest stays as it is: if asked once more
        return
    low, high = -1, rounds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(steps + middle * size, limit - INTERVAL) else (low, middle)
    known.fits = max(known.fits, steps + low * size) if low >= 0 else known.fits
    known.edge = steps + high * size
    # The last one that fits and the first that does not are then in the accountant's cache.
    for more in (0, 1):
        at(steps + (high + more) * size, limit)
