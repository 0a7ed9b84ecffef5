"""``confide report verify``: recompute a report from the holders' ledgers alone.

Nothing that the coordinator wrote is taken on trust: chain, events and epsilon come from the
ledger files, and every difference to report.json is named. A holder whose ledger is not in the
folder is listed as not checked, never as agreeing; a ledger that the report relied on and that
is gone is a difference. Reads only; never writes a ledger, and never needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy import accountant
from ...common.privacy.accountant import GaussianSteps
from ...common.privacy.ledger import Entry, Ledger, Receipt, in_words
from ...common.privacy.plan import Trust
from . import finite, load_report

TOLERANCE = 1e-6  # relative; both sides run the same accountant on the same events


@dataclass(frozen=True, kw_only=True)
class LedgerFacts:
    """What one ledger says of one run; ``unit`` in words, empty where no noise was charged.
    ``fault`` names why it could not be read, or is empty."""

    path: str
    ledger_id: str = ""
    heads: frozenset[str] = frozenset()
    steps: tuple[GaussianSteps, ...] = ()
    unit: str = ""
    fault: str = ""

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


@dataclass(frozen=True, kw_only=True)
class HolderVerdict:
    """One holder: its epsilon from the ledger alone, or None when there was no ledger."""

    name: str
    epsilon_pld: float | None
    reported: float | None
    differences: tuple[str, ...]

    @property
    def checked(self) -> bool:
        return self.epsilon_pld is not None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome for a run."""

    run: str
    holders: tuple[HolderVerdict, ...]
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "agrees": self.agrees,
            "differences": list(self.differences),
            "holders": [
                {
                    "name": holder.name,
                    "checked": holder.checked,
                    "epsilon_pld": finite(holder.epsilon_pld),
                    "reported": holder.reported,
                    "differences": list(holder.differences),
                }
                for holder in self.holders
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one holder spent in this run, and how that is known."""

    name: str
    rounds: tuple[int, ...]
    receipts: tuple[Receipt, ...]
    steps: tuple[GaussianSteps, ...]
    basis: str
    open_rounds: int
    ledger: LedgerFacts | None


def read_ledgers(folder: Path, run: str) -> dict[str, LedgerFacts]:
    """The ledgers below ``holders/``, by the holder's name; a broken one is a fault, no error."""
    paths = sorted(folder.glob("holders/*/ledger.sqlite"))
    return {path.parent.name: _read_ledger(path, run) for path in paths}


def verify_run(folder: Path) -> Verdict:
    """Recompute the report of a run folder.

    Raises:
        ConfideError: ``report.missing``, ``report.corrupt``, ``report.schema``, or
            ``report.no-ledgers`` when there is nothing to verify with.
    """
    report = load_report(folder)
    run = str(report["run"]["id"])
    ledgers = read_ledgers(folder, run)
    if not ledgers:
        raise ConfideError(
            "report.no-ledgers",
            f"The run folder {folder.name!r} has no holders/*/ledger.sqlite to verify with.",
            "Ledgers stay with their holders; each can check its own with `confide ledger verify`.",
        )
    delta = float(report["claim"]["delta"])
    unit = in_words(str(report["claim"]["unit"]), str(report["settings"]["data.person"]))
    rows = {str(row["name"]): row for row in report["holders"]}
    holders = tuple(
        _verify_holder(name, rows.get(name), ledgers.get(name), delta, unit)
        for name in sorted(rows.keys() | ledgers.keys())
    )
    found = [f"{holder.name}: {text}" for holder in holders for text in holder.differences]
    found += _verify_claim(report, holders)
    return Verdict(run=run, holders=holders, differences=tuple(found))


def _verify_holder(
    name: str, row: Mapping[str, Any] | None, facts: LedgerFacts | None, delta: float, unit: str
) -> HolderVerdict:
    reported = row["epsilon_pld"] if row else None
    if facts is None:
        gone = ("its ledger is gone, although the report relies on it",)
        missing = gone if row and row["ledger"] else ()
        return HolderVerdict(name=name, epsilon_pld=None, reported=reported, differences=missing)
    if facts.fault:
        return HolderVerdict(
            name=name, epsilon_pld=None, reported=reported, differences=(facts.fault,)
        )
    epsilon = accountant.epsilon_pld(facts.steps, delta) if facts.steps else 0.0
    differences = (
        _row_differences(row, facts, epsilon, delta, unit)
        if row
        else ["it is not in the report", *_differs("epsilon by PLD", epsilon, 0.0)]
    )
    return HolderVerdict(
        name=name, epsilon_pld=epsilon, reported=reported, differences=tuple(differences)
    )


def _row_differences(
    row: Mapping[str, Any], facts: LedgerFacts, epsilon: float, delta: float, unit: str
) -> list[str]:
    found = _differs("epsilon by PLD", epsilon, row["epsilon_pld"])
    if row["epsilon_rdp"] is not None:
        rdp = accountant.epsilon_rdp(facts.steps, delta) if facts.steps else 0.0
        found += _differs("epsilon by RDP", rdp, row["epsilon_rdp"])
    told = tuple(GaussianSteps(**event) for event in row["events"])
    if not (covers(told, facts.steps) and covers(facts.steps, told)):
        found.append(f"the report has {_count(told)} steps, the ledger {_count(facts.steps)}")
    receipt = Receipt.from_json(row["receipt"]) if row["receipt"] else None
    return found + facts.against(receipt, unit)


def _verify_claim(report: Mapping[str, Any], holders: Sequence[HolderVerdict]) -> list[str]:
    """The claim is the largest epsilon of all holders, where there is no ledger as reported."""
    claim = report["claim"]
    if report["settings"]["privacy.trust"] == "off":
        return ["claim: noise was off, but the report says private"] if claim["private"] else []
    values = [holder.epsilon_pld if holder.checked else holder.reported for holder in holders]
    if None in values:
        return ["claim: it says private, with a holder unknown"] if claim["private"] else []
    largest = max((value for value in values if value is not None), default=0.0)
    found = _differs("claim: epsilon", largest, claim["epsilon"])
    planned = claim["planned_epsilon"]
    if claim["private"] and planned is not None and largest > planned * (1 + TOLERANCE):
        found.append(f"claim: epsilon {largest:.6g} is more than the planned {planned:g}")
    return found


def _differs(what: str, ledger: float, report: float | None) -> list[str]:
    if report is None:
        return [] if math.isinf(ledger) else [f"{what} is {ledger:.6g}, the report has none"]
    if math.isclose(ledger, report, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return []
    return [f"{what} is {ledger:.6g}, the report says {report:.6g}"]


def covers(whole: Sequence[GaussianSteps], part: Sequence[GaussianSteps]) -> bool:
    """Whether ``whole`` holds every step of ``part``: same noise, same rate, as many or more."""
    counts = _by_kind(whole)
    return all(counts.get(kind, 0) >= count for kind, count in _by_kind(part).items())


def _by_kind(steps: Sequence[GaussianSteps]) -> dict[tuple[float, float], int]:
    counts: dict[tuple[float, float], int] = {}
    for step in steps:
        kind = (step.noise_multiplier, step.sampling_rate)
        counts[kind] = counts.get(kind, 0) + step.steps
    return counts


def _count(steps: Sequence[GaussianSteps]) -> int:
    return sum(step.steps for step in steps)


def _is_noised(entry: Entry, run: str) -> bool:
    charged = entry.payload["state"] == "reserved" and entry.payload["run"] == run
    return bool(charged and entry.payload["plan"]["trust"] != Trust.OFF)


def _unit(entry: Entry) -> str:
    return in_words(entry.payload["plan"]["unit"], entry.payload.get("person", ""))


def _read_ledger(path: Path, run: str) -> LedgerFacts:
    place = path.relative_to(path.parents[2]).as_posix()
    try:
        with Ledger.open(path, create=False) as ledger:
            entries = ledger.entries()
            return LedgerFacts(
                path=place,
                ledger_id=ledger.ledger_id,
                heads=frozenset(entry.hash for entry in entries),
                steps=tuple(ledger.steps(run)),
                unit=" and ".join(sorted({_unit(e) for e in entries if _is_noised(e, run)})),
            )
    except ConfideError as error:
        return LedgerFacts(path=place, fault=f"its ledger cannot be relied on [{error.code}]")
