"""What a ledger says: read once, as its owner, added up, and held against the policy's limit.

Reads ledgers alone, never private text, and imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.privacy.accountant import epsilon_pld
from ...common.privacy.budget import objection, proven
from ...common.privacy.chain import Book, canonical
from ...common.privacy.ledger import Charge, Entry, Ledger
from ...common.privacy.plan import Plan
from ..guard.policy import Policy
from .users import as_owner_of

_NEXT_TO_NOTHING = 1e4  # a noise multiplier, whose one step tells next to nothing


@dataclass(frozen=True, kw_only=True)
class Spending:
    """The entries of a ledger and what they add up to, as they were when they were read."""

    entries: tuple[Entry, ...]
    book: Book

    @property
    def newest_delta(self) -> float | None:
        """The delta of the newest charge; None before the first."""
        deltas = [e.payload["plan"]["delta"] for e in self.entries if "plan" in e.payload]
        return float(deltas[-1]) if deltas else None

    def epsilon(self, delta: float, run: str | None = None) -> float:
        """Spent by a run, or by all, by PLD."""
        return epsilon_pld(self.book.steps(run), delta)

    @property
    def runs(self) -> tuple[str, ...]:
        """Every run that was charged, in order."""
        return tuple(dict.fromkeys(e.payload["run"] for e in self.entries if "run" in e.payload))

    def count(self, state: str) -> int:
        """How many entries have this state."""
        return sum(entry.payload["state"] == state for entry in self.entries)


def read_spending(path: Path) -> Spending:
    """Read a ledger that is there.

    SQLite mends what a crash left beside the file, also for who only reads; so root reads it as the
    owner of the folder, in which another could have put a link there.

    Raises:
        ConfideError: as ``Ledger.open``, and ``user.change``.
    """
    with as_owner_of(path.resolve().parent), Ledger.open(path, create=False) as ledger:
        entries = ledger.entries()
    book = Book()
    for entry in entries:
        book.take(entry.number, canonical(entry.payload), entry.hash)
    return Spending(entries=entries, book=book)


def make_ledger(path: Path) -> None:
    """Make a ledger that knows of nothing yet; one that is there stays as it is.

    Raises:
        ConfideError: as ``Ledger.open``.
    """
    Ledger.open(path).close()


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of a budget at ``delta``.

    Attributes:
        spent: by all runs so far, the PLD sum.
        taken: what is proven of everything, with all that ``run``, the newest, is planned to spend.
        limit, per_run: the policy's, over all runs and for one.
        open: whether another run may follow at all; a first run may have the limit for itself.
    """

    spent: float
    taken: float
    limit: float
    per_run: float
    delta: float
    run: str = ""
    open: bool = True

    @property
    def left(self) -> float:
        """For runs to come; never below 0."""
        return max(0.0, self.limit - self.taken) if self.open else 0.0

    def in_words(self) -> str:
        """A sentence for the administrator."""
        at = f"at delta = {self.delta:g}"
        if not math.isfinite(self.spent):
            return f"nothing is left {at}: something left without noise, and epsilon is infinite"
        said = f"epsilon {self.left:.4g} of {self.limit:g} is left {at} ({self.spent:.4g} is spent"
        said += f", {self.taken:.4g} with all of {self.run})" if self.run else ")"
        if not self.open:
            return f"{said}; no other run can follow within the limit"
        return f"{said}; another run may take about {min(self.left, self.per_run):.4g} of it"

    def to_json(self) -> dict[str, Any]:
        """None where it is infinite."""
        figures = {
            "spent": self.spent,
            "taken": self.taken,
            "limit": self.limit,
            "left": self.left,
        }
        shown = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        return {"delta": self.delta, **shown}


def left_of(spending: Spending, policy: Policy) -> list[Left]:
    """What is left at the delta of the newest charge, and at the largest that the policy allows:
    the smaller the delta of a run, the more of its limit is spent."""
    deltas = {spending.newest_delta or policy.max_delta, policy.max_delta}
    newest = spending.runs[-1] if spending.runs else ""
    return [
        Left(
            spent=spending.epsilon(delta),
            taken=proven(spending.book, newest, delta),
            limit=policy.max_epsilon,
            per_run=policy.max_epsilon_per_run,
            delta=delta,
            run=newest,
            open=_may_follow(spending.book, policy.max_epsilon, delta),
        )
        for delta in sorted(d for d in deltas if d > 0)
    ]


def _may_follow(book: Book, limit: float, delta: float) -> bool:
    """Whether a run that is next to nothing would be allowed after those that were charged."""
    tiny = Plan(
        clip_norm=1.0,
        noise_multiplier=_NEXT_TO_NOTHING,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=delta,
    )
    charge = Charge(run="\N{NULL}", round=1, task_hash="another", plan=tiny)
    return objection(book, charge, limit, None) is None
