"""Noisy sums: what a run may ask of its holders besides training, and how it is told from a round.

A sum is over a holder's units, each with a vector of non-negative shares that add up to at most 1:
the mean over its records of what each record is (the class that it has; right or wrong; how much of
the largest loss that counts, and the rest). So one unit more or less moves the sum by at most 1 in
L2, and Gaussian noise of standard deviation ``privacy.sum-noise`` on each number makes it one
Gaussian mechanism of that noise multiplier at sampling rate 1 (Dwork and Roth 2014, appendix A).
The holder's ledger is charged for it as for a round.

A task asks for a sum by its number: 0, before the first round, for the classes; one more than
``round.count`` for the metric. So each sum is asked for at most once in a run, and the plan of a
run knows all of them from the settings.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from .privacy.accountant import GaussianSteps
from .settings import Settings
from .tasks.labels import COUNTED

SENSITIVITY = 1.0  # L2, of one unit


class Sum(StrEnum):
    """What is summed. ``accuracy``: right, wrong. ``perplexity``: loss by its cap, the rest."""

    CLASSES = "classes"
    ACCURACY = "accuracy"
    PERPLEXITY = "perplexity"


def sums_of(settings: Settings) -> dict[int, Sum]:
    """The sums of a run, each by the number of its task."""
    found = {0: Sum.CLASSES} if settings.task.counted else {}
    if settings.round.holder_metric:
        found[settings.round.count + 1] = Sum(settings.round.holder_metric)
    return found


def noise_of(settings: Settings) -> float:
    """Noise multiplier of each sum, which is the standard deviation of its noise in units."""
    return 0.0 if settings.privacy.trust == "off" else settings.privacy.sum_noise / SENSITIVITY


def steps_of_sums(settings: Settings, count: int | None = None) -> tuple[GaussianSteps, ...]:
    """What ``count`` sums (all of the run by default) release."""
    count = len(sums_of(settings)) if count is None else count
    if not count:
        return ()
    return (GaussianSteps(noise_multiplier=noise_of(settings), sampling_rate=1.0, steps=count),)


def is_sum(step: GaussianSteps, settings: Settings) -> bool:
    """Whether sums of this run are among such steps; a round may have the same noise and rate."""
    mechanism = (step.noise_multiplier, step.sampling_rate)
    return bool(sums_of(settings)) and mechanism == (noise_of(settings), 1.0)


def numbers_in_sum(kind: Sum, settings: Settings) -> int:
    """How many numbers a sum has."""
    return len(settings.task.label_names) if kind is Sum.CLASSES else 2


def with_counted(settings: Settings, weights: str, rates: str) -> dict[str, str]:
    """The flat settings that take the place of ``counted`` once the classes were counted."""
    found = {"task.class-weights": weights, "task.class-rates": rates}
    flat = settings.to_flat()
    return {key: f"{COUNTED} {value}" for key, value in found.items() if flat[key] == COUNTED}


def largest_loss(model: Any) -> float:
    """The most that a record's loss counts, in nats: that of a guess among all words alike, so that
    it is a public number. What is above it counts as that much."""
    return math.log(model.config.vocab_size)
