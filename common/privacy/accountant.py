"""What has been spent: epsilon of Poisson-sampled Gaussian steps, under add or remove one unit.

The figure is the privacy loss distribution (PLD) of dp-accounting with its pessimistic
discretisation (Koskela et al. 2020; Doroshenko et al. 2022), of a step as ``of_one_step`` finds it.
RDP (Mironov 2017, 2019) stands beside it as the conservative figure and Opacus's PRV (Gopi et al.
2021) as an independent cross-check. The Gaussian-DP central limit approximation understates and is
not offered, and neither is amplification by the sampling of holders: the coordinator knows who took
part.

Everything is a pure function of what was released, in steps really taken.

| input | epsilon |
|---|---|
| no steps at all | 0 |
| a step without noise | inf |
| sampling rate 1 | the plain Gaussian mechanism |
| little noise (RDP above 200, multiplier below 0.2) | the RDP bound, above the PLD value |
| steps too small or too many for the grid | the same |

**The loss of one step** (``of_one_step``). The distribution is dp-accounting's: the pessimistic
"connect the dots" of Doroshenko et al. 2022, which needs the hockey-stick divergence of the step at
every point of a grid. dp-accounting finds that point by point; here it is the same closed form
(Balle and Wang 2018, with the loss of the mixture inverted) for all points together, seven to ten
times as fast. ``tests/common/privacy/test_loss.py`` holds the two against each other.

| input | result |
|---|---|
| sampling rate 1 | the plain Gaussian mechanism |
| a loss beyond ten standard deviations of the noise | counts as infinite |
| noise multiplier 0 | not for this: the loss is infinite |
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfideError
from . import renyi
from .steps import GaussianSteps, Steps, has_noise, is_number, is_plain, merge, refuse_steps

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


__all__ = [
    "COARSE",
    "INTERVAL",
    "GaussianSteps",
    "calibrate",
    "delta_gaussian",
    "delta_pld",
    "effective_multiplier",
    "epsilon_pld",
    "epsilon_prv",
    "epsilon_rdp",
    "merge",
    "true_positive_rate",
    "within",
]

INTERVAL = 1e-4  # of the discretised privacy loss
COARSE = 1e-3  # while searching and for long lists; still an upper bound
_LARGEST_PLD = 200.0  # above it no promise is left, and the distribution would fill the memory
_LEAST_NOISE = 0.2  # below it the same is true of a single step
_MOST_STEPS = 1_000_000  # composed in one go; above it the transform takes minutes
_PIECE = 3.0  # noise multiplier at which a plain Gaussian is cheapest to discretise
_PUSH = 1.5  # the least factor by which noise that is too little is raised
_MOST_BESIDES = 0.9  # of epsilon; beyond it next to nothing would be left to train with


def epsilon(*, noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The figure of record of ``steps`` Gaussian sums over Poisson batches of rate
    ``sampling_rate``, each with noise of ``noise_multiplier`` times the clip norm: what
    ``calibrate`` turns round."""
    one = GaussianSteps(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    return epsilon_pld((one,), delta)


def epsilon_pld(
    steps: Sequence[GaussianSteps], delta: float, *, interval: float = INTERVAL
) -> float:
    """The figure of record: an upper bound on epsilon, tight to about ``INTERVAL``.

    It is the smaller of two upper bounds, PLD and RDP; that is PLD wherever its grid is fine
    enough for the privacy loss of one step. With ``interval=COARSE`` it takes milliseconds, for
    lists that are too long for the figure of record, and is above it, rarely by more than half
    a per cent; never shown as exact.
    """
    return _epsilon(merge(steps), _checked_delta(delta), interval)


def epsilon_rdp(steps: Sequence[GaussianSteps], delta: float) -> float:
    """The conservative figure, by Renyi differential privacy; 10 to 38 % high on short runs."""
    return renyi.epsilon(merge(steps), _checked_delta(delta))


def epsilon_prv(steps: Sequence[GaussianSteps], delta: float) -> float:
    """The cross-check: Opacus's PRV upper estimate (error 0.01). Imports torch."""
    merged = merge(steps)
    if not merged:
        return 0.0
    if epsilon_rdp(merged, delta) > _LARGEST_PLD:
        raise ConfideError(
            "privacy.prv", "There is too little noise for the PRV accountant.", "Read PLD or RDP."
        )
    from opacus.accountants import PRVAccountant  # type: ignore[import-untyped,unused-ignore]

    accountant = PRVAccountant()
    # Its formulas divide by 1 - q; this q moves epsilon by less than its own error.
    accountant.history = [
        (s.noise_multiplier, min(s.sampling_rate, 1 - 1e-9), s.steps) for s in merged
    ]
    with warnings.catch_warnings():
        # RDP only sizes its grid there; a better order would make the grid smaller.
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        return float(accountant.get_epsilon(delta, eps_error=0.01))


def delta_pld(steps: Sequence[GaussianSteps], epsilon: float) -> float:
    """The least delta at this epsilon, by PLD; 1 where there is too little noise to tell."""
    if not (is_number(epsilon) and epsilon >= 0):
        raise ConfideError("privacy.epsilon", f"epsilon = {epsilon!r} is outside [0, inf].")
    merged = merge(steps)
    if not merged:
        return 0.0
    if not _fits(merged):
        return 1.0
    return min(1.0, float(_pld(merged, INTERVAL).get_delta_for_epsilon(float(epsilon))))


def within(steps: Sequence[GaussianSteps], delta: float, limit: float) -> bool:
    """Whether ``epsilon_pld(steps, delta) <= limit``, without the PLD where a bound decides."""
    merged = merge(steps)
    if renyi.epsilon(merged, _checked_delta(delta)) <= limit:
        return True
    if is_plain(merged) and has_noise(merged):
        exact = _epsilon_gaussian(effective_multiplier(merged), delta)
        if exact > limit:
            return False
        if exact + INTERVAL <= limit:
            return True
    return epsilon_pld(merged, delta) <= limit


@lru_cache(maxsize=256)
def calibrate(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    besides: Steps = (),
) -> float:
    """A noise multiplier for ``steps`` steps that spend at most ``epsilon`` by PLD, together with
    what is released ``besides`` with noise of its own.

    At usual targets what it gives is at least 0.999 * ``epsilon``, so little noise is wasted.
    """
    if not (is_number(epsilon) and 0 < epsilon < math.inf):
        raise ConfideError(
            "privacy.epsilon",
            f"epsilon = {epsilon!r} is outside (0, inf).",
            "Choose for example 8, or less for a stronger promise; 0 takes infinite noise.",
        )
    if type(steps) is not int or steps < 1:
        refuse_steps(f"steps = {steps!r} is not a whole number >= 1", "rounds times steps")
    _checked_delta(delta)
    _check_room(besides, epsilon, delta)

    def spent(interval: float) -> Callable[[float], float]:
        def at(noise: float) -> float:
            one = GaussianSteps(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
            return _epsilon(merge((one, *besides)) if besides else (one,), delta, interval)

        return at

    push = _PUSH if besides else 1.0  # epsilon then falls more slowly than noise rises
    start = _search(spent(COARSE), epsilon, 1.0, push)
    return _search(spent(INTERVAL), epsilon, start, push)


def _check_room(besides: Steps, epsilon: float, delta: float) -> None:
    """Refuse what alone leaves next to nothing of the target."""
    if besides and not within(besides, delta, _MOST_BESIDES * epsilon):
        raise ConfideError(
            "privacy.calibration",
            f"The sums besides the steps spend epsilon = {epsilon_pld(besides, delta):.3g} of"
            f" {epsilon:g}; at most {_MOST_BESIDES:.0%} may go there.",
            "Set privacy.sum-noise higher, or ask for no sums.",
        )


_EPSILONS = np.linspace(0, 15, 121)  # each gives a valid bound on an attacker; more only tighten


@lru_cache(maxsize=1024)
def _profile(merged: Steps) -> NDArray[np.float64]:
    """Delta at each of ``_EPSILONS``."""
    pld = _pld(merged, INTERVAL)
    return np.array([pld.get_delta_for_epsilon(float(epsilon)) for epsilon in _EPSILONS])


def _true_positive_rate(merged: Steps, false_positive_rate: float) -> float:
    deltas = _profile(merged)
    steep = deltas + np.exp(_EPSILONS) * false_positive_rate
    flat = 1 - np.exp(-_EPSILONS) * (1 - deltas - false_positive_rate)
    best = float(np.minimum(steep, flat).min())
    return min(1.0, max(best, false_positive_rate))


def true_positive_rate(steps: Sequence[GaussianSteps], *, false_positive_rate: float) -> float:
    """The best true-positive rate of any attacker who asks whether one unit was used.

    An upper bound from the whole privacy profile (Kairouz et al. 2015; Dong et al. 2022), not
    from one (epsilon, delta): whoever accepts ``false_positive_rate`` false alarms finds at most
    this share of those who were used. No steps: guessing; no noise: 1.
    """
    if not (is_number(false_positive_rate) and 0 <= false_positive_rate <= 1):
        raise ConfideError(
            "privacy.rate", f"false-positive rate = {false_positive_rate!r} is outside [0, 1]."
        )
    merged = merge(steps)
    if not merged:
        return float(false_positive_rate)
    return _true_positive_rate(merged, float(false_positive_rate)) if _fits(merged) else 1.0


@lru_cache(maxsize=4096)
def _epsilon(merged: Steps, delta: float, interval: float) -> float:
    bound = renyi.epsilon(merged, delta)
    if bound == 0 or bound > _LARGEST_PLD or not _fits(merged):
        return bound
    return min(bound, max(0.0, float(_pld(merged, interval).get_epsilon_for_delta(delta))))


def _fits(merged: Steps) -> bool:
    """Whether the discretised distribution is of a reasonable size, whatever was asked for."""
    if any(s.noise_multiplier < _LEAST_NOISE for s in merged):
        return False
    if renyi.epsilon(merged, 1e-5) > 2 * _LARGEST_PLD:
        return False
    sampled = [s for s in merged if s.sampling_rate < 1 and s.steps > 1]
    if any(s.steps > _MOST_STEPS for s in sampled):
        return False
    # A step whose loss is far below the grid is rounded up to it, once per step composed.
    second = renyi.ORDERS.index(2)
    losses = (renyi.of_one(s.noise_multiplier, s.sampling_rate)[second] for s in sampled)
    return all(loss >= INTERVAL**2 for loss in losses)


@lru_cache(maxsize=8)
def _pld(merged: Steps, interval: float) -> Any:
    """The distribution of all steps together; ``merged`` is not empty and has noise."""
    plain = tuple(s for s in merged if s.sampling_rate == 1)
    parts = [_pld_of_steps(s, interval) for s in merged if s.sampling_rate < 1]
    if plain:
        # Gaussians add up to one Gaussian; equal pieces of it discretise fastest.
        total = effective_multiplier(plain)
        pieces = max(1, round((_PIECE / total) ** 2))
        one = _pld_of_one(total * math.sqrt(pieces), 1.0, interval)
        parts.append(one.self_compose(pieces))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


@lru_cache(maxsize=16)
def _pld_of_steps(steps: GaussianSteps, interval: float) -> Any:
    """Of one mechanism; kept, since of a ledger's history only the newest one grows."""
    one = _pld_of_one(steps.noise_multiplier, steps.sampling_rate, interval)
    return one.self_compose(steps.steps)


@lru_cache(maxsize=16)
def _pld_of_one(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    return of_one_step(noise_multiplier, sampling_rate, interval)


def effective_multiplier(plain: Sequence[GaussianSteps]) -> float:
    """The multiplier of the one Gaussian that tells as much as all these at sampling rate 1."""
    return 1 / math.sqrt(sum(s.steps / s.noise_multiplier**2 for s in plain))


def delta_gaussian(noise_multiplier: float, epsilon: float) -> float:
    """Delta of one Gaussian at ``epsilon``, exactly (Balle and Wang 2018, theorem 8)."""
    half, shift = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    tail = _normal_cdf(-half - shift)
    return _normal_cdf(half - shift) - (math.exp(epsilon + math.log(tail)) if tail else 0.0)


def _epsilon_gaussian(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian, by bisection; never below it."""
    low, high = 0.0, 1.0
    while delta_gaussian(noise_multiplier, high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        enough = delta_gaussian(noise_multiplier, middle) <= delta
        low, high = (low, middle) if enough else (middle, high)
    return high


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _search(spent: Callable[[float], float], target: float, start: float, push: float) -> float:
    """A multiplier with 0.999 target <= spent <= target: secants in log-log inside a bracket."""
    noise, low, high = start, None, None
    for _ in range(100):
        epsilon = spent(noise)
        if 0.999 * target <= epsilon <= target:
            return noise
        point = (math.log(noise), math.log(min(max(epsilon, 1e-12), 1e12)))
        low, high = (point, high) if epsilon > target else (low, point)
        if low is None or high is None:
            noise *= min(max(epsilon / target, push if epsilon > target else 0.25), 4.0)
            continue
        width = high[0] - low[0]
        if width < 1e-4:
            break
        share = (low[1] - math.log(0.9995 * target)) / (low[1] - high[1])
        noise = math.exp(low[0] + width * min(max(share, 0.05), 0.95))
    if high is None:
        raise ConfideError(
            "privacy.calibration", f"No noise multiplier gives epsilon <= {target:g}."
        )
    return math.exp(high[0])  # a jump of the accountant inside the bracket: stay on the safe side


def _checked_delta(delta: float) -> float:
    if not (is_number(delta) and 0 < delta < 1):
        raise ConfideError(
            "privacy.delta",
            f"delta = {delta!r} is outside (0, 1).",
            "Choose it well below 1 / number of records, for example 1e-5.",
        )
    return float(delta)
