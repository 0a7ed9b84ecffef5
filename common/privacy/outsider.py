"""What an outsider learns who sees the final adapter alone, when holders are drawn at random.

A figure of its own, beside the coordinator's and never in its place: the coordinator draws the
holders and knows who took part, so that nothing is amplified towards it.

Of each round a holder is part with probability ``rate``, decided by coins that do not depend on
any text. Where it is not part, the round is the same with and without the unit, whatever the round
shows; where it is, it releases one round. The hockey-stick divergence is jointly convex, so that
delta at any epsilon is at most the mean, over how often the holder is drawn, of the delta of that
many rounds:

    delta(epsilon) <= sum over k of Binomial(rounds, rate)(k) * delta_pld(k rounds, epsilon)

It holds for independent coins of each holder and for a uniform draw of a fixed number of holders
alike, since only one holder's text differs. It is much weaker than what the formula for records
(log(1 + rate * (e^epsilon - 1)); Balle et al. 2018) would give. That formula compares a drawn unit
with one that was not; here a whole holder is drawn, its part may be plain to see in the adapter,
and then it says too little: ``tests/common/privacy/test_outsider.py`` has the counter-example.

| input | epsilon |
|---|---|
| rate 1, or every holder asked | that of all rounds: no amplification |
| no rounds | 0 |
| a round without noise | inf |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..errors import ConfideError
from .accountant import GaussianSteps, epsilon_pld
from .coarse import deltas

ASSUMPTION = (
    "It holds for someone who sees the final adapter and neither the updates, nor the rounds, nor"
    " this report; who cannot know or influence which holders were drawn; where the draw is uniform"
    " and secret, anew in each round; and where whether a holder is connected, and answers, does"
    " not depend on its text."
)
_POINTS, _PASSES = 6, 4  # epsilons tried at once, then again between two neighbours
_COUNTS = 24  # numbers of rounds that are told apart; those between are rounded up
_MOST_KINDS = 8  # different noises and sampling rates that are composed one by one
_LOST = 1e-6  # share of delta that may go to the tail of the binomial distribution


def outsider_epsilon(one_round: GaussianSteps, *, rounds: int, rate: float, delta: float) -> float:
    """An upper bound on epsilon at ``delta`` for a unit of a holder that releases ``one_round``
    in each of ``rounds`` rounds with probability ``rate``."""
    if type(rounds) is not int or rounds < 0:
        raise ConfideError("privacy.rounds", f"rounds = {rounds!r} is not a whole number >= 0.")
    if not (isinstance(rate, int | float) and 0 < rate <= 1):
        raise ConfideError("privacy.rate", f"client rate = {rate!r} is outside (0, 1].")
    whole = epsilon_pld([_times(one_round, rounds)], delta)
    if rate == 1 or whole == 0 or not math.isfinite(whole):
        return whole
    chances, lost = _how_often(rounds, rate, _LOST * delta)
    low, high = 0.0, whole
    for _ in range(_PASSES):
        epsilons = np.linspace(low, high, _POINTS)
        mean = np.full(_POINTS, lost)
        for count, chance in chances:
            mean += chance * deltas([_times(one_round, count)], epsilons)
        enough = np.flatnonzero(mean <= delta)
        place = int(enough[0]) if len(enough) else _POINTS - 1
        low, high = float(epsilons[max(0, place - 1)]), float(epsilons[place])
    return high


def worst_epsilon(
    each_round: Iterable[GaussianSteps], *, rounds: int, rate: float, delta: float
) -> float:
    """The largest ``outsider_epsilon`` of several holders, or a bound on it: of many different
    ones, that of the least noise with the largest sampling rate and the most steps."""
    kinds = sorted({one for one in each_round if one.steps})
    if len(kinds) > _MOST_KINDS:
        kinds = [
            GaussianSteps(
                noise_multiplier=min(one.noise_multiplier for one in kinds),
                sampling_rate=max(one.sampling_rate for one in kinds),
                steps=max(one.steps for one in kinds),
            )
        ]
    found = (outsider_epsilon(one, rounds=rounds, rate=rate, delta=delta) for one in kinds)
    return max(found, default=0.0)


def _times(one_round: GaussianSteps, rounds: int) -> GaussianSteps:
    return replace(one_round, steps=one_round.steps * rounds)


def _how_often(rounds: int, rate: float, lost: float) -> tuple[list[tuple[int, float]], float]:
    """How many rounds a holder is drawn in, each with its chance, and the chance of still more.

    Never drawn costs nothing and is left out. Neighbouring numbers are taken together under the
    largest of them: more rounds never cost less.
    """
    counts = np.arange(rounds + 1)
    logs = np.array([_log_binomial(rounds, int(k), rate) for k in counts])
    chances = np.exp(logs)
    above = np.append(np.cumsum(chances[::-1])[::-1][1:], 0.0)  # chance of more than k
    last = int(np.flatnonzero(above <= lost)[0])
    below = np.cumsum(chances)
    first = max(1, int(np.searchsorted(below, lost)))  # hardly ever fewer: counted as this many
    tops = sorted({round(top) for top in np.linspace(first, max(first, last), _COUNTS)})
    grouped, start = [], 1
    for top in tops:
        grouped.append((top, float(chances[start : top + 1].sum())))
        start = top + 1
    return grouped, float(chances[start:].sum())


def _log_binomial(n: int, k: int, rate: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(rate) + (n - k) * math.log1p(-rate)
