"""What a run itself shows, beside its settings: its checks, its ledgers, its rounds.

The report has these findings, with those of the rules on the settings, and ``confide doctor`` takes
them from there: nothing is judged twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..report import epsilon_text
from ..report.checks import FAILED
from ..report.reading import RunRecord
from . import Facts, Finding, Severity, noise, privacy, sort
from .federation import from_event

SLOW_SHARE = 0.8  # of round.timeout
_UPDATE_KEYS = {"holder", "bytes_up", "receipt"}
Rows = Sequence[Mapping[str, Any]]


def findings_of(run: RunRecord, holders: Rows, checks: Rows) -> list[Finding]:
    """Everything that is found in a run and its settings, worst first."""
    facts = facts_of_run(run, holders)
    rules = (*privacy.rules(run.settings, facts), *noise.rules(run.settings, facts))
    own = (
        *_failed_checks(checks),
        *_leaks(run),
        *_other_charges(holders),
        *_abandoned(run),
        *_slow(run),
    )
    return sort([*own, *rules])


def facts_of_run(run: RunRecord, holders: Rows) -> Facts:
    """What was known of the holders' text when the run began, and what the run knows of itself."""
    told = from_event(run.start.get("facts"))
    return Facts(
        source=told.source or "the run's receipts",
        sizes=told.sizes,
        holders=run.start.get("federation", {}).get("holders") or len(holders),
        trained=run.start.get("model", {}).get("trained") or 0,
        column=run.settings.data.person or told.column,
        most_records=told.most_records,
    )


def _failed_checks(checks: Rows) -> Iterator[Finding]:
    for check in checks:
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


def _leaks(run: RunRecord) -> Iterator[Finding]:
    """A field beside those of an update would be something that a holder sent and nobody noised."""
    more: set[str] = set()
    with (run.folder / "metrics.jsonl").open(encoding="utf-8") as lines:
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


def _other_charges(holders: Rows) -> Iterator[Finding]:
    """Holders whose text was used by other runs too: by tuning, or by runs before and since."""
    rows = [row for row in holders if row["runs"] > 1]
    if not rows:
        return
    worst = max(rows, key=lambda row: row["epsilon_all_runs"] or math.inf)
    yield Finding(
        name="other-runs",
        severity=Severity.NOTE,
        what=f"The texts of {len(rows)} of {len(holders)} holders were used by other runs"
        f" as well: that of {worst['name']} of {worst['runs']}, which spent epsilon ="
        f" {epsilon_text(worst['epsilon_all_runs'])} by PLD, {epsilon_text(worst['epsilon_pld'])}"
        " in this one.",
        why="Whoever saw all of them learns as much as all of them allow, tuning included; the"
        " claim is of all runs together.",
        fix="Tune on public text, and plan the runs on private text together.",
    )


def _abandoned(run: RunRecord) -> Iterator[Finding]:
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


def _slow(run: RunRecord) -> Iterator[Finding]:
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
