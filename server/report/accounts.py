"""What each holder spent in a run, and how that is known.

The events are those of a holder's ledger when the folder holds one, otherwise those of its newest
receipt, plus what it may have charged without our knowing: who timed out, or was turned away at
the gate, has spent its round or its sum, and only the next receipt would say so. What a round
spends is in the plan of the run, which is the same at every holder. Nothing is estimated downwards.

The privacy loss distribution of one history takes a few tenths of a second, and a run may have a
thousand holders that all differ. Up to ``MOST_EXACT`` different histories all are computed on the
fine grid. Of more, those are that decide something: whoever the coarse grid puts above the plan,
and from the largest down until nobody left could be larger, so that the claim is the same as if all
had been. The rest stand with the coarse figure, which is above the fine one; ``exact`` says which
it is, and ``verify`` recomputes each in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...common.plans import plan_of, planned_steps, steps_of_sums
from ...common.privacy import accountant
from ...common.privacy.accountant import COARSE, INTERVAL, GaussianSteps, epsilon_pld
from ...common.privacy.ledger import Receipt
from ...common.privacy.steps import missing
from ..senders import NAMELESS
from .histories import History, Round
from .ledgers import LedgerFacts
from .reading import RunRecord

MOST_EXACT = 32
CURVE_POINTS = 12  # rounds at which epsilon is recomputed for the chart
CURVE_HOLDERS = 12  # more different holders than this: only the extremes are drawn
# Failures that come before a holder charges its ledger, so that nothing was spent.
BEFORE_CHARGE = (
    "ledger.budget-exhausted", "policy.", "contract.", "data.", "transport.gone",
    "sum.stranger", "sum.call", "sum.no-identity", "sum.no-key", "sum.opened", "sum.too-few",
)  # fmt: skip
Steps = tuple[GaussianSteps, ...]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one holder spent in this run. ``basis`` is ledger, receipt or plan; ``open_rounds``
    counts rounds in which it may have charged without our knowing. ``whole`` is what it was to
    release in this run, all rounds and sums; ``proven`` is epsilon of everything ever released on
    its text, this run in full, by its own word or ledger; None where neither is there."""

    name: str
    history: History
    steps: Steps
    basis: str
    open_rounds: int
    ledger: LedgerFacts | None
    whole: Steps = ()
    proven: float | None = None

    @property
    def runs(self) -> int:
        """How many runs its ledger knows, this one included."""
        if self.ledger is not None and not self.ledger.fault:
            return self.ledger.runs
        return self.newest.runs if self.newest else 1

    @property
    def limit(self) -> float | None:
        """The most epsilon, over all runs, that the holder says it allows."""
        if self.ledger is not None and not self.ledger.fault:
            return self.ledger.limit
        return self.newest.limit if self.newest else None

    @property
    def newest(self) -> Receipt | None:
        """The last receipt that it gave."""
        return self.history.newest


def accounts_of(run: RunRecord, ledgers: dict[str, LedgerFacts]) -> list[Account]:
    """Every holder's, by name."""
    rounds, sums = _OpenRounds(run.rounds), _OpenRounds(run.sums)
    return [
        _account(run, name, ledgers.get(name), rounds, sums) for name in _holder_names(run, ledgers)
    ]


def left_out(run: RunRecord) -> Iterable[tuple[int, str, str]]:
    """Round (or number of the sum), holder and code of each answer that was missing or refused."""
    for number, line in sorted([*run.sums.items(), *run.rounds.items()], key=lambda pair: pair[0]):
        for who, code in line.left_out:
            yield number, who, code


def _holder_names(run: RunRecord, ledgers: dict[str, LedgerFacts]) -> list[str]:
    """Every holder that is known by name, and every node that can be none of these."""
    known = set(run.histories) | set(ledgers)
    known |= {name for _, name, _ in left_out(run) if not name.startswith(NAMELESS)}
    strangers: set[str] = set()
    for line in (*run.rounds.values(), *run.sums.values()):
        nameless = {who for who, code in line.left_out if _may_charge(who, code)}
        if len(nameless) > len(known - line.answered):
            strangers |= nameless
    return sorted(known | strangers)


def _may_charge(name: str, code: str) -> bool:
    return name.startswith(NAMELESS) and not code.startswith(BEFORE_CHARGE)


def _account(
    run: RunRecord, name: str, ledger: LedgerFacts | None, rounds: _OpenRounds, sums: _OpenRounds
) -> Account:
    history = run.histories.get(name, History())
    steps: Steps = history.newest.steps_run if history.newest else ()
    basis, opened = "receipt" if history.newest else "plan", 0
    proven = history.newest.proven if history.newest else None
    if ledger is not None and not ledger.fault:
        steps, basis, proven = ledger.steps, "ledger", ledger.proven
        whole = ledger.whole
    else:
        opened = rounds.of(name, history.last_round)
        trained = plan_of(run.settings).steps(opened)
        summed = steps_of_sums(run.settings, sums.of(name, history.last_round))
        steps = (*steps, trained, *summed)
        whole = _whole(run, steps)
    return Account(
        name=name,
        history=history,
        steps=accountant.merge(steps),
        basis=basis,
        open_rounds=opened,
        ledger=ledger,
        whole=whole,
        proven=proven,
    )


class _OpenRounds:
    """Rounds in which a holder may have charged without our knowing. Where only a node's number
    is known, it may have been any holder that did not answer."""

    def __init__(self, rounds: Mapping[int, Round]) -> None:
        self._by_name: dict[str, set[int]] = {}
        self._nameless: list[tuple[int, frozenset[str]]] = []
        for number, line in rounds.items():
            charged = [who for who, code in line.left_out if not code.startswith(BEFORE_CHARGE)]
            for who in charged:
                self._by_name.setdefault(who, set()).add(number)
            if any(who.startswith(NAMELESS) for who in charged):
                self._nameless.append((number, line.answered))

    def of(self, name: str, after: int) -> int:
        rounds = {number for number in self._by_name.get(name, ()) if number > after}
        rounds |= {n for n, answered in self._nameless if n > after and name not in answered}
        return len(rounds)


def _whole(run: RunRecord, steps: Steps) -> Steps:
    """What a holder that was charged ``steps`` was to release in the run; at least what it did."""
    planned = planned_steps(run.settings)
    charged = any(step.steps for step in steps)
    return accountant.merge((*planned, *missing(steps, planned))) if charged else ()


def curves(
    run: RunRecord, accounts: Iterable[Account], spent: dict[str, float]
) -> dict[str, Points]:
    """epsilon after some of the rounds, for the chart, of holders that differ."""
    by_steps = {account.steps: spent[account.name] for account in accounts}
    shown = sorted(by_steps, key=lambda steps: by_steps[steps])
    if len(shown) > CURVE_HOLDERS:
        shown = [shown[0], shown[-1]]
    return {
        account.name: _curve(run, account)
        for account in accounts
        if account.newest and account.steps in shown
    }


Points = list[list[float]]


def _curve(run: RunRecord, account: Account) -> Points:
    marks = dict(account.history.marks)
    rounds = sorted(marks)
    chosen = sorted({*rounds[:: math.ceil(len(rounds) / CURVE_POINTS)], rounds[-1]})
    delta = run.settings.privacy.delta
    return [[float(r), accountant.epsilon_pld(marks[r], delta)] for r in chosen]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Epsilon by PLD; ``exact`` on the fine grid, otherwise a little above it."""

    epsilon: float
    exact: bool


def figure(steps: Steps, delta: float, *, exact: bool) -> Figure:
    """The figure of one history, on the grid asked for."""
    epsilon = epsilon_pld(steps, delta, interval=INTERVAL if exact else COARSE)
    return Figure(epsilon=epsilon, exact=exact)


def figures(histories: Iterable[Steps], delta: float, limit: float | None) -> dict[Steps, Figure]:
    """The figure of each different history; ``limit`` is the planned epsilon, if there is one."""
    different = sorted(set(histories))
    if len(different) <= MOST_EXACT:
        return {steps: figure(steps, delta, exact=True) for steps in different}
    found = {steps: figure(steps, delta, exact=False) for steps in different}
    largest = 0.0
    for steps in sorted(different, key=lambda steps: -found[steps].epsilon):
        coarse = found[steps].epsilon
        over = limit is not None and coarse > limit
        if coarse > largest or over:
            found[steps] = figure(steps, delta, exact=True)
            largest = max(largest, found[steps].epsilon)
    return found
