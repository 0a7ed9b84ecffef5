"""What a finished run folder shows, beside its settings: its checks, its ledgers, its neighbours.

Whatever the report computes is taken from there; nothing is judged twice. A simulated run has
ledgers of its own, which know nothing of other runs on the same text: those are looked for in the
folders beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.accountant import GaussianSteps, epsilon_pld, epsilon_rdp, merge
from ...common.settings import Settings
from ..report import epsilon_text, load_report
from ..report.build import build_report
from ..report.checks import FAILED
from ..report.reading import Run, read_run, read_settings
from . import Facts, Finding, Severity

SLOW_SHARE = 0.8  # of round.timeout
_UPDATE_KEYS = {"holder", "bytes_up", "receipt"}


def examine_run(folder: Path) -> tuple[Settings, Facts, list[Finding]]:
    """Settings, facts and findings of a run folder, to which the rules on settings are to be added.

    Raises:
        ConfideError: what reading the folder raises.
    """
    run = read_run(folder)
    report = build_report(folder, prv=False)
    findings = [
        *_failed_checks(report),
        *_leaks(folder),
        *_other_charges(report),
        *_neighbours(run, report),
        *_abandoned(run),
        *_slow(run),
    ]
    return run.settings, _facts(run, report), findings


def _facts(run: Run, report: dict[str, Any]) -> Facts:
    """What the run knows of its holders; how much text each has is none of it."""
    return Facts(
        source="the run's receipts",
        holders=report["run"]["holders"] or len(report["holders"]),
        trained=report["run"]["model"].get("trained") or 0,
        column=run.settings.data.person,
    )


def _failed_checks(report: dict[str, Any]) -> Iterator[Finding]:
    for check in report["checks"]:
        # That noise was on is a rule on the settings.
        if check["state"] != FAILED or check["name"] == "Noise was on":
            continue
        yield Finding(
            name="check-failed",
            severity=Severity.NOT_PRIVATE if check["hard"] else Severity.NOT_SOUND,
            what=f"Failed: {check['name']}. {check['detail']}.",
            why="The report withdraws its claim over it."
            if check["hard"]
            else "The claim does not rest on it, the run's worth does.",
            fix="`confide report show` and metrics.jsonl in the run folder tell more.",
        )


def _leaks(folder: Path) -> Iterator[Finding]:
    """A field beside those of an update would be something that a holder sent and nobody noised."""
    more: set[str] = set()
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            sent = '"event": "round"' in line or '"event": "sum"' in line
            if sent and line.endswith("}\n"):
                for update in json.loads(line).get("accepted", ()):
                    more |= set(update) - _UPDATE_KEYS
    if more:
        yield Finding(
            name="metrics-leak",
            severity=Severity.NOT_PRIVATE,
            what=f"metrics.jsonl holds {', '.join(sorted(more))} for each update.",
            why="confide's holders send no such thing; a loss or a count that left a holder is a"
            " release without noise, and no ledger has it.",
            fix="Find out which software wrote it; do not publish this folder.",
        )


# --- runs on the same text ---


def _other_charges(report: dict[str, Any]) -> Iterator[Finding]:
    """Holders whose text was used by other runs too: by tuning, or by runs before and since."""
    rows = [row for row in report["holders"] if row["runs"] > 1]
    if not rows:
        return
    worst = max(rows, key=lambda row: row["epsilon_all_runs"] or math.inf)
    yield Finding(
        name="other-runs",
        severity=Severity.NOTE,
        what=f"The texts of {len(rows)} of {len(report['holders'])} holders were used by other runs"
        f" as well: that of {worst['name']} of {worst['runs']}, which spent epsilon ="
        f" {epsilon_text(worst['epsilon_all_runs'])} by PLD, {epsilon_text(worst['epsilon_pld'])}"
        " in this one.",
        why="Whoever saw all of them learns as much as all of them allow, tuning included; the"
        " claim is of all runs together.",
        fix="Tune on public text, and plan the runs on private text together.",
    )


def _neighbours(run: Run, report: dict[str, Any]) -> Iterator[Finding]:
    others = list(_beside(run))
    if not others or not run.private:
        return
    bare = sum(not _is_private(other) for other in others)
    noised = [other for other in others if _is_private(other)]
    epsilon = _together([report, *noised], run.settings.privacy.delta)
    without = f", {bare} of them without noise" if bare else ""
    yield Finding(
        name="tuning-not-charged",
        severity=Severity.NOT_SOUND,
        what=f"{len(others)} other runs beside this one used the same text (data.path){without}."
        f" With noise, they and this one together spend epsilon = {epsilon_text(epsilon)},"
        f" this one {epsilon_text(report['claim']['epsilon'])}.",
        why="A simulated run keeps a new ledger in its own folder, so that no ledger adds them up."
        " To choose the best of several runs is a release of all of them.",
        fix="On public text this is what simulations are for. For text that is private, tune"
        " elsewhere, or quote the figure of all runs together.",
    )


def _beside(run: Run) -> Iterator[dict[str, Any]]:
    """The reports of other runs in the same folder on the same text."""
    path = run.settings.data.path
    for config in sorted(run.folder.parent.glob("*/config.toml")):
        if not path or config.parent.samefile(run.folder):
            continue
        try:
            if read_settings(config).data.path == path:
                yield load_report(config.parent)
        except ConfideError:
            continue  # of another version, or never finished: it says nothing about this run


def _is_private(report: dict[str, Any]) -> bool:
    return bool(report["settings"]["privacy.trust"] != "off")


def _together(reports: Iterable[dict[str, Any]], delta: float) -> float:
    """The largest epsilon of a holder that goes by the same name in all of them."""
    taken: dict[str, list[GaussianSteps]] = {}
    for report in reports:
        for row in report["holders"]:
            steps = [GaussianSteps.from_json(event) for event in row["events"]]
            taken.setdefault(row["name"], []).extend(steps)
    histories = {merge(steps) for steps in taken.values()}
    worst = max(histories, key=lambda steps: epsilon_rdp(steps, delta), default=())
    return epsilon_pld(worst, delta)


# --- charged for nothing ---


def _abandoned(run: Run) -> Iterator[Finding]:
    lost = {number: line for number, line in run.rounds.items() if line.abandoned}
    updates = sum(len(line.answered) for line in lost.values())
    if updates:
        yield Finding(
            name="abandoned-rounds",
            severity=Severity.NOT_SOUND,
            what=f"{len(lost)} of {len(run.rounds)} rounds were abandoned, with {updates} updates"
            " that their holders had charged.",
            why=f"Fewer than round.min-holders = {run.settings.round.min_holders} answered in time;"
            " the budget is spent and nothing was learnt.",
            fix="Lower round.min-holders, or give more time by round.timeout"
            f" ({run.settings.round.timeout:g} s).",
        )


def _slow(run: Run) -> Iterator[Finding]:
    timeout = run.settings.round.timeout
    longest = max((line.seconds or 0.0 for line in run.rounds.values()), default=0.0)
    if longest > SLOW_SHARE * timeout:
        yield Finding(
            name="slow-rounds",
            severity=Severity.NOTE,
            what=f"The longest round took {longest:.0f} s of the {timeout:g} s of round.timeout.",
            why="A holder that answers too late has charged its ledger for nothing.",
            fix=f"Set round.timeout to {2 * longest:.0f} or more.",
        )
