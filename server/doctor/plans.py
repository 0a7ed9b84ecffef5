"""The plan that a holder of a given size would make of the settings, without its text."""

from __future__ import annotations

from ...common.privacy.accountant import GaussianSteps, calibrate
from ...common.settings import Settings
from ...common.sums import steps_of_sums


def planned(settings: Settings, units: int) -> GaussianSteps:
    """All steps of the run at a holder with ``units`` units; settings with noise only."""
    rate = min(1.0, settings.train.batch / units)
    steps = settings.train.steps * settings.round.count
    privacy = settings.privacy
    noise = privacy.noise_multiplier or calibrate(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=rate,
        steps=steps,
        besides=steps_of_sums(settings),
    )
    return GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=steps)
