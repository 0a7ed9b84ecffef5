"""The claim and what it means.

It is of **everything that was ever released on a holder's text**, since that is what somebody who
saw it all can use. Disjoint holders compose in parallel: the claim is the largest figure of all
holders, never the mean, and it is withdrawn when a hard check fails. Which sentence rests on what:

- One run, of a plan that was fixed beforehand: the privacy loss distribution of the *whole* plan
  (Koskela et al. 2020), also where the run ended early or a holder took part less, since both may
  follow from what was seen (``BY_PLAN``).
- Several runs: the filters and the odometer of ``common.privacy.filters``, which hold whatever one
  run showed before the next was set up (``BY_FILTER``).

This run's own figures and the PLD sum of all runs stand beside the claim, labelled as what they
are. What is said of an attacker, of several records of one person and of other deltas is the worst
over the holders with the largest figures, from their whole plans; of several runs no more is known
than epsilon and delta, and an attacker's success follows from those alone.

No figure is given for somebody who sees the adapter alone: it would rest on not knowing which
holders took part, and this report says who did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...common.plans import plan_of, planned_unmasked
from ...common.privacy import accountant, statement
from ...common.privacy.groups import ACCOUNTING, group_epsilon
from ...common.privacy.plan import Trust, Unit, relation_of
from . import Json
from .accounts import Account, Steps
from .reading import RunRecord

GROUP_SIZES = (2, 5)
CURVE_DELTAS = tuple(10.0**power for power in range(-9, -1))
MOST_COMPARED = 4
ADVERSARY = (
    "everyone who sees the updates, the adapter, this report and those of all other runs on the "
    "same text, the coordinator included, with any knowledge beside the holders' secret keys"
)
IN_SUMS = (
    "everyone who sees the sums of at least {least} contributions, the adapter, this report and"
    " those of all other runs on the same text, the coordinator and up to {colluding} of the other"
    " holders together included, with any knowledge beside the secret keys of the others"
)
NO_BETTER = (
    "With one share left each holder adds all of the noise: this is no better than"
    " privacy.trust = 'local'."
)
MASKS = "The masks hold as long as ChaCha20, HPKE (RFC 9180; ML-KEM-768 and X25519) and Ed25519 do."
INTEGRITY = (
    "Of a secure sum nobody sees the parts: a holder that sends a wrong value spoils the sum and is"
    " not named, and no robust rule withstands it; a sum longer than any honest one is refused."
)
BY_PLAN = (
    "It is the figure of the whole plan, which was fixed before the run, however early the run"
    " ended: privacy loss distribution (PLD; Koskela et al. 2020)."
)
BY_FILTER = (
    "It holds whatever one run showed before the next was set up, by bounds for adaptive"
    " composition that the holder's ledger keeps: Gaussian differential privacy where every unit is"
    " used in each step (Smith and Thakurta 2022), otherwise a Renyi filter (Feldman and Zrnic"
    " 2021)."
)


_TIERS_OF = (
    'the tiers of Ponomareva et al. 2023 ("How to DP-fy ML", section 5.2). NIST SP 800-226 asks to'
    " read it together with the unit, with what was assumed, and with delta."
)
TIERS = (
    (1.0, "strong", f"At most 1 is strong by {_TIERS_OF}"),
    (10.0, "reasonable", f"Above 1 and at most 10 is reasonable by {_TIERS_OF}"),
    (math.inf, "weak", f"Above 10 is weak, or no formal promise at all, by {_TIERS_OF}"),
)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A holder's part of the claim.

    Attributes:
        account: what is known of it.
        spent: epsilon of what it was charged in this run; None where nothing is known.
        planned: epsilon of all that it was to release in this run.
        all_runs: the PLD sum of all its runs, by its newest receipt or its ledger.
        proven: epsilon of everything ever released on its text, this run in full.
    """

    account: Account
    spent: float | None
    planned: float | None
    all_runs: float | None
    proven: float | None


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a claim rests on. ``histories`` are the different whole plans with the largest figures,
    of holders with one run, largest first; ``pair`` is epsilon and delta of those with several.
    Both are empty where nothing is promised or known. ``unproven`` names the holders of which
    nothing is proven."""

    private: bool
    epsilon: float | None
    delta: float
    unit: Unit
    runs: int
    histories: tuple[Steps, ...]
    pair: tuple[tuple[float, float], ...]
    unproven: tuple[str, ...] = ()


def held(
    run: RunRecord,
    account: Account,
    spent: float | None,
    planned: float | None,
    all_runs: float | None,
) -> Held:
    """What a holder's account proves: at least the plan of this run, and the sum of all."""
    parts = [account.proven or 0.0, all_runs or 0.0, planned or 0.0, spent or 0.0]
    known = run.private and planned is not None
    return Held(
        account=account,
        spent=spent,
        planned=planned,
        all_runs=all_runs,
        proven=max(parts) if known else None,
    )


def promise_of(run: RunRecord, holders: Sequence[Held], failed: Sequence[str]) -> Promise:
    """The promise of a run; ``failed`` names the hard checks that failed."""
    delta = run.settings.privacy.delta
    proven = [one.proven for one in holders]
    bounded = run.private and all(e is not None and math.isfinite(e) for e in proven)
    epsilon = max((e for e in proven if e is not None), default=0.0) if bounded else None
    private = bounded and not failed
    known = [one for one in holders if one.account.whole]
    several = [one.proven for one in known if one.account.runs > 1 and one.proven is not None]
    single = [(one.account.whole, one.proven or 0.0) for one in known if one.account.runs == 1]
    return Promise(
        private=private,
        epsilon=epsilon,
        delta=delta,
        unit=run.unit,
        runs=max((one.account.runs for one in known), default=1),
        histories=most_spent(single) if private else (),
        pair=((max(several), delta),) if private and several else (),
        unproven=tuple(
            one.account.name
            for one in holders
            if run.private and not math.isfinite(math.inf if one.proven is None else one.proven)
        ),
    )


def most_spent(known: Sequence[tuple[Steps, float]]) -> tuple[Steps, ...]:
    """The different histories with the largest epsilons, largest first."""
    by_epsilon = sorted(dict(known).items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(steps for steps, _ in by_epsilon[:MOST_COMPARED])


def claim_json(
    run: RunRecord, promise: Promise, holders: Sequence[Held], failed: Sequence[str]
) -> Json:
    """The claim as report.json has it."""
    return {
        "private": promise.private,
        "sentence": _sentence(run, promise, failed),
        "unit": run.settings.privacy.unit,
        "neighbouring": str(relation_of(run.unit)),
        "epsilon": promise.epsilon,
        "delta": promise.delta,
        "runs": promise.runs,
        "proven_by": [text for text, said in _proofs(promise) if said],
        "this_run": {
            "spent": _most(one.spent for one in holders),
            "planned": _most(one.planned for one in holders),
        },
        "all_runs_by_pld": _most(one.all_runs for one in holders),
        "planned_epsilon": run.limit,
        "strength": strength(promise.epsilon) if promise.private else None,
        "adversary": _adversary(run) if promise.private else "nobody",
        "secure_sum": behind_masks(run, holders) if promise.private else None,
        "computational": statement.COMPUTATIONAL,
        **what_follows(promise, _sees(run)),
    }


def _adversary(run: RunRecord) -> str:
    plan = plan_of(run.settings)
    if plan.trust is not Trust.DISTRIBUTED:
        return ADVERSARY
    return IN_SUMS.format(least=plan.least, colluding=plan.colluding)


def strength(epsilon: float | None) -> Json | None:
    """A word on how strong the figure is, and where it is from."""
    if epsilon is None:
        return None
    most, word, why = next(tier for tier in TIERS if epsilon <= tier[0])
    return {"word": word, "at_most": most if math.isfinite(most) else None, "why": why}


def _proofs(promise: Promise) -> list[tuple[str, bool]]:
    return [
        (BY_PLAN, promise.private and not promise.pair),
        (BY_FILTER, bool(promise.pair)),
    ]


def _most(figures: Iterable[float | None]) -> float | None:
    """The largest that is known."""
    return max((figure for figure in figures if figure is not None), default=None)


def _sees(run: RunRecord) -> str:
    """What the attacker of the plain words sees."""
    plan = plan_of(run.settings)
    if plan.trust is not Trust.DISTRIBUTED:
        return "everything that left the holder"
    told = f", is told everything by {plan.colluding} others" if plan.colluding else ""
    return f"every sum that the holder is part of{told}"


def what_follows(promise: Promise, sees: str) -> Json:
    """The parts of the claim that are computed from the histories alone; of whoever ``sees``."""
    histories, sizes = promise.histories, GROUP_SIZES if promise.unit is Unit.RECORD else ()
    single = bool(histories) and not promise.pair
    return {
        "in_plain_words": _in_plain_words(promise, sees),
        "attacker": [
            {"false_positive_rate": blind, "true_positive_rate": best}
            for blind, best in statement.attacks(histories, promise.pair)
        ],
        "groups": [
            {
                "records": size,
                "epsilon": _largest([group_epsilon(h, promise.delta, size) for h in histories]),
                "accounting": ACCOUNTING,
            }
            for size in (sizes if single else ())
        ],
        "curve": [
            [delta, max(accountant.epsilon_pld(h, delta) for h in histories)]
            for delta in (CURVE_DELTAS if single else ())
        ],
    }


def _largest(found: Sequence[float | None]) -> float | None:
    """None, no promise at all, is the largest."""
    known = [epsilon for epsilon in found if epsilon is not None]
    return max(known) if len(known) == len(found) else None


def behind_masks(run: RunRecord, holders: Sequence[Held]) -> Json | None:
    """What a run with secure sums rests on besides, and what would be left without; None for a run
    whose holders add all of the noise."""
    plan = plan_of(run.settings)
    if plan.trust is not Trust.DISTRIBUTED:
        return None
    receipts = [one.account.newest for one in holders]
    of_all = [one.unmasked for one in receipts if one is not None]
    return {
        "least": plan.least,
        "colluding": plan.colluding,
        "shares": plan.honest,
        "unmasked_epsilon": max(
            accountant.epsilon_pld(planned_unmasked(run.settings), plan.delta), *of_all, 0.0
        ),
        "told": [
            f"Each sum was opened for at least {plan.least} contributions by"
            f" {plan.colluding + 1} holders, of whom one has to be honest; {plan.honest} shares of"
            " the noise are left once all who may collude have told theirs.",
            *([NO_BETTER] if plan.honest == 1 else []),
            MASKS,
            INTEGRITY,
        ],
    }


def _sentence(run: RunRecord, promise: Promise, failed: Sequence[str]) -> str:
    if run.private and (failed or promise.epsilon is None):
        reasons = [reason.rstrip(".") for reason in failed or [_unknown(promise)]]
        return f"{statement.NOT_PRIVATE}. {'. '.join(reasons)}."
    epsilon = math.inf if promise.epsilon is None else promise.epsilon
    plan = plan_of(run.settings)
    return statement.claim(
        epsilon=epsilon,
        delta=promise.delta,
        unit=run.unit,
        trust=plan.trust,
        least=plan.least,
        colluding=plan.colluding,
        runs=promise.runs,
    )


def _unknown(promise: Promise) -> str:
    named = ", ".join(promise.unproven[:3])
    more = len(promise.unproven) - 3
    return (
        f"What {named}{f' and {more} more' if more > 0 else ''} released is unknown, or more, over"
        " all runs on its text, than any bound here proves to be private"
    )


def _in_plain_words(promise: Promise, sees: str) -> str:
    if not promise.private:
        return (
            f"Nothing is promised about what the adapter or the updates reveal of a {promise.unit}."
        )
    if not (promise.histories or promise.pair):
        return "No more is known than the bound above, which every holder planned with."
    return statement.in_plain_words(
        *promise.histories, unit=promise.unit, pairs=promise.pair, sees=sees
    )
