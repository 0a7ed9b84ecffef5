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
from confide.server.report import epsilon_text, escape
from confide.server.report.build import build_report, write_report
from confide.server.report.html import render
from tests.server.report.conftest import (
    DELTA,
    HOLDERS,
    RECORDS,
    ROUNDS,
    MakeRun,
    steps_after,
)

Lines = list[dict[str, Any]]
EXPECTED = {"record-though-persons", "both-factors"}  # of the settings of the folder


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_run(folder)[1]}


def rounds(lines: Lines) -> Lines:
    return [line for line in lines if line["event"] == "round"]


def test_a_sound_run_has_no_finding_that_bears_on_it_and_its_facts_are_known(
    run_folder: Path,
) -> None:
    facts, found = examine_run(run_folder)
    assert {one.name for one in found if one.severity is not Severity.NOTE} <= EXPECTED
    assert (facts.holders, facts.trained) == (HOLDERS, 74_498)
    assert facts.sizes == ()


def test_what_the_run_booked_of_its_holders_text_is_known_in_its_report(make_run: MakeRun) -> None:
    """P14: the doctor knew that a person has 13 records, and the report did not."""

    def knows(lines: Lines) -> None:
        lines[0]["facts"] = {
            "source": "the prepared federation nyt",
            "sizes": [RECORDS] * HOLDERS,
            "holders": HOLDERS,
            "column": "article",
            "most_records": 13,
        }

    folder = make_run(knows)
    facts, found = examine_run(folder)
    assert (facts.sizes, facts.most_records) == ((RECORDS,) * HOLDERS, 13)
    (person,) = (one for one in found if one.name == "record-though-persons")
    assert "up to 13 records" in person.why
    report = build_report(folder, prv=False)
    assert person.to_json() in report["findings"]
    page = render(report)
    assert page.index(escape(person.what)) < page.index("<section>")


def test_a_finding_that_leaves_no_promise_withdraws_the_claim(make_run: MakeRun) -> None:
    """One judgement: the doctor says not private, and so does the report."""

    def leak(lines: Lines) -> None:
        rounds(lines)[7]["accepted"][2]["train_loss"] = 0.3

    claim = build_report(make_run(leak), prv=False)["claim"]
    assert not claim["private"]
    assert claim["sentence"].startswith(
        "NOT DIFFERENTIALLY PRIVATE. metrics.jsonl holds train_loss"
    )


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
        told = {"epsilon": 11.5, "proven": 14.0, "unmasked": 11.5, "runs": 3}
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
