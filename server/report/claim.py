"""The claim, what it means for one person, and the figure for outsiders beside it.

Disjoint holders compose in parallel: the claim is the largest epsilon of all holders, never the
mean, and it is withdrawn when a hard check fails. What is said of an attacker, of several records
of one person and of other deltas is the worst over the holders that spent most: over all of them
where there are at most ``MOST_COMPARED`` different histories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...common.privacy import accountant, outsider, statement
from ...common.privacy.accountant import GaussianSteps
from ...common.privacy.groups import ACCOUNTING, group_epsilon
from ...common.privacy.plan import Relation, Unit
from . import Json
from .accounts import Account
from .figures import Steps
from .reading import Run

GROUP_SIZES = (2, 5)
CURVE_DELTAS = tuple(10.0**power for power in range(-9, -1))
MOST_COMPARED = 4
ADVERSARY = (
    "everyone who sees the updates, the adapter or this report, the coordinator included, "
    "with any knowledge and any computing power"
)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a claim rests on, from a run folder or from the ledgers alone. ``histories`` are the
    different ones that spent most, largest first; empty where nothing is promised or known."""

    private: bool
    epsilon: float | None
    delta: float
    unit: Unit
    histories: tuple[Steps, ...]


def promise_of(
    run: Run, accounts: Sequence[Account], spent: Sequence[float | None], failed: Sequence[str]
) -> Promise:
    """The promise of a run; ``spent`` is each account's epsilon, ``failed`` the hard checks."""
    bounded = run.private and all(e is not None and math.isfinite(e) for e in spent)
    epsilon = max((e for e in spent if e is not None), default=0.0) if bounded else None
    private = bounded and not failed
    pairs = zip(accounts, spent, strict=True)
    known = [(a.steps, e or 0.0) for a, e in pairs if a.steps and not a.unknown]
    return Promise(
        private=private,
        epsilon=epsilon,
        delta=run.settings.privacy.delta,
        unit=run.unit,
        histories=most_spent(known) if private else (),
    )


def most_spent(known: Sequence[tuple[Steps, float]]) -> tuple[Steps, ...]:
    """The different histories with the largest epsilons, largest first."""
    by_epsilon = sorted(dict(known).items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(steps for steps, _ in by_epsilon[:MOST_COMPARED])


def claim_json(run: Run, promise: Promise, failed: Sequence[str]) -> Json:
    """The claim as report.json has it."""
    return {
        "private": promise.private,
        "sentence": _sentence(run, promise.epsilon, failed),
        "unit": run.settings.privacy.unit,
        "neighbouring": str(Relation.ADD_OR_REMOVE_ONE),
        "epsilon": promise.epsilon,
        "delta": promise.delta,
        "planned_epsilon": run.limit,
        "adversary": ADVERSARY if promise.private else "nobody",
        **what_follows(promise),
    }


def what_follows(promise: Promise) -> Json:
    """The parts of the claim that are computed from the histories alone."""
    histories, sizes = promise.histories, GROUP_SIZES if promise.unit is Unit.RECORD else ()
    return {
        "in_plain_words": _in_plain_words(promise),
        "attacker": [
            {"false_positive_rate": blind, "true_positive_rate": best}
            for blind, best in statement.attacks(histories)
        ],
        "groups": [
            {
                "records": size,
                "epsilon": _largest([group_epsilon(h, promise.delta, size) for h in histories]),
                "accounting": ACCOUNTING,
            }
            for size in (sizes if histories else ())
        ],
        "curve": [
            [delta, max(accountant.epsilon_pld(h, delta) for h in histories)]
            for delta in (CURVE_DELTAS if histories else ())
        ],
    }


def _largest(found: Sequence[float | None]) -> float | None:
    """None, no promise at all, is the largest."""
    known = [epsilon for epsilon in found if epsilon is not None]
    return max(known) if len(known) == len(found) else None


def _sentence(run: Run, epsilon: float | None, failed: Sequence[str]) -> str:
    if run.private and (failed or epsilon is None):
        reasons = f"A check failed: {'; '.join(failed)}" if failed else "A holder's part is unknown"
        return f"{statement.NOT_PRIVATE}. {reasons}."
    privacy, spent = run.settings.privacy, math.inf if epsilon is None else epsilon
    return statement.claim(epsilon=spent, delta=privacy.delta, unit=run.unit)


def _in_plain_words(promise: Promise) -> str:
    if not promise.private:
        return (
            f"Nothing is promised about what the adapter or the updates reveal of a {promise.unit}."
        )
    if not promise.histories:
        return "No more is known than the bound above, which every holder planned with."
    return statement.in_plain_words(*promise.histories, unit=promise.unit)


# --- outsiders ---


def outsider_json(run: Run, accounts: Sequence[Account], promise: Promise) -> Json:
    """Epsilon towards someone who sees the final adapter alone, or why none is given."""
    rate = _client_rate(run)
    reason = _why_not(run, accounts, promise, rate)
    epsilon, kinds = None, _one_round_each(run, accounts)
    if not reason and rate is not None:
        epsilon = outsider.worst_epsilon(kinds, rounds=run.draws, rate=rate, delta=promise.delta)
    return {
        "epsilon": epsilon,
        "delta": promise.delta,
        "client_rate": rate if epsilon is not None else None,
        "rounds": run.draws,
        "assumption": outsider.ASSUMPTION,
        "reason": reason,
    }


def _client_rate(run: Run) -> float | None:
    """The largest share of the connected holders that any round asked; None where unknown."""
    lines = run.rounds.values()
    if not lines or any(not 0 < line.asked <= line.connected for line in lines):
        return None
    return max(line.asked / line.connected for line in lines)


def _why_not(run: Run, accounts: Sequence[Account], promise: Promise, rate: float | None) -> str:
    if not promise.private:
        return "No claim is made at all."
    if run.summed:
        return "Sums over all holders were released besides: nothing was drawn for them."
    if not run.settings.round.holders:
        return "Every connected holder was asked in every round: nothing was drawn."
    if rate is None:
        return "The run did not note how many holders were connected in each round."
    if rate == 1:
        return "In some round every connected holder was asked: nothing was drawn."
    if any(len(account.steps) != 1 for account in accounts):
        return "A holder's noise or sampling rate changed within the run, or is not known."
    return ""


def _one_round_each(run: Run, accounts: Sequence[Account]) -> set[GaussianSteps]:
    count = run.settings.train.steps
    return {
        GaussianSteps(
            noise_multiplier=step.noise_multiplier, sampling_rate=step.sampling_rate, steps=count
        )
        for account in accounts
        for step in account.steps
    }
