"""What a ledger says: read once, as its owner, and added up.

Reads ledgers alone, never private text, and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.privacy.accountant import epsilon_pld
from ..common.privacy.chain import Book, canonical
from ..common.privacy.ledger import Entry, Ledger
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
