"""What a record-level promise is worth to whoever has several records at one holder."""

from __future__ import annotations

import math
from functools import lru_cache

from .accountant import GaussianSteps, epsilon_pld, epsilon_rdp

ACCOUNTING = (
    "so many records are added or removed together; PLD of a mixture of Gaussians"
    " (Choquette-Choo et al. 2024)"
)
_INTERVAL = 1e-2  # coarse and quick; PLD discretisation errs upwards
_MOST_RDP = 2000.0  # beyond it no promise is left, and the distribution fills the memory


@lru_cache(maxsize=256)
def group_epsilon(steps: tuple[GaussianSteps, ...], delta: float, size: int) -> float | None:
    """epsilon for a person with ``size`` records at one holder; None where no promise is left.

    Each record is drawn and clipped on its own, so that the sum moves by as many clip norms as
    were drawn, Binomial(size, q): a mixture of Gaussians (Choquette-Choo et al. 2024). At q = 1
    all are drawn, and it is one Gaussian with ``size`` times the sensitivity.
    """
    whole = [_all_or_nothing(step, size) for step in steps]
    if sum(epsilon_rdp([step], delta) for step in whole) > _MOST_RDP:
        return None
    if all(step.sampling_rate == 1 for step in steps):
        return epsilon_pld(whole, delta)
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
    from dp_accounting.pld import PLDAccountant

    account = PLDAccountant(value_discretization_interval=_INTERVAL)
    for step in steps:
        z, q = step.noise_multiplier, step.sampling_rate
        drawn = [(k, math.comb(size, k) * q**k * (1 - q) ** (size - k)) for k in range(size + 1)]
        moves, chances = zip(*((k, p) for k, p in drawn if p > 0), strict=True)
        account.compose(MixtureOfGaussiansDpEvent(z, list(moves), list(chances)), step.steps)
    return float(account.get_epsilon(delta))


def _all_or_nothing(step: GaussianSteps, size: int) -> GaussianSteps:
    """An upper bound: whenever one of the records is drawn, all of them are."""
    return GaussianSteps(
        noise_multiplier=step.noise_multiplier / size,
        sampling_rate=1 - (1 - step.sampling_rate) ** size,
        steps=step.steps,
    )
