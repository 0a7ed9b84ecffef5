"""The promise in words: one sentence for everybody, and what it means for one person.

Figures are rounded so that the sentence never promises more than was computed: epsilon, delta
and an attacker's success upwards. Nothing here computes privacy; it reads the accountant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .accountant import GaussianSteps, true_positive_rate
from .plan import Plan, Relation, Trust, Unit

NOT_PRIVATE = "NOT DIFFERENTIALLY PRIVATE"
FALSE_POSITIVE_RATES = (0.01, 0.05)

_RELATIONS = {Relation.ADD_OR_REMOVE_ONE: "add or remove one {unit}"}


def claim(
    *,
    epsilon: float,
    delta: float,
    unit: Unit = Unit.RECORD,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    trust: Trust = Trust.LOCAL,
) -> str:
    """The claim in one sentence, with unit, neighbouring relation, adversary and both numbers.

    ``epsilon`` is the largest of all holders: disjoint holders compose in parallel.
    """
    if trust is Trust.OFF or not math.isfinite(epsilon):
        return f"{NOT_PRIVATE}: no noise protects a {unit} of a holder."
    neighbours = _RELATIONS[relation].format(unit=unit)
    return (
        f"Whether any single {unit} of a holder was used changes what anyone, the coordinator"
        f" included, can learn by at most epsilon = {_up(epsilon, 2)} at delta = {delta:.12g}"
        f" ({neighbours}; local noise)."
    )


def claim_of(plan: Plan, epsilon: float) -> str:
    """The claim of a plan of which ``epsilon`` was really spent."""
    return claim(
        epsilon=epsilon,
        delta=plan.delta,
        unit=plan.unit,
        relation=plan.relation,
        trust=plan.trust,
    )


def in_plain_words(steps: Sequence[GaussianSteps], *, unit: Unit = Unit.RECORD) -> str:
    """What the steps mean for whoever is behind one unit: the best that any attacker can do."""
    rates = [true_positive_rate(steps, false_positive_rate=a) for a in FALSE_POSITIVE_RATES]
    if all(rate == 1 for rate in rates):
        return f"An attacker may find out with certainty whether a {unit} was used."
    found = " ".join(
        f"Accepting a false alarm for {a:.0%} of the {unit}s that were not used, an attacker finds"
        f" at most {_up(100 * rate, 1)} % of those that were (a blind guess finds {a:.0%})."
        for a, rate in zip(FALSE_POSITIVE_RATES, rates, strict=True)
    )
    return (
        f"Suppose an attacker sees everything that left the holder, knows every other {unit} and"
        f" wants to know whether one particular {unit} was used. {found}"
    )


def _up(value: float, digits: int) -> str:
    """Rounded upwards; more digits where two would print 0."""
    while 0 < value < 10**-digits and digits < 12:
        digits += 1
    scale = 10**digits
    # A value that already has few digits must not be pushed up by its own representation error.
    return f"{math.ceil(round(value * scale, 6)) / scale:.{digits}f}"
