"""The promise in words: one sentence for everybody, and what it means for one person.

Figures are rounded so that the sentence never promises more than was computed: epsilon, delta
and an attacker's success upwards. Nothing here computes privacy; it reads the accountant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .accountant import GaussianSteps, true_positive_rate
from .plan import Plan, Relation, Trust, Unit, relation_of

NOT_PRIVATE = "NOT DIFFERENTIALLY PRIVATE"
COMPUTATIONAL = (
    "The differential privacy is computational (Mironov et al. 2009): noise and batches are drawn"
    " from ChaCha20 under a secret key of 256 bits, and the promise holds against everyone who"
    " cannot tell its stream from true randomness, which no known computer can."
)
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
    Unit.HOLDER: _Words(
        any_one="all that any single holder has was used",
        every_other="the updates of every other holder",
        particular="the text of one particular holder was used",
        absent="the holders whose text was not used",
        present="those whose text was",
        neighbours={
            Relation.ZERO_OUT: "zero-out: one holder's update replaced by zero; that it takes part"
            " is public"
        },
    ),
}


def claim(
    *,
    epsilon: float,
    delta: float,
    unit: Unit = Unit.RECORD,
    relation: Relation | None = None,
    trust: Trust = Trust.LOCAL,
    least: int = 1,
    colluding: int = 0,
    runs: int = 1,
) -> str:
    """The claim in one sentence, with unit, neighbouring relation, adversary and both numbers.

    ``epsilon`` is the largest of all holders: disjoint holders compose in parallel. It is of all
    ``runs`` on a holder's text together. Behind masks, of ``least`` contributions and more, it is
    against whoever sees the sum alone and is told everything by up to ``colluding`` holders.
    """
    if trust is Trust.OFF or not math.isfinite(epsilon):
        whom = "a holder" if unit is Unit.HOLDER else f"a {unit} of a holder"
        return f"{NOT_PRIVATE}: no noise protects {whom}."
    words, relation = _WORDS[unit], relation or relation_of(unit)
    of_all = f" from all {runs} runs on its text together" if runs > 1 else ""
    whom, noise = "anyone, the coordinator included,", "local noise"
    if trust is Trust.DISTRIBUTED:
        whom, noise = in_sums(least, colluding), "noise in shares behind a secure sum"
    return (
        f"Whether {words.any_one} changes what {whom} can learn{of_all}"
        f" by at most epsilon = {_up(epsilon, 2)} at delta = {delta_text(delta)}"
        f" ({words.neighbours[relation]}; {noise}; computational differential privacy)."
    )


def in_sums(least: int, colluding: int) -> str:
    """Whom a secure sum protects against, in words."""
    others = {0: "", 1: " and one other holder together", 2: " and any two others together"}
    with_them = others.get(colluding, f" and any {colluding} others together")
    return (
        f"anyone who sees the sums of at least {least} holders alone, the coordinator{with_them}"
        " included,"
    )


def delta_text(delta: float) -> str:
    """Delta for people: one in so many, rounded so that it never looks smaller than it is."""
    return f"1 in {math.floor(1 / delta * (1 + 1e-12)):,}"


def claim_of(plan: Plan, epsilon: float) -> str:
    """The claim of a plan of which ``epsilon`` was really spent."""
    return claim(
        epsilon=epsilon,
        delta=plan.delta,
        unit=plan.unit,
        relation=plan.relation,
        trust=plan.trust,
        least=plan.least,
        colluding=plan.colluding,
    )


def attacks(
    histories: Sequence[Sequence[GaussianSteps]], pairs: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float]]:
    """False-positive rate and best true-positive rate of any attacker, the worst at each rate of
    all the histories, and of all ``pairs`` of epsilon and delta of which no more is known; empty
    without any."""
    if not (histories or pairs):
        return []
    return [(blind, _best(histories, pairs, blind)) for blind in FALSE_POSITIVE_RATES]


def _best(
    histories: Sequence[Sequence[GaussianSteps]],
    pairs: Sequence[tuple[float, float]],
    blind: float,
) -> float:
    of_steps = [true_positive_rate(steps, false_positive_rate=blind) for steps in histories]
    return max([*of_steps, *(_best_of_pair(*pair, blind) for pair in pairs)])


def _best_of_pair(epsilon: float, delta: float, blind: float) -> float:
    """The most that one (epsilon, delta) allows (Kairouz et al. 2015, theorem 2.1)."""
    steep = delta + math.exp(min(epsilon, 700.0)) * blind
    flat = 1 - math.exp(-epsilon) * (1 - delta - blind)
    return min(1.0, max(min(steep, flat), blind))


def in_plain_words(
    *histories: Sequence[GaussianSteps],
    unit: Unit = Unit.RECORD,
    pairs: Sequence[tuple[float, float]] = (),
    sees: str = "everything that left the holder",
) -> str:
    """What one or several holders' steps mean for whoever is behind one unit at any of them: the
    best that any attacker can do who ``sees`` so much. ``pairs`` as for ``attacks``."""
    words = _WORDS[unit]
    found = attacks(histories, pairs)
    if all(best == 1 for _, best in found):
        return f"An attacker may find out with certainty whether {words.any_one}."
    told = " ".join(
        f"Accepting a false alarm for {blind:.0%} of {words.absent}, an attacker finds at most"
        f" {_up(100 * best, 1)} % of {words.present} (a blind guess finds {blind:.0%})."
        for blind, best in found
    )
    return (
        f"Suppose an attacker sees {sees}, knows {words.every_other} and"
        f" wants to know whether {words.particular}. {told}"
    )


def _up(value: float, digits: int) -> str:
    """Rounded upwards; more digits where two would print 0."""
    while 0 < value < 10**-digits and digits < 12:
        digits += 1
    scale = 10**digits
    # A value that already has few digits must not be pushed up by its own representation error.
    return f"{math.ceil(round(value * scale, 6)) / scale:.{digits}f}"
