"""The plan that a holder of a given size would make of the settings, without its text."""

from __future__ import annotations

from functools import lru_cache

from ...common.privacy.accountant import GaussianSteps, calibrate
from ...common.settings import Settings


def planned(settings: Settings, units: int) -> GaussianSteps:
    """All steps of the run at a holder with ``units`` units; settings with noise only."""
    rate = min(1.0, settings.train.batch / units)
    steps = settings.train.steps * settings.round.count
    privacy = settings.privacy
    noise = privacy.noise_multiplier or _calibrated(privacy.epsilon, privacy.delta, rate, steps)
    return GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=steps)


@lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, rate: float, steps: int) -> float:
    return calibrate(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps)
