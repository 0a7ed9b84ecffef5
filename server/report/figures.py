"""Epsilon of many holders at once: exact where it matters, an upper bound elsewhere, in seconds.

The privacy loss distribution of one history takes a few tenths of a second, and a run may have a
thousand holders that all differ in size, and so in sampling rate and noise. Up to ``MOST_EXACT``
different histories all are computed on the fine grid. Of more, those are that decide something:
whoever the coarse grid puts above the plan, and from the largest down until nobody left could be
larger, so that the claim is the same as if all had been. The rest stand with the coarse figure,
which is above the fine one; ``exact`` says which it is, and ``verify`` recomputes each in the same
way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...common.privacy.accountant import COARSE, INTERVAL, GaussianSteps, epsilon_pld

MOST_EXACT = 32
Steps = tuple[GaussianSteps, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Epsilon by PLD; ``exact`` on the fine grid, otherwise a little above it."""

    epsilon: float
    exact: bool


def figure(steps: Steps, delta: float, *, exact: bool) -> Figure:
    """The figure of one history, on the grid asked for."""
    epsilon = epsilon_pld(steps, delta, interval=INTERVAL if exact else COARSE)
    return Figure(epsilon=epsilon, exact=exact)


def figures(histories: Iterable[Steps], delta: float, limit: float | None) -> dict[Steps, Figure]:
    """The figure of each different history; ``limit`` is the planned epsilon, if there is one."""
    different = sorted(set(histories))
    if len(different) <= MOST_EXACT:
        return {steps: figure(steps, delta, exact=True) for steps in different}
    found = {steps: figure(steps, delta, exact=False) for steps in different}
    largest = 0.0
    for steps in sorted(different, key=lambda steps: -found[steps].epsilon):
        coarse = found[steps].epsilon
        over = limit is not None and coarse > limit
        if coarse > largest or over:
            found[steps] = figure(steps, delta, exact=True)
            largest = max(largest, found[steps].epsilon)
    return found
