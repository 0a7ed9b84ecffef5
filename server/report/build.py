"""report.json: what a run can show for itself, computed from its folder.

For every holder the events are those of its ledger when the folder holds one, otherwise those of
its newest receipt; epsilon is recomputed from the events, never copied. Whatever is not known
stays null; nothing is estimated downwards. Accounting: Koskela et al. 2020 (PLD), Gopi et al.
2021 (PRV), Mironov et al. 2019 (RDP).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ...common.errors import ConfideError
from ...common.privacy import accountant
from ...common.tasks import TASKS
from ..card import model_card
from ..doctor import Finding, Severity
from ..doctor.found import findings_of
from ..run_folder import RunFolder
from ..seal import CARD
from . import PAGE, REPORT, SCHEMA, Json, finite, no_path, wilson
from .accounts import MOST_EXACT, Account, Figure, Steps, accounts_of, curves, figures, left_out
from .checks import FAILED, run_checks
from .claim import Held, claim_json, held, promise_of
from .histories import Round
from .html import render
from .ledgers import read_ledgers
from .reading import RunRecord, read_about, read_run
from .words import mechanism, not_protected, released


def write_report(folder: Path, *, prv: bool = True) -> Json:
    """Compute the report and leave all that shows it: report.json, report.html and, where there is
    an adapter, its card."""
    report = build_report(folder, prv=prv)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, shown in ((REPORT, text), *shown_by(folder, report).items()):
        RunFolder(folder).write(name, shown.encode())
    return report


def shown_by(folder: Path, report: Json) -> dict[str, str]:
    """What people read of a report, by the file's name in the run folder."""
    pages = {PAGE: render(report)}
    if (folder / "adapter").is_dir():
        pages[f"adapter/{CARD}"] = model_card(report)
    return pages


def build_report(folder: Path, *, prv: bool = True, without: Collection[str] = ()) -> Json:
    """The report as a JSON object.

    Args:
        prv: False leaves epsilon_prv null, and torch alone.
        without: holders whose ledgers are not to be used, though they are in the folder.
    """
    run = read_run(folder)
    found = read_ledgers(folder, run.id, run.settings.privacy.delta)
    accounts = accounts_of(run, {k: facts for k, facts in found.items() if k not in without})
    held_by = _held_by(run, accounts)
    holders = _holders(run, held_by, prv=prv)
    checks = run_checks(run, accounts, holders)
    findings = findings_of(run, holders, checks)
    broken = [check["name"] for check in checks if check["hard"] and check["state"] == FAILED]
    doubts = [f"A check failed: {'; '.join(broken)}"] if broken else []
    doubts += [one.what for one in findings if _withdraws(one)]
    promise = promise_of(run, held_by, doubts)
    claim = claim_json(run, promise, held_by, doubts)
    report = {
        "schema": SCHEMA,
        "claim": claim,
        "findings": [finding.to_json() for finding in findings],
        "run": _about(run),
        "about": read_about(folder),
        "mechanism": mechanism(run),
        "holders": holders,
        "utility": _utility(run),
        "sums": list(run.summed.values()),
        "released": released(run, accounts),
        "not_protected": not_protected(run, claim["groups"]),
        "checks": checks,
        "faults": [
            {"round": number, "holder": holder, "code": code}
            for number, holder, code in sorted([*run.named, *left_out(run)], key=lambda row: row[0])
        ],
        "costs": _costs(run),
        "software": run.start.get("software", {}),
        "settings": {key: no_path(value) for key, value in run.settings.to_flat().items()},
    }
    return {key: finite(value) for key, value in report.items()}


def _withdraws(finding: Finding) -> bool:
    """Whether it leaves no promise; what a failed check says, or a run without noise, is known."""
    known = finding.name in ("check-failed", "noise-off")
    return finding.severity is Severity.NOT_PRIVATE and not known


def _held_by(run: RunRecord, accounts: Sequence[Account]) -> list[Held]:
    """The figures of each holder; none in a run without noise."""
    if not run.private:
        return [held(run, account, None, None, None) for account in accounts]
    delta = run.settings.privacy.delta
    spent = figures([a.steps for a in accounts], delta, run.limit)
    planned = figures([a.whole for a in accounts], delta, run.limit)
    out = []
    for account in accounts:
        ledger, newest = account.ledger, account.newest
        by_ledger = ledger is not None and not ledger.fault
        summed = ledger.epsilon if ledger and by_ledger else newest.epsilon if newest else None
        out.append(
            held(
                run,
                account,
                spent[account.steps].epsilon,
                planned[account.whole].epsilon,
                summed,
            )
        )
    return out


def _holders(run: RunRecord, held_by: Sequence[Held], *, prv: bool) -> list[Json]:
    """The rows of the holders."""
    delta = run.settings.privacy.delta
    accounts = [one.account for one in held_by]
    found = figures([a.steps for a in accounts if run.private], delta, run.limit)
    second = _prvs(found, delta) if prv else {}
    rows = [_holder(run, one, found.get(one.account.steps), second) for one in held_by]
    if run.private:
        spent = {row["name"]: row["epsilon_pld"] or 0.0 for row in rows}
        points = curves(run, accounts, spent)
        for row in rows:
            row["epsilon_rounds"] = points.get(row["name"], [])
    return rows


def _holder(
    run: RunRecord, one: Held, found: Figure | None, second: Mapping[Steps, float | None]
) -> Json:
    account = one.account
    known = found is not None and run.private
    newest, steps = account.newest, account.steps
    return {
        "name": account.name,
        "rounds": account.history.rounds,
        "sums": account.history.sums,
        "events": [step.to_json() for step in steps],
        "basis": account.basis,
        "open_rounds": account.open_rounds,
        "runs": account.runs,
        "epsilon_pld": one.spent,
        "exact": found.exact if known and found else None,
        "epsilon_prv": second.get(steps) if known else None,
        "epsilon_rdp": accountant.epsilon_rdp(steps, run.settings.privacy.delta) if known else None,
        "epsilon_limit": run.limit,
        "epsilon_planned": one.planned,
        "epsilon_all_runs": one.all_runs,
        "epsilon_proven": one.proven,
        "own_limit": account.limit,
        "epsilon_rounds": [],
        "receipt": newest.to_json() if newest else None,
        "ledger": account.ledger.path if account.ledger else None,
    }


def _prvs(found: Mapping[Steps, Figure], delta: float) -> dict[Steps, float | None]:
    """The second opinion, on the largest figures where there are many different ones."""
    exact = sorted((s for s, f in found.items() if f.exact), key=lambda s: -found[s].epsilon)
    return {steps: _prv(steps, delta) for steps in exact[:MOST_EXACT]}


@lru_cache(maxsize=1024)
def _prv(steps: Steps, delta: float) -> float | None:
    """Opacus's figure, or None where it has none: there is too little noise for it."""
    try:
        return accountant.epsilon_prv(steps, delta)
    except ConfideError:
        return None


# --- the rest of the report ---


def _about(run: RunRecord) -> Json:
    model = run.start.get("model", {})
    return {
        "id": run.id,
        "name": run.settings.run.name,
        "started": run.start.get("time"),
        "ended": run.end.get("time"),
        "status": run.end.get("status", "not ended"),
        "rounds_planned": run.settings.round.count,
        "rounds": sum(not line.abandoned for line in run.rounds.values()),
        "holders": run.start.get("federation", {}).get("holders"),
        "model": {**model, "name": no_path(model.get("name", run.settings.model.name))},
    }


def _utility(run: RunRecord) -> Json:
    """The task's metrics on the coordinator's own held-out text; a 95 % Wilson interval at the end
    of a main one that is a share of records."""
    points = [
        {"round": number, **_measured(event, run.metrics[:1])}
        for number, event in run.evaluations.items()
    ]
    after, main = run.outcome, run.metrics[0]
    counted = after.get(main) if main in TASKS[run.settings.task.kind].shares_of_records else None
    return {
        "metric": main,
        "before": _measured(run.evaluations.get(0, {}), run.metrics),
        "after": _measured(after, run.metrics),
        "interval": wilson(counted, after.get("examples")),
        "examples": after.get("examples"),
        "kept": run.kept,
        "rounds": points,
        "yardsticks": list(run.yardsticks),
    }


def _measured(event: Json, metrics: Sequence[str]) -> Json:
    return {name: event.get(name) for name in (*metrics, "loss")}


def _costs(run: RunRecord) -> Json:
    def mean(of: Callable[[Round], float | None]) -> float | None:
        values = [value for line in run.rounds.values() if (value := of(line)) is not None]
        return sum(values) / len(values) if values else None

    return {
        "seconds": run.end.get("seconds"),
        "seconds_per_round": mean(lambda line: line.seconds),
        "bytes_down": mean(lambda line: line.bytes_down),
        "bytes_up": mean(lambda line: line.bytes_up),
        "peak_memory_mb": run.end.get("peak_memory_mb"),
    }
