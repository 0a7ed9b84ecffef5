"""What a finished run shows: failed checks, other runs on the same text, budget spent in vain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from confide.common.privacy.accountant import epsilon_pld
from confide.server.doctor import Finding, Severity
from confide.server.doctor.run import examine_run
from confide.server.report import epsilon_text
from confide.server.report.build import write_report
from tests.server.report.conftest import (
    BATCH,
    DELTA,
    HOLDERS,
    RECORDS,
    ROUNDS,
    MakeRun,
    steps_after,
)

Lines = list[dict[str, Any]]


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_run(folder)[2]}


def rounds(lines: Lines) -> Lines:
    return [line for line in lines if line["event"] == "round"]


def test_a_sound_run_has_no_finding_and_its_facts_are_known(run_folder: Path) -> None:
    settings, facts, found = examine_run(run_folder)
    assert found == []
    assert settings.round.count == ROUNDS
    # Two ledgers tell 500 records; of the others only that they have no more than the batch.
    assert facts.sizes == (RECORDS,) * 2 + (BATCH,) * (HOLDERS - 2)
    assert facts.at_most
    assert (facts.holders, facts.trained) == (HOLDERS, 74_498)


def test_a_failed_hard_check_is_not_private(make_run: MakeRun) -> None:
    def bare(lines: Lines) -> None:
        rounds(lines)[3]["accepted"][5]["receipt"]["steps_run"] = []

    found = findings(make_run(bare))["check-failed"]
    assert found.severity is Severity.NOT_PRIVATE
    assert "noised" in found.what
    assert "round 4" in found.what


def test_a_failed_soft_check_is_not_sound(make_run: MakeRun) -> None:
    def refused(lines: Lines) -> None:
        gone = rounds(lines)[3]["accepted"].pop(5)["holder"]
        rounds(lines)[3]["left_out"].append({"holder": gone, "code": "train.self-check"})

    found = findings(make_run(refused))["check-failed"]
    assert found.severity is Severity.NOT_SOUND
    assert "train.self-check" in found.what


def test_a_figure_that_a_holder_sent_beside_its_update_is_a_leak(make_run: MakeRun) -> None:
    def leak(lines: Lines) -> None:
        rounds(lines)[7]["accepted"][2]["train_loss"] = 0.3

    found = findings(make_run(leak))["metrics-leak"]
    assert found.severity is Severity.NOT_PRIVATE
    assert "train_loss" in found.what


def test_what_a_ledger_spent_on_other_runs_is_told(make_run: MakeRun) -> None:
    def tuned(lines: Lines) -> None:
        told = {"epsilon": 11.5, "proven": 14.0, "runs": 3}
        rounds(lines)[-1]["accepted"][4]["receipt"] |= told

    found = findings(make_run(tuned))["other-runs"]
    assert found.severity is Severity.NOTE
    assert "1 of 10 holders" in found.what
    assert "holder-04 of 3, which spent epsilon = 11.50 by PLD, 8.00 in this one" in found.what


def test_runs_beside_it_on_the_same_text_are_added_up(make_run: MakeRun) -> None:
    folder = make_run()
    other = folder.parent / "20251231-120000-tuning"
    shutil.copytree(folder, other)
    write_report(other, prv=False)
    found = findings(folder)["tuning-not-charged"]
    together = epsilon_pld(steps_after(2 * ROUNDS), DELTA)
    assert found.severity is Severity.NOT_SOUND
    assert "1 other runs" in found.what
    assert f"epsilon = {epsilon_text(together)}," in found.what
    # Another text is another matter.
    config = other / "config.toml"
    config.write_text(config.read_text("utf-8").replace("private/nyt", "other"), encoding="utf-8")
    write_report(other, prv=False)
    assert "tuning-not-charged" not in findings(folder)


def test_a_run_beside_it_without_noise_is_counted_apart(make_run: MakeRun) -> None:
    folder = make_run()
    other = folder.parent / "20251231-120000-bare"
    shutil.copytree(folder, other)
    write_report(other, prv=False)
    report = json.loads((other / "report.json").read_text("utf-8"))
    report["settings"]["privacy.trust"] = "off"
    (other / "report.json").write_text(json.dumps(report), encoding="utf-8")
    found = findings(folder)["tuning-not-charged"]
    assert "1 of them without noise" in found.what
    assert "together spend epsilon = 8.00" in found.what


def test_updates_of_abandoned_rounds_were_charged_in_vain(make_run: MakeRun) -> None:
    def abandon(lines: Lines) -> None:
        rounds(lines)[11]["abandoned"] = True  # one holder is late in this round

    found = findings(make_run(abandon))["abandoned-rounds"]
    assert found.severity is Severity.NOT_SOUND
    assert found.what.startswith("1 of 20 rounds were abandoned, with 9 updates")


@pytest.mark.parametrize(("seconds", "told"), [(479.0, False), (481.0, True)])
def test_rounds_near_the_timeout_are_a_note(make_run: MakeRun, seconds: float, told: bool) -> None:
    def slow(lines: Lines) -> None:
        rounds(lines)[2]["seconds"] = seconds

    assert ("slow-rounds" in findings(make_run(slow))) is told
