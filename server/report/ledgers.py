"""What the ledgers in a run folder say of the run. Reads only; never writes a ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import ConfideError
from ...common.privacy import budget
from ...common.privacy.accountant import GaussianSteps, epsilon_pld, merge
from ...common.privacy.chain import Book
from ...common.privacy.ledger import Entry, Ledger, Receipt, canonical, in_words
from ...common.privacy.plan import Plan, Trust
from ...common.privacy.steps import covers


@dataclass(frozen=True, kw_only=True)
class Charged:
    """One charge: the place of its entry, its run and round, and its steps."""

    number: int
    run: str
    round: int
    steps: GaussianSteps


@dataclass(frozen=True, kw_only=True)
class LedgerFacts:
    """What one ledger says of one run; ``unit`` in words, empty where no noise was charged.
    ``fault`` names why it could not be read, or is empty.

    ``deltas`` are those of the run's plans, ``released`` counts the updates that left, and
    ``charges`` lists every charge of every run in order, for the figures in between. ``whole`` is
    all that the run is to release; ``runs``, ``limit``, ``epsilon`` and ``proven`` are of all runs
    up to the last entry of this one, at the delta that was asked for; ``later`` counts the runs
    that were charged since."""

    path: str
    ledger_id: str = ""
    heads: frozenset[str] = frozenset()
    steps: tuple[GaussianSteps, ...] = ()
    unit: str = ""
    fault: str = ""
    deltas: frozenset[float] = frozenset()
    whole: tuple[GaussianSteps, ...] = ()
    runs: int = 0
    limit: float | None = None
    epsilon: float = math.inf
    proven: float = math.inf
    released: int = 0
    charges: tuple[Charged, ...] = ()
    later: int = 0
    numbers: Mapping[str, int] = field(default_factory=dict)  # hash -> place of the entry

    def by_round(self, run: str, last: int) -> tuple[GaussianSteps, ...]:
        """What the run had charged after round ``last``."""
        return merge(c.steps for c in self.charges if c.run == run and c.round <= last)

    def by_head(self, head: str) -> tuple[GaussianSteps, ...]:
        """What all runs together had charged when ``head`` was the newest entry."""
        place = self.numbers.get(head, -1)
        return merge(c.steps for c in self.charges if c.number <= place)

    def against(self, receipt: Receipt | None, unit: str) -> list[str]:
        """Where the ledger disagrees with a receipt, which it may exceed, or with the run's unit,
        for which its epsilon must be meant."""
        if self.fault:
            return [self.fault]
        problems = []
        if self.unit not in ("", unit):
            problems.append(f"its charges are per {self.unit}, the run is per {unit}")
        if receipt is None:
            return problems
        if receipt.ledger_id != self.ledger_id:
            problems.append("the receipt is of another ledger")
        elif receipt.head not in self.heads:
            problems.append("the receipt's head is not in the ledger's chain")
        if not covers(self.steps, receipt.steps_run):
            problems.append("the receipt has steps that the ledger does not have")
        return problems


def read_ledgers(folder: Path, run: str, delta: float) -> dict[str, LedgerFacts]:
    """The ledgers below ``holders/``, by the holder's name; a broken one is a fault, no error."""
    paths = sorted(folder.glob("holders/*/ledger.sqlite"))
    return {path.parent.name: read_ledger(path, _place(path), run, delta) for path in paths}


def _place(path: Path) -> str:
    return path.relative_to(path.parents[2]).as_posix()


def _is_charge(entry: Entry) -> bool:
    return bool(entry.payload["state"] == "reserved")


def _is_noised(entry: Entry) -> bool:
    return bool(entry.payload["plan"]["trust"] != Trust.OFF)


def _charged(entry: Entry) -> Charged:
    return Charged(
        number=entry.number,
        run=entry.payload["run"],
        round=entry.payload["round"],
        steps=Plan.from_json(entry.payload["plan"]).steps(),
    )


def _unit(entry: Entry) -> str:
    return in_words(entry.payload["plan"]["unit"], entry.payload.get("person", ""))


def read_ledger(path: Path, place: str, run: str, delta: float) -> LedgerFacts:
    """What one ledger says; a broken one is a fault, no error."""
    try:
        with Ledger.open(path, create=False) as ledger:
            entries = ledger.entries()
    except ConfideError as error:
        return LedgerFacts(path=place, fault=f"its ledger cannot be relied on [{error.code}]")
    mine = [e for e in entries if _is_charge(e) and e.payload["run"] == run]
    tasks = {entry.payload["task"] for entry in mine}
    left = [e for e in entries if e.payload["state"] == "released" and e.payload["task"] in tasks]
    # What other runs were charged later is for their reports to tell.
    last = max((entry.number for entry in (*mine, *left)), default=-1)
    book = _book(entries[: last + 1])
    plans = book.plans_of(run)
    return LedgerFacts(
        path=place,
        ledger_id=_book(entries[:1]).ledger_id,
        heads=frozenset(entry.hash for entry in entries),
        steps=book.steps(run),
        unit=" and ".join(sorted({_unit(entry) for entry in mine if _is_noised(entry)})),
        deltas=frozenset(float(entry.payload["plan"]["delta"]) for entry in mine),
        whole=plans[-1].whole if plans else (),
        runs=len(book.plans),
        limit=book.limit,
        epsilon=epsilon_pld(book.steps(None), delta),
        proven=budget.proven(book, run, delta),
        released=len(left),
        charges=tuple(_charged(entry) for entry in entries if _is_charge(entry)),
        numbers={entry.hash: entry.number for entry in entries},
        later=len({e.payload["run"] for e in entries[last + 1 :] if _is_charge(e)}),
    )


def _book(entries: Sequence[Entry]) -> Book:
    """The entries added up."""
    book = Book()
    for entry in entries:
        book.take(entry.number, canonical(entry.payload), entry.hash)
    return book
