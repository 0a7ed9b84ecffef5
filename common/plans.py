"""The plan of a run, from its settings alone: the one place where they become privacy numbers.

Holder, gate, doctor and report all ask here. Every number of the mechanism (sampling rate, noise
multiplier, clip norm, steps, rounds, delta) is public, and the same at every holder: nothing is
computed from how many records one has. Otherwise the size of its noise, which anybody can see in an
update, would tell that number, and no epsilon covers what the parameters of a mechanism tell.

**Noisy sums** are what a run may ask of its holders besides training. One is over a holder's units,
each with a vector of non-negative shares that add up to at most 1: the mean over its records of
what each record is (the class that it has; right or wrong; how much of the largest loss that
counts, and the rest). So one unit more or less moves the sum by at most 1 in L2, and Gaussian noise
of standard deviation ``privacy.sum-noise`` on each number makes it one Gaussian mechanism of that
noise multiplier at sampling rate 1 (Dwork and Roth 2014, appendix A). The holder's ledger is
charged for it as for a round.

A task asks for a sum by its number: 0, before the first round, for the classes; one more than
``round.count`` for the metric. So each sum is asked for at most once in a run, and the plan of a
run knows all of them from the settings.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from .privacy.accountant import GaussianSteps
from .privacy.clipping import bit_length, longest_with_bit
from .privacy.plan import Plan, Trust, Unit, relation_of
from .privacy.shares import step_of
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


_UNBOUNDED = 1e12  # a gradient of a record beyond it is no number that training survives


@lru_cache(maxsize=256)
def plan_of(settings: Settings) -> Plan:
    """The plan of a holder's rounds, with noise for the largest participation that the run allows:
    every round, and every sum besides. Where the clip norm follows the updates, the plan's is that
    of an update with its bit (``privacy.clipping``).

    Raises:
        ConfideError: ``privacy.calibration`` for a target that no noise meets.
    """
    plan = _plan_of(settings)
    if not has_bit(settings):
        return plan
    longest = longest_with_bit(plan.clip_norm, plan.noise_multiplier, plan.least)
    return replace(plan, clip_norm=longest)


def _plan_of(settings: Settings) -> Plan:
    """The same without the bit."""
    privacy, rounds, unit = settings.privacy, settings.round, Unit(settings.privacy.unit)
    least, colluding = _of_sum(settings)
    rate, steps = settings.train.rate, settings.train.steps
    if unit is Unit.HOLDER:  # what goes on inside a holder costs nothing: its update is clipped
        rate, steps = 1.0, 1
    given = privacy.trust == "off" or privacy.noise_multiplier > 0
    if given:
        return Plan(
            unit=unit,
            relation=relation_of(unit),
            trust=Trust(privacy.trust),
            clip_norm=privacy.clip,
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=rate,
            steps_per_round=steps,
            max_rounds=rounds.count,
            delta=privacy.delta,
            least=least,
            colluding=colluding,
        )
    return Plan.calibrate(
        epsilon=privacy.epsilon,
        unit=unit,
        trust=Trust(privacy.trust),
        clip_norm=privacy.clip,
        sampling_rate=rate,
        steps_per_round=steps,
        max_rounds=rounds.count,
        delta=privacy.delta,
        least=least,
        colluding=colluding,
        besides=steps_of_sums(settings),
    )


def plan_of_sum(settings: Settings) -> Plan:
    """One noisy sum as a plan of one step that uses every unit."""
    least, colluding = _of_sum(settings)
    unit = Unit(settings.privacy.unit)
    return Plan(
        unit=unit,
        relation=relation_of(unit),
        trust=Trust(settings.privacy.trust),
        clip_norm=SENSITIVITY,
        noise_multiplier=noise_of(settings),
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=settings.privacy.delta,
        least=least,
        colluding=colluding,
    )


def inner_plan(settings: Settings) -> Plan:
    """What a holder trains by where it is the unit itself: no term is clipped to anything that it
    could reach, and no noise is added, since the whole update is clipped and noised afterwards."""
    return Plan(
        trust=Trust.OFF,
        clip_norm=_UNBOUNDED,
        noise_multiplier=0.0,
        sampling_rate=settings.train.rate,
        steps_per_round=settings.train.steps,
        max_rounds=settings.round.count,
        delta=settings.privacy.delta,
    )


def is_shared(settings: Settings) -> bool:
    """Whether noise is in shares, and updates go through a secure sum."""
    return settings.privacy.trust == Trust.DISTRIBUTED


def has_bit(settings: Settings) -> bool:
    """Whether each update says in one more value if it is as short as the clip norm."""
    return settings.privacy.clip_quantile > 0


def bit_of(settings: Settings) -> float:
    """How long that value is, in gradient units."""
    plan = plan_of(settings)
    return bit_length(settings.privacy.clip, plan.noise_multiplier, plan.least)


def _of_sum(settings: Settings) -> tuple[int, int]:
    """How many contribute at least to a secure sum, and how many may collude; 1 and 0 without."""
    if not is_shared(settings):
        return 1, 0
    return settings.round.min_holders, settings.privacy.colluding


def step_of_round(settings: Settings) -> float:
    """The public step to whose multiples a round's sum is rounded, in gradient units.

    Raises:
        ConfideError: ``sum.range``.
    """
    plan = plan_of(settings)
    return step_of(plan.share_std, plan.clip_norm * most_terms(settings))


def most_terms(settings: Settings) -> float:
    """How many clipped terms a holder's sum of a round is at most as long as."""
    whole = settings.privacy.unit == Unit.HOLDER
    return 1.0 if whole else most_units(settings.train.batch)


def divisor(settings: Settings, contributions: int) -> float:
    """What the sum of so many contributions is divided by: a public number."""
    whole = settings.privacy.unit == Unit.HOLDER
    return contributions * (1.0 if whole else float(settings.train.batch))


def step_of_sum(settings: Settings) -> float:
    """The same of a noisy sum, in units of privacy.

    Raises:
        ConfideError: ``sum.range``.
    """
    return step_of(plan_of_sum(settings).share_std, longest_sum(settings))


def longest_sum(settings: Settings) -> float:
    """How many units a noisy sum counts at most behind masks, where nothing may wrap: those of the
    largest holder, which ``train.batch`` is the rate's share of."""
    return most_units(math.ceil(settings.train.batch / settings.train.rate))


def planned_steps(settings: Settings) -> tuple[GaussianSteps, ...]:
    """All that one holder may release in the run: every step of every round, and every sum."""
    plan = plan_of(settings)
    return (plan.steps(plan.max_rounds), *steps_of_sums(settings))


def planned_unmasked(settings: Settings) -> tuple[GaussianSteps, ...]:
    """What ``planned_steps`` is worth to somebody before whom every mask fails."""
    plan = plan_of(settings)
    bare = math.sqrt(plan.honest)
    sums = (
        replace(step, noise_multiplier=step.noise_multiplier / bare)
        for step in steps_of_sums(settings)
    )
    return (plan.unmasked(plan.max_rounds), *sums)


def most_units(batch: int) -> float:
    """How many clipped units a sum may be as long as, for the divisor ``batch``: so many more than
    it as chance may draw (the probability of more is below 1e-20 where the rate times the units of
    a holder is the batch). A holder cuts its sum to that length, and the gate takes no longer one.
    """
    return batch + 10 * math.sqrt(batch) + 20
