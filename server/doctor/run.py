"""What a finished run folder shows: the findings of its report, and its neighbours.

Whatever the report computes is taken from there; nothing is judged twice. A simulated run has
ledgers of its own, which know nothing of other runs on the same text: those are looked for in the
folders beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.accountant import GaussianSteps, epsilon_pld, epsilon_rdp, merge
from ..report import epsilon_text, load_report
from ..report.build import build_report
from ..report.reading import RunRecord, read_run, read_settings
from . import Facts, Finding, Severity, sort
from .found import facts_of_run


def examine_run(folder: Path) -> tuple[Facts, list[Finding]]:
    """Facts and findings of a run folder, those of the rules on its settings among them.

    Raises:
        ConfideError: what reading the folder raises.
    """
    run = read_run(folder)
    report = build_report(folder, prv=False)
    found = [
        Finding(**{**told, "severity": Severity(told["severity"])}) for told in report["findings"]
    ]
    return facts_of_run(run, report["holders"]), sort([*found, *_neighbours(run, report)])


def _neighbours(run: RunRecord, report: dict[str, Any]) -> Iterator[Finding]:
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


def _beside(run: RunRecord) -> Iterator[dict[str, Any]]:
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
