"""``confide report verify``: recompute a report from the holders' ledgers alone.

Nothing that the coordinator wrote is taken on trust: chains, events, every epsilon, the claim's
sentence and what it says of an attacker come from the ledger files, and every difference to
report.json is named, as is a page that shows another report. A holder whose ledger is not in the
folder is listed as not checked, never as agreeing, and what it reported stands for it; a ledger
that the report relied on and that is gone is a difference. What no ledger knows (accuracy, who
was left out, costs) is not verified. Reads only; never writes a ledger, and never needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.errors import ConfideError
from ...common.privacy import accountant, outsider, statement
from ...common.privacy.accountant import GaussianSteps
from ...common.privacy.ledger import Receipt, in_words
from ...common.privacy.plan import Unit
from . import finite, load_report
from .claim import Promise, most_spent, what_follows
from .figures import Steps, figure
from .html import render
from .ledgers import LedgerFacts, covers, read_ledgers

TOLERANCE = 1e-6  # relative; both sides run the same accountant on the same events
PRV_ERROR = 0.02  # and a thousandth of epsilon: PLD and PRV are two discretisations of one number


@dataclass(frozen=True, kw_only=True)
class HolderVerdict:
    """One holder: its epsilon from the ledger alone, or None when there was no ledger."""

    name: str
    epsilon_pld: float | None
    reported: float | None
    differences: tuple[str, ...]
    steps: Steps = ()

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


def verify_run(folder: Path) -> Verdict:
    """Recompute the report of a run folder.

    Raises:
        ConfideError: ``report.missing``, ``report.corrupt``, ``report.schema``, or
            ``report.no-ledgers`` when there is nothing to verify with.
    """
    report = load_report(folder)
    try:
        return _verify(folder, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfideError(
            "report.corrupt",
            f"report.json of {folder.name!r} lacks or spoils what a report has"
            f" ({type(error).__name__}).",
            "Delete it; `confide report show` computes it again from the run folder.",
        ) from error


def _verify(folder: Path, report: Mapping[str, Any]) -> Verdict:
    run = str(report["run"]["id"])
    ledgers = read_ledgers(folder, run)
    if not ledgers:
        raise ConfideError(
            "report.no-ledgers",
            f"The run folder {folder.name!r} has no holders/*/ledger.sqlite to verify with.",
            "Ledgers stay with their holders; each can check its own with `confide ledger verify`.",
        )
    rows = {str(row["name"]): row for row in report["holders"]}
    holders = tuple(
        _verify_holder(name, rows.get(name), ledgers.get(name), report)
        for name in sorted(rows.keys() | ledgers.keys())
    )
    found = [f"{holder.name}: {text}" for holder in holders for text in holder.differences]
    found += [f"claim: {text}" for text in _verify_claim(report, holders)]
    found += [f"outsider: {text}" for text in _verify_outsider(report, holders)]
    found += _verify_page(folder, report)
    return Verdict(run=run, holders=holders, differences=tuple(found))


# --- one holder ---


def _verify_holder(
    name: str,
    row: Mapping[str, Any] | None,
    facts: LedgerFacts | None,
    report: Mapping[str, Any],
) -> HolderVerdict:
    reported = row["epsilon_pld"] if row else None
    if facts is None or facts.fault:
        gone = ("its ledger is gone, although the report relies on it",)
        missing = gone if row and row["ledger"] else ()
        return HolderVerdict(
            name=name,
            epsilon_pld=None,
            reported=reported,
            differences=(facts.fault,) if facts else missing,
            steps=_events(row) if row else (),
        )
    exact = not row or row["exact"] is not False
    delta = float(report["claim"]["delta"])
    epsilon = figure(facts.steps, delta, exact=exact).epsilon if facts.steps else 0.0
    differences = (
        _row_differences(row, facts, epsilon, report)
        if row
        else ["it is not in the report", *_differs("epsilon by PLD", epsilon, 0.0)]
    )
    return HolderVerdict(
        name=name,
        epsilon_pld=epsilon,
        reported=reported,
        differences=tuple(differences),
        steps=facts.steps,
    )


def _row_differences(
    row: Mapping[str, Any], facts: LedgerFacts, epsilon: float, report: Mapping[str, Any]
) -> list[str]:
    claim, run = report["claim"], str(report["run"]["id"])
    delta, told = float(claim["delta"]), _events(row)
    found = _differs("epsilon by PLD", epsilon, row["epsilon_pld"])
    found += _second_opinions(row, facts.steps, epsilon, delta)
    if not (covers(told, facts.steps) and covers(facts.steps, told)):
        found.append(f"the report has {_count(told)} steps, the ledger {_count(facts.steps)}")
    accepted = row["rounds"] + row.get("sums", 0)
    if accepted > facts.released:
        found.append(
            f"the report has {accepted} accepted updates, the ledger {facts.released} releases"
        )
    found += [
        f"its charges were made at delta {other:g}, the report is at {delta:g}"
        for other in sorted(facts.deltas - {delta})
    ]
    for number, reported in row["epsilon_rounds"]:
        steps = facts.by_round(run, int(number))
        spent = accountant.epsilon_pld(steps, delta) if steps else 0.0
        found += _differs(f"epsilon after round {number:g}", spent, reported)
    unit = in_words(str(claim["unit"]), str(report["settings"]["data.person"]))
    receipt = Receipt.from_json(row["receipt"]) if row["receipt"] else None
    if receipt and row["epsilon_all_runs"] is not None and receipt.head in facts.heads:
        total = accountant.epsilon_pld(facts.by_head(receipt.head), receipt.delta)
        found += _differs("epsilon of all runs", total, row["epsilon_all_runs"])
    return found + facts.against(receipt, unit)


def _second_opinions(
    row: Mapping[str, Any], steps: Steps, epsilon: float, delta: float
) -> list[str]:
    """RDP is recomputed; PRV would need torch, so it is held against the figure of record."""
    found = []
    if row["epsilon_rdp"] is not None:
        rdp = accountant.epsilon_rdp(steps, delta) if steps else 0.0
        found += _differs("epsilon by RDP", rdp, row["epsilon_rdp"])
    prv = row["epsilon_prv"]
    if prv is not None and not abs(prv - epsilon) <= PRV_ERROR + 1e-3 * epsilon:
        found.append(f"epsilon by PRV is reported as {prv:.6g}, by PLD it is {epsilon:.6g}")
    return found


def _events(row: Mapping[str, Any]) -> Steps:
    return tuple(GaussianSteps.from_json(event) for event in row["events"])


# --- the claim ---


def _verify_claim(report: Mapping[str, Any], holders: Sequence[HolderVerdict]) -> list[str]:
    """The claim is the largest epsilon of all holders, where there is no ledger as reported."""
    claim = report["claim"]
    if report["settings"]["privacy.trust"] == "off":
        return ["noise was off, but the report says private"] if claim["private"] else []
    values = [holder.epsilon_pld if holder.checked else holder.reported for holder in holders]
    if None in values:
        return ["it says private, with a holder unknown"] if claim["private"] else []
    largest = max((value for value in values if value is not None), default=0.0)
    found = _differs("epsilon", largest, claim["epsilon"])
    if not claim["private"]:
        return found
    planned = claim["planned_epsilon"]
    if planned is not None and largest > planned * (1 + TOLERANCE):
        found.append(f"epsilon {largest:.6g} is more than the planned {planned:g}")
    found += [
        f"it says private, although a check failed: {check['name']}"
        for check in report["checks"]
        if check["hard"] and not check["passed"]
    ]
    return found + _verify_words(claim, holders, values, largest)


def _verify_words(
    claim: Mapping[str, Any],
    holders: Sequence[HolderVerdict],
    values: Sequence[float | None],
    largest: float,
) -> list[str]:
    """The sentence, the plain words and the figures of attackers, groups and other deltas."""
    unit, delta = Unit(claim["unit"]), float(claim["delta"])
    known = [(h.steps, v or 0.0) for h, v in zip(holders, values, strict=True) if h.steps]
    promise = Promise(
        private=True, epsilon=largest, delta=delta, unit=unit, histories=most_spent(known)
    )
    sentence = statement.claim(epsilon=largest, delta=delta, unit=unit)
    expected = {"sentence": sentence, **finite(what_follows(promise))}
    return [
        f"its {name.replace('_', ' ')} is not what the ledgers give"
        for name, value in expected.items()
        if not _same(value, claim[name])
    ]


def _verify_outsider(report: Mapping[str, Any], holders: Sequence[HolderVerdict]) -> list[str]:
    """The outsider's figure from the ledgers' steps; the rate is the coordinator's word."""
    told = report["outsider"]
    if told["epsilon"] is None:
        return []
    if not report["claim"]["private"] or not 0 < told["client_rate"] < 1:
        return ["an epsilon is given where there can be none"]
    count = int(report["settings"]["train.steps"])
    kinds = {
        GaussianSteps(
            noise_multiplier=step.noise_multiplier, sampling_rate=step.sampling_rate, steps=count
        )
        for holder in holders
        for step in holder.steps
    }
    epsilon = outsider.worst_epsilon(
        kinds,
        rounds=int(told["rounds"]),
        rate=float(told["client_rate"]),
        delta=float(told["delta"]),
    )
    return _differs("epsilon", epsilon, told["epsilon"])


def _verify_page(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """report.html shows report.json, where the same version of confide wrote it."""
    page = folder / "report.html"
    if not page.is_file() or report["software"].get("confide") != __version__:
        return []
    shown = page.read_bytes() == render(dict(report)).encode()
    return [] if shown else ["report.html: it does not show what report.json says"]


# --- comparing ---


def _differs(what: str, ledger: float, report: float | None) -> list[str]:
    if report is None:
        return [] if math.isinf(ledger) else [f"{what} is {ledger:.6g}, the report has none"]
    if math.isclose(ledger, report, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return []
    return [f"{what} is {ledger:.6g}, the report says {report:.6g}"]


def _same(one: Any, other: Any) -> bool:
    """Equal words and shapes, numbers within the tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-12)
    return bool(one == other)


def _count(steps: Sequence[GaussianSteps]) -> int:
    return sum(step.steps for step in steps)
