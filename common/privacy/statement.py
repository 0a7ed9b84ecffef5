"""The promise in words: one sentence for everybody, and what it means for one person.

Figures are rounded so that the sentence never promises more than was computed: epsilon, delta
and an attacker's success upwards. Nothing here computes privacy; it reads the accountant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .accountant import GaussianSteps, true_positive_rate
from .plan import Plan, Relation, Trust, Unit

NOT_PRIVATE = "NOT DIFFERENTIALLY PRIVATE"
FALSE_POSITIVE_RATES = (0.01, 0.05)


@dataclass(frozen=True, kw_only=True)
class _Words:
    """How the sentences speak of a unit; a person is used by way of records."""

    any_one: str
    every_other: str
    particular: str
    absent: str
    present: str
    neighbours: dict[Relation, str]


_WORDS = {
    Unit.RECORD: _Words(
        any_one="any single record of a holder was used",
        every_other="every other record",
        particular="one particular record was used",
        absent="the records that were not used",
        present="those that were",
        neighbours={Relation.ADD_OR_REMOVE_ONE: "add or remove one record"},
    ),
    Unit.PERSON: _Words(
        any_one="the records of any single person at a holder were used",
        every_other="the records of every other person",
        particular="those of one particular person were used",
        absent="the persons whose records were not used",
        present="those whose records were",
        neighbours={
            Relation.ADD_OR_REMOVE_ONE: "add or remove one person, all records of one person at"
            " one holder"
        },
    ),
}


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
    words = _WORDS[unit]
    return (
        f"Whether {words.any_one} changes what anyone, the coordinator included, can learn by at"
        f" most epsilon = {_up(epsilon, 2)} at delta = {delta:.12g}"
        f" ({words.neighbours[relation]}; local noise)."
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


def attacks(histories: Sequence[Sequence[GaussianSteps]]) -> list[tuple[float, float]]:
    """False-positive rate and best true-positive rate of any attacker, the worst of all the
    histories at each rate; empty without any."""
    return [
        (blind, max(true_positive_rate(steps, false_positive_rate=blind) for steps in histories))
        for blind in (FALSE_POSITIVE_RATES if histories else ())
    ]


def in_plain_words(*histories: Sequence[GaussianSteps], unit: Unit = Unit.RECORD) -> str:
    """What one or several holders' steps mean for whoever is behind one unit at any of them: the
    best that any attacker can do."""
    words = _WORDS[unit]
    found = attacks(histories)
    if all(best == 1 for _, best in found):
        return f"An attacker may find out with certainty whether {words.any_one}."
    told = " ".join(
        f"Accepting a false alarm for {blind:.0%} of {words.absent}, an attacker finds at most"
        f" {_up(100 * best, 1)} % of {words.present} (a blind guess finds {blind:.0%})."
        for blind, best in found
    )
    return (
        f"Suppose an attacker sees everything that left the holder, knows {words.every_other} and"
        f" wants to know whether {words.particular}. {told}"
    )


def _up(value: float, digits: int) -> str:
    """Rounded upwards; more digits where two would print 0."""
    while 0 < value < 10**-digits and digits < 12:
        digits += 1
    scale = 10**digits
    # A value that already has few digits must not be pushed up by its own representation error.
    return f"{math.ceil(round(value * scale, 6)) / scale:.{digits}f}"
