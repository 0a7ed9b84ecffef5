"""What a ledger says: read once, as its owner, added up, and held against the policy's limit.

Reads ledgers alone, never private text, and imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.privacy.accountant import epsilon_pld
from ..common.privacy.chain import Book, canonical
from ..common.privacy.ledger import Entry, Ledger
from .policy import Policy
from .users import as_owner_of


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
    """What is left of a budget: ``limit`` less ``spent``, at ``delta``. Another run may take up to
    ``per_run`` of it. An epsilon is infinite once anything left without noise."""

    spent: float
    limit: float
    per_run: float
    delta: float

    @property
    def left(self) -> float:
        """Never below 0."""
        return max(0.0, self.limit - self.spent)

    def in_words(self) -> str:
        """A sentence for the administrator."""
        at = f"at delta = {self.delta:g}"
        if not math.isfinite(self.spent):
            return f"nothing is left {at}: something left without noise, and epsilon is infinite"
        said = f"epsilon {self.left:.4g} of {self.limit:g} is left {at} ({self.spent:.4g} is spent)"
        return f"{said}; a run may take {min(self.left, self.per_run):.4g} of it"

    def to_json(self) -> dict[str, Any]:
        """None where it is infinite."""
        figures = {"spent": self.spent, "limit": self.limit, "left": self.left}
        shown = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        return {"delta": self.delta, **shown}


def left_of(spending: Spending, policy: Policy) -> list[Left]:
    """What is left at the delta of the newest charge, and at the largest that the policy allows:
    the smaller the delta of a run, the more of its limit is spent."""
    deltas = {spending.newest_delta or policy.max_delta, policy.max_delta}
    return [
        Left(
            spent=spending.epsilon(delta),
            limit=policy.max_epsilon,
            per_run=policy.max_epsilon_per_run,
            delta=delta,
        )
        for delta in sorted(d for d in deltas if d > 0)
    ]
