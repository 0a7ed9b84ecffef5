from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.server.cli import add_commands
from confide.server.report.build import write_report
from confide.server.report.verify import verify_run
from tests.server.report.conftest import DELTA, RUN, MakeRun, events_of, plan, write_events

WITH_LEDGER = ["holder-00", "holder-01"]
DIFFERENT, INCOMPLETE = 1, 3


@pytest.fixture
def reported(run_folder: Path) -> Path:
    write_report(run_folder, prv=False)
    return run_folder


@pytest.fixture
def complete(make_run: MakeRun) -> Path:
    """A run in which nobody took part but the two whose ledgers are in the folder."""

    def only(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["event"] == "round":
                line["accepted"] = [u for u in line["accepted"] if u["holder"] in WITH_LEDGER]
                line["left_out"] = []

    folder = make_run(only)
    write_report(folder, prv=False)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def command(*arguments: str) -> Any:
    app = typer.Typer()
    add_commands(app)
    return CliRunner().invoke(app, list(arguments))


def test_an_honest_report_is_made_again_and_its_ledgers_agree(reported: Path) -> None:
    verdict = verify_run(reported)
    assert verdict.differences == ()
    assert [holder.name for holder in verdict.holders if holder.checked] == WITH_LEDGER
    assert all(h.epsilon_pld == pytest.approx(h.reported) for h in verdict.holders if h.checked)


def test_eight_of_ten_holders_without_a_ledger_are_no_pass(reported: Path) -> None:
    verdict = verify_run(reported)
    assert verdict.status == INCOMPLETE
    assert verdict.headline == "No difference, but 8 of 10 holders not checked."
    assert len(verdict.not_checked) == 8


def test_with_every_ledger_everything_is_checked(complete: Path) -> None:
    verdict = verify_run(complete)
    assert (verdict.status, verdict.not_checked, verdict.notes) == (0, (), ())
    assert "2 of 2 holders" in verdict.headline


def test_a_report_for_persons_agrees_with_ledgers_of_persons(make_run: MakeRun) -> None:
    folder = make_run(privacy__unit="person")
    write_report(folder, prv=False)
    assert verify_run(folder).agrees


def test_the_second_opinion_is_held_against_the_figure_of_record(run_folder: Path) -> None:
    write_report(run_folder)
    assert verify_run(run_folder).agrees
    edit(run_folder, lambda r: r["holders"][0].update(epsilon_prv=7.5))
    assert any("epsilon_prv" in text for text in verify_run(run_folder).differences)


# --- ledgers ---


def loud() -> Plan:
    return replace(plan(), noise_multiplier=1.0, max_rounds=1)


def charge_more(folder: Path, run: str) -> None:
    with Ledger.open(folder / "holders" / "holder-01" / "ledger.sqlite") as ledger:
        ledger.charge(Charge(run=run, round=21, task_hash="ab" * 32, plan=loud()), None)


def test_a_charge_that_the_report_does_not_know_is_found(reported: Path) -> None:
    charge_more(reported, RUN)
    found = verify_run(reported).differences
    assert any(text.startswith("holders / holder-01 / epsilon_pld") for text in found)


def test_what_other_runs_were_charged_since_is_told_and_no_difference(complete: Path) -> None:
    charge_more(complete, "another-run")
    verdict = verify_run(complete)
    assert verdict.status == 0
    assert "1 other runs were charged since" in verdict.notes[0]


def test_a_broken_ledger_is_a_difference(reported: Path) -> None:
    path = reported / "holders" / "holder-00" / "ledger.sqlite"
    path.write_bytes(b"this is no ledger" * 500)
    verdict = verify_run(reported)
    assert any("cannot be relied on [ledger." in text for text in verdict.differences)


def test_a_ledger_that_is_gone_is_a_difference_and_one_that_never_was_is_not(
    reported: Path,
) -> None:
    shutil.rmtree(reported / "holders" / "holder-00")
    verdict = verify_run(reported)
    assert "holder-00: its ledger is gone, although the report relies on it" in verdict.differences
    assert not any("holder-05" in text for text in verdict.differences)
    assert "holder-00: its ledger is not at hand" in verdict.not_checked


@pytest.fixture
def deployed(make_run: MakeRun, tmp_path: Path) -> tuple[Path, Path]:
    """A run whose ledgers stayed with their holders, and where they are."""
    folder, away = make_run(), tmp_path / "ledgers"
    away.mkdir()
    for name in WITH_LEDGER:
        shutil.move(folder / "holders" / name / "ledger.sqlite", away / f"{name}.sqlite")
    shutil.rmtree(folder / "holders")
    write_report(folder, prv=False)
    return folder, away


def test_a_ledger_that_a_holder_hands_over_is_held_against_its_receipts(
    deployed: tuple[Path, Path],
) -> None:
    folder, away = deployed
    assert [h.name for h in verify_run(folder).holders if h.checked] == []
    one = verify_run(folder, [away / "holder-01.sqlite"])
    assert [h.name for h in one.holders if h.checked] == ["holder-01"]
    both = verify_run(folder, [away])
    assert [h.name for h in both.holders if h.checked] == WITH_LEDGER
    assert (one.agrees, both.agrees) == (True, True)


def test_a_ledger_that_was_put_into_the_folder_later_is_one_that_is_handed_in(
    deployed: tuple[Path, Path],
) -> None:
    folder, away = deployed
    for name in WITH_LEDGER:
        (folder / "holders" / name).mkdir(parents=True)
        shutil.copy(away / f"{name}.sqlite", folder / "holders" / name / "ledger.sqlite")
    verdict = verify_run(folder)
    assert verdict.differences == ()
    assert [h.name for h in verdict.holders if h.checked] == WITH_LEDGER


def test_a_ledger_that_knows_more_than_its_holder_said_is_a_difference(
    deployed: tuple[Path, Path],
) -> None:
    folder, away = deployed
    with Ledger.open(away / "holder-00.sqlite") as ledger:
        ledger.charge(Charge(run=RUN, round=21, task_hash="ab" * 32, plan=loud()), None)
    found = verify_run(folder, [away]).differences
    assert "holder-00: its ledger has steps of this run that the report does not have" in found
    assert any(text.startswith("holder-00: its ledger's proven") for text in found)
    assert any(text.startswith("holder-00: its ledger's runs") for text in found)


def test_a_ledger_of_this_run_that_nobody_in_the_report_has_is_a_difference(
    deployed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = deployed
    strange = tmp_path / "strange.sqlite"
    with Ledger.open(strange) as ledger:
        ledger.charge(Charge(run="other", round=1, task_hash="ab" * 32, plan=loud()), None)
    verdict = verify_run(folder, [strange])
    assert verdict.agrees
    assert "the ledger of no holder" in verdict.notes[0]
    with Ledger.open(strange) as ledger:
        ledger.charge(Charge(run=RUN, round=1, task_hash="cd" * 32, plan=loud()), None)
    assert "has charges of this run" in verify_run(folder, [strange]).differences[0]


def test_a_path_without_a_ledger_is_refused(reported: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfideError) as caught:
            verify_run(reported, [wrong / "empty" if wrong == tmp_path else wrong])
        assert caught.value.code == "report.ledger"


def test_verifying_changes_no_byte_of_a_ledger(reported: Path) -> None:
    paths = sorted(reported.glob("holders/*/ledger.sqlite"))
    before = [path.read_bytes() for path in paths]
    verify_run(reported)
    assert [path.read_bytes() for path in paths] == before


# --- several runs ---


def test_the_claim_of_a_second_run_on_a_ledger_is_of_both(make_run: MakeRun) -> None:
    """P3: each was planned for 8, and a reader of the second report was told 8."""
    folder = make_run(before="an-earlier-run")
    report = write_report(folder, prv=False)
    claim = report["claim"]
    assert claim["runs"] == 2
    assert claim["this_run"]["planned"] == pytest.approx(8.0, rel=1e-3)
    both = epsilon_pld([plan().steps(40)], DELTA)
    assert claim["all_runs_by_pld"] == pytest.approx(both, rel=1e-6)
    assert both > 12.24
    assert claim["epsilon"] == 15.0
    assert "15.00" in claim["sentence"]
    assert "all 2 runs on its text together" in claim["sentence"]
    assert "Smith and Thakurta 2022" in claim["proven_by"][0]
    assert claim["curve"] == claim["groups"] == []
    assert verify_run(folder).agrees


def test_the_limit_that_a_holder_kept_to_is_the_claim_where_it_is_smaller(
    make_run: MakeRun,
) -> None:
    report = write_report(make_run(before="an-earlier-run", limit=13.0), prv=False)
    rows = {row["name"]: row for row in report["holders"]}
    assert rows["holder-00"]["epsilon_proven"] == rows["holder-00"]["own_limit"] == 13.0


def test_the_claim_of_a_run_that_ended_early_is_the_planned_figure(make_run: MakeRun) -> None:
    """P4: when it ended may follow from what was seen."""

    def stop(lines: list[dict[str, Any]]) -> None:
        del lines[2 + 2 * 5 : -1]

    report = write_report(make_run(stop, rounds=5), prv=False)
    claim = report["claim"]
    assert claim["this_run"]["spent"] < 4.0
    assert (
        claim["epsilon"] == claim["this_run"]["planned"] == epsilon_pld([plan().steps(20)], DELTA)
    )
    assert claim["runs"] == 1
    assert "however early the run ended" in claim["proven_by"][0]


def test_a_holder_of_which_nothing_is_proven_withdraws_the_claim_and_is_named(
    make_run: MakeRun,
) -> None:
    def without_end(lines: list[dict[str, Any]]) -> None:
        last = [line for line in lines if line["event"] == "round"][-1]
        last["accepted"][4]["receipt"] |= {"proven": None, "unmasked": None, "runs": 9}

    claim = write_report(make_run(without_end), prv=False)["claim"]
    assert not claim["private"]
    assert "What holder-04 released is unknown, or more" in claim["sentence"]


# --- the command ---


def test_the_status_tells_a_difference_from_what_could_not_be_checked(
    complete: Path,
) -> None:
    edit(complete, lambda r: r["claim"].update(epsilon=0.5))
    bad = command("report", "verify", str(complete), "--json")
    assert bad.exit_code == DIFFERENT
    assert json.loads(bad.stdout)["differences"]
    assert command("report", "verify", str(complete)).exit_code == DIFFERENT


def test_the_command_takes_ledgers_and_ends_with_three_where_some_are_missing(
    deployed: tuple[Path, Path],
) -> None:
    folder, away = deployed
    one, two = (str(away / f"{name}.sqlite") for name in WITH_LEDGER)
    found = command("report", "verify", str(folder), "--ledger", one, "--ledger", two, "--json")
    assert found.exit_code == INCOMPLETE
    told = json.loads(found.stdout)
    assert (told["agrees"], told["complete"]) == (True, False)
    assert [row["name"] for row in told["holders"] if row["checked"]] == WITH_LEDGER


def test_latest_is_the_newest_run_below_the_current_folder(
    complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete.parent.parent)
    assert command("report", "verify", "latest").exit_code == 0


def test_a_run_without_an_end_is_not_checked_rather_than_passed(complete: Path) -> None:
    lines = events_of(complete)
    write_events(complete, lines)
    text = (complete / "metrics.jsonl").read_text()
    lines[-1].pop("seal", None)
    (complete / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "seal"}) + "\n" for line in lines)
    )
    assert text.count('"seal"') == 1
    write_report(complete, prv=False)
    verdict = verify_run(complete)
    assert verdict.status == INCOMPLETE
    assert "metrics.jsonl" in verdict.not_checked[0]
