"""What may still be charged to a ledger, and what is proven of everything that was.

**The limit** (``objection``). Everything that ever leaves under one limit L, whatever chose it, is
(L, delta)-DP. Let P be the whole plan of the first run, which stands in the first charge, before
anything was released. A charge is allowed in two cases.

1. *Alone*: this run is the only one ever charged, under one plan, no more than that plan has been
   charged with it, and the PLD of the plan is at most L. Within a plan nothing is chosen by what
   was seen, but when to stop and whom to ask; whoever stops or skips sees less than the whole plan
   shows, with the same settings, so that the plan's figure bounds it.
2. *Filtered*: the filters hold with this charge (``filters.enforced``), and the first run is not
   one that had the limit for itself.

A first run *has the limit for itself* if P is within L by PLD and not by the filters. That is
settled with P, and no other run may ever follow it: then all that was released is a part of P, case
1, and (L, delta)-DP. Otherwise, if P is within the filters for L, so is every part of it, and with
case 2 every history is within the filters. If P is within L by neither, case 1 never applies. In
each of the three, decided beforehand, one bound holds for every history, and nothing is added up.

A run whose plan changes half-way is not alone, and counts as several runs. Where runs have
different deltas, a charge is held to the smallest of them: less is allowed then, never more. A
limit that is raised later bounds what is told from then on (``proven``) only as one of the
odometer's levels does.

**What is told** (``proven``). Of one run under one plan: the PLD of the *whole* plan, for every
holder, however many rounds it took part in: its part may have ended because of what was seen. Of
several runs: the odometer over what was charged, with all that is left of the run that is asked
for, so that its rounds to come are in it too; at least the PLD sum.
"""

from __future__ import annotations

import math
from typing import TypeGuard

from ..errors import ConfideError
from . import filters
from .accountant import epsilon_pld, within
from .chain import Book, Charge, RunPlan, exhausted, run_exhausted
from .filters import Terms, enforced
from .steps import covers, merge, missing


def planned(charge: Charge) -> RunPlan:
    """The run of a charge, with everything that it is planned to release."""
    whole = charge.whole or (charge.plan.steps(charge.plan.max_rounds),)
    return RunPlan(run=charge.run, whole=merge(whole), delta=charge.plan.delta)


def terms_of(book: Book, charge: Charge, limit: float | None) -> Terms:
    """What the ledger's first charge settled; it is this one where there is none yet."""
    first = planned(charge)
    return book.terms or filters.settle(first.whole, first.delta, limit)


def objection(
    book: Book, charge: Charge, limit: float | None, run_limit: float | None
) -> ConfideError | None:
    """Why the charge exceeds the limit over all runs or that of its own run, or None."""
    if _is_limit(limit) and not _fits(book, charge, limit, run=None):
        return exhausted(book, charge.plan, limit)
    if _is_limit(run_limit) and not _fits(book, charge, run_limit, run=charge.run):
        return run_exhausted(charge.run, run_limit)
    return None


def _is_limit(limit: float | None) -> TypeGuard[float]:
    return limit is not None and limit < math.inf


def _fits(book: Book, charge: Charge, limit: float, *, run: str | None) -> bool:
    """Whether the charge is allowed, see above, over all runs or over one that is named."""
    plan, after = planned(charge), merge((*book.steps(run), charge.plan.steps()))
    plans = book.plans_of(run)
    alone = set(plans) <= {plan} and covers(plan.whole, after)
    if alone and within(plan.whole, plan.delta, limit):
        return True
    terms = terms_of(book, charge, limit)
    limits = {limit} if terms.limit is None or run is not None else {limit, terms.limit}
    if not alone and any(_has_for_itself(plans[0], terms, most) for most in limits):
        return False
    return enforced(terms, after, limit, min({plan.delta, *book.deltas}))


def _has_for_itself(first: RunPlan, terms: Terms, limit: float) -> bool:
    by_filter = enforced(terms, first.whole, limit, first.delta)
    return not by_filter and within(first.whole, first.delta, limit)


def proven(book: Book, run: str, delta: float) -> float:
    """What is proven of everything that was charged, and of all that is left of ``run``, at
    ``delta``: 0 before the first charge, inf without noise or above the odometer's levels."""
    plans, spent = book.plans_of(None), book.steps(None)
    if not plans or book.terms is None:
        return 0.0
    if len(plans) == 1 and covers(plans[0].whole, spent):
        return epsilon_pld(plans[0].whole, delta)
    own = book.plans_of(run)
    left = missing(own[-1].whole, book.steps(run)) if own else ()
    told = filters.bound(book.terms, merge((*spent, *left)), delta)
    held = book.terms.limit
    if held is not None and not book.raised and enforced(book.terms, spent, held, delta):
        told = min(told, held)  # the holder refuses whatever of the run would exceed it
    return max(told, epsilon_pld(spent, delta))
