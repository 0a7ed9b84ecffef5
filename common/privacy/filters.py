"""What holds for several runs on one text, whose settings may follow from what earlier ones showed.

The PLD sum of several runs is proven for settings that were fixed beforehand. Whoever coordinates
chooses the next run after seeing the last one, and may stop when the outcome pleases: then only a
**filter** counts, a bound on a sum that each release has to keep to, fixed before anything was
seen. Two are used, and a ledger's first charge settles which, with the whole plan of its run:

- *Gaussian*: all releases use every unit. While the sum of ``steps / z^2`` stays at or below
  ``mu^2``, everything together is mu-GDP, whatever chose the steps (fully adaptive composition:
  Smith and Thakurta 2022; Koskela, Tobaben and Honkela 2023), and delta at any epsilon is that of
  one Gaussian (Balle and Wang 2018), exactly.
- *Renyi*: any sampling rates. While the divergences of one order alpha, fixed beforehand, add up
  to at most B, everything together is (alpha, B)-RDP (Feldman and Zrnic 2021, theorem 4.3; Lecuyer
  2021), and epsilon at delta is B plus a constant (Canonne et al. 2020, proposition 12).

**Both at once** (``holds``). A ledger whose first run used every unit may later take part in a run
that samples. Let E be the histories in which something was sampled. Outside of E the Gaussian
filter held throughout, at ``1 - SAMPLED_SHARE`` of delta: the Renyi one may have let a step pass
there, but it is a weaker bound at a smaller delta, and the Gaussian one is exact, so that it held
as well. On E the Renyi filter held throughout, since its sum only grows, at ``SAMPLED_SHARE`` of
delta. For a set S of outcomes, P(S) = P(S and E) + P(S and not E): each part is that of a mechanism
that one filter stops, and the deltas add up to delta. Where the first run samples, E always
happens, and the Renyi filter has all of delta.

**The odometer** (``bound``). What has been spent is told as the least of some levels, fixed here:
``LEVELS``, each at an equal part of ``1 - LIMIT_SHARE`` of delta, and the holder's own limit as it
was at the first charge, at ``LIMIT_SHARE``. A level holds if its filter was never exceeded. Let A_j
be the histories for which level j is told. On A_j they are those of a mechanism that is stopped by
the filter of level j, so that for every set S of outcomes P(S and A_j) <= exp(epsilon_j) P'(S and
A_j) + delta_j; and all delta_j together are at most delta. No assumption is made on who chooses
what, or on when somebody looks. (An odometer in the sense of Rogers et al. 2016.)

The delta is that of whoever asks: both sums are free of it.

| input | result |
|---|---|
| nothing spent | level 0 |
| a step without noise | inf |
| more than the largest level | inf |
| only one run, of a fixed plan | not for this: ``accountant.epsilon_pld`` is tighter and holds |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import renyi
from .accountant import delta_gaussian, effective_multiplier
from .steps import Steps, has_noise, is_plain, merge

LIMIT_SHARE = 0.8  # of delta, for the holder's limit; the odometer's levels have the rest
SAMPLED_SHARE = 0.1  # of a level's delta, for runs that sample after a first one that did not
LEVELS = (
    0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5,
    *(float(x) for x in range(4, 20)), *(float(x) for x in range(20, 31, 2)),
    35.0, 40.0, 50.0, 60.0, 80.0, 100.0,
)  # fmt: skip
_LEVEL_SHARE = (1 - LIMIT_SHARE) / len(LEVELS)
_COPIES = 2  # of the first run, for which the order is chosen where there is no limit


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a ledger's first charge settled, before anything was released.

    Attributes:
        order: of the Renyi filter, one of ``renyi.ORDERS``.
        plain: whether the first run used every unit, so that the Gaussian filter is open.
        limit: the holder's limit on epsilon over all runs; None where there was none.
    """

    order: float
    plain: bool
    limit: float | None = None


def settle(whole: Steps, delta: float, limit: float | None) -> Terms:
    """The terms of a ledger whose first run is to release ``whole``: a function of public numbers
    that nothing released has had a part in.

    The order is that at which most copies of the first run fit into the limit; without a limit, at
    which ``_COPIES`` of them cost least.
    """
    plain = is_plain(whole)
    share = SAMPLED_SHARE if plain else 1.0
    return Terms(order=_best_order(merge(whole), share * delta, limit), plain=plain, limit=limit)


def _best_order(whole: Steps, delta: float, limit: float | None) -> float:
    if not has_noise(whole):
        return float(renyi.ORDERS[0])
    spent = renyi.divergences(whole)
    if limit is not None:
        copies = (limit - renyi.conversion(LIMIT_SHARE * delta)) / np.maximum(spent, 1e-300)
        if copies.max() > 0:
            return float(renyi.ORDERS[int(copies.argmax())])
    cost = _COPIES * spent + renyi.conversion(_LEVEL_SHARE * delta)
    return float(renyi.ORDERS[int(cost.argmin())])


def holds(terms: Terms, steps: Steps, epsilon: float, delta: float) -> bool:
    """Whether everything was within the filters for (epsilon, delta), which are stated above."""
    merged = merge(steps)
    if not merged:
        return True
    if not has_noise(merged):
        return False
    sampled = SAMPLED_SHARE if terms.plain else 1.0
    if terms.plain and is_plain(merged):
        multiplier = effective_multiplier(merged)
        if delta_gaussian(multiplier, epsilon) <= (1 - sampled) * delta:
            return True
    place = renyi.ORDERS.index(terms.order)
    most = epsilon - renyi.conversion(sampled * delta)[place]
    return bool(renyi.divergences(merged)[place] <= most)


def enforced(terms: Terms, steps: Steps, limit: float, delta: float) -> bool:
    """Whether everything is within the holder's limit, at the part of delta that it has."""
    return holds(terms, steps, limit, LIMIT_SHARE * delta)


def bound(terms: Terms, steps: Steps, delta: float) -> float:
    """The least level that was never exceeded, see above; inf where none is left."""
    if not merge(steps):
        return 0.0
    held = (level for level in LEVELS if holds(terms, steps, level, _LEVEL_SHARE * delta))
    least = next(held, math.inf)
    limit = terms.limit
    if limit is not None and limit < least and enforced(terms, steps, limit, delta):
        return limit
    return least
