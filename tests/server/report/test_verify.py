from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.server.cli import add_commands
from confide.server.report.build import write_report
from confide.server.report.ledgers import covers
from confide.server.report.verify import verify_run

WITH_LEDGER = ["holder-00", "holder-01"]
DIFFERENT = 1
RUN = "20260101-120000-editorials"


@pytest.fixture
def reported(run_folder: Path) -> Path:
    write_report(run_folder, prv=False)
    return run_folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def command(*arguments: str) -> Any:
    app = typer.Typer()
    add_commands(app)
    return CliRunner().invoke(app, list(arguments))


def test_an_honest_report_agrees_with_its_ledgers(reported: Path) -> None:
    verdict = verify_run(reported)
    assert verdict.agrees
    assert [holder.name for holder in verdict.holders if holder.checked] == WITH_LEDGER
    assert all(h.epsilon_pld == pytest.approx(h.reported) for h in verdict.holders if h.checked)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r["holders"][0].update(epsilon_pld=1.0), "holder-00: epsilon by PLD"),
        (lambda r: r["holders"][1].update(epsilon_rdp=1.0), "holder-01: epsilon by RDP"),
        (lambda r: r["holders"][0]["events"][0].update(steps=3), "holder-00: the report has 3"),
        (lambda r: r["claim"].update(epsilon=0.5), "claim: epsilon"),
        (lambda r: r["claim"].update(planned_epsilon=2.0), "claim: epsilon"),
        (lambda r: r["holders"].pop(0), "holder-00: it is not in the report"),
        (lambda r: r["holders"][0]["receipt"].update(head="0" * 64), "holder-00: the receipt"),
        (lambda r: r["holders"][0]["receipt"].update(ledger_id="x"), "holder-00: the receipt"),
        (lambda r: r["claim"].update(unit="person"), "holder-00: its charges are per record"),
        (lambda r: r["claim"].update(delta=1e-4), "holder-00: its charges were made at delta"),
        (lambda r: r["claim"].update(sentence="Safe."), "claim: its sentence"),
        (lambda r: r["claim"].update(in_plain_words="Nobody is found."), "claim: its in plain"),
        (lambda r: r["claim"]["attacker"][0].update(true_positive_rate=0.02), "claim: its att"),
        (lambda r: r["claim"]["groups"][1].update(epsilon=9.0), "claim: its groups"),
        (lambda r: r["claim"]["curve"][0].__setitem__(1, 1.0), "claim: its curve"),
        (lambda r: r["claim"]["curve"].pop(), "claim: its curve"),
        (lambda r: r["checks"][2].update(passed=False), "claim: it says private, although"),
        (lambda r: r["outsider"].update(epsilon=1.0, client_rate=1.0), "outsider: an epsilon"),
        (lambda r: r["holders"][0].update(epsilon_prv=7.5), "holder-00: epsilon by PRV"),
        (lambda r: r["holders"][0].update(rounds=21), "holder-00: the report has 21 accepted"),
        (lambda r: r["holders"][0].update(epsilon_all_runs=1.0), "holder-00: epsilon of all"),
        (
            lambda r: r["holders"][0]["epsilon_rounds"][3].__setitem__(1, 0.5),
            "holder-00: epsilon after round",
        ),
    ],
)
def test_every_difference_is_named(
    reported: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit(reported, change)
    verdict = verify_run(reported)
    assert not verdict.agrees
    assert any(text.startswith(named) for text in verdict.differences), verdict.differences


def test_a_report_for_persons_agrees_with_ledgers_of_persons(
    make_run: Callable[..., Path],
) -> None:
    folder = make_run(privacy__unit="person")
    write_report(folder, prv=False)
    assert verify_run(folder).agrees
    edit(folder, lambda r: r["settings"].update({"data.person": "line"}))
    assert any("(column 'article')" in text for text in verify_run(folder).differences)


def test_a_charge_that_the_report_does_not_know_is_found(reported: Path) -> None:
    loud = Plan(
        clip_norm=1.0,
        noise_multiplier=1.0,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=1e-5,
    )
    with Ledger.open(reported / "holders" / "holder-01" / "ledger.sqlite") as ledger:
        ledger.charge(Charge(run=RUN, round=21, task_hash="ab" * 32, plan=loud), None)
    assert any("holder-01: epsilon" in text for text in verify_run(reported).differences)


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
    assert [text.split(":")[0] for text in verdict.differences] == ["holder-00"]


def test_without_any_ledger_nothing_is_called_verified(reported: Path) -> None:
    shutil.rmtree(reported / "holders")
    with pytest.raises(ConfideError) as caught:
        verify_run(reported)
    assert caught.value.code == "report.no-ledgers"
    assert caught.value.hint


def test_a_report_that_calls_a_run_without_noise_private_is_found(reported: Path) -> None:
    edit(reported, lambda r: r["settings"].update({"privacy.trust": "off"}))
    found = verify_run(reported).differences
    assert found[0] == "claim: noise was off, but the report says private"


def test_a_page_that_shows_another_report_is_found(reported: Path) -> None:
    page = reported / "report.html"
    page.write_text(page.read_text().replace("at most epsilon = ", "at most epsilon = 0."))
    expected = ("report.html: it does not show what report.json says",)
    assert verify_run(reported).differences == expected


def test_a_report_that_lacks_a_part_is_refused_by_its_code(reported: Path) -> None:
    edit(reported, lambda r: r["claim"].pop("curve"))
    with pytest.raises(ConfideError) as caught:
        verify_run(reported)
    assert caught.value.code == "report.corrupt"
    assert caught.value.hint


def test_verifying_changes_no_byte_of_a_ledger(reported: Path) -> None:
    paths = sorted(reported.glob("holders/*/ledger.sqlite"))
    before = [path.read_bytes() for path in paths]
    verify_run(reported)
    assert [path.read_bytes() for path in paths] == before


def test_the_command_ends_with_one_on_a_difference(reported: Path) -> None:
    good = command("report", "verify", str(reported), "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["agrees"] is True
    edit(reported, lambda r: r["claim"].update(epsilon=0.5))
    bad = command("report", "verify", str(reported), "--json")
    assert bad.exit_code == DIFFERENT
    assert json.loads(bad.stdout)["differences"]
    assert command("report", "verify", str(reported)).exit_code == DIFFERENT


def test_latest_is_the_newest_run_below_the_current_folder(
    reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reported.parent.parent)
    assert command("report", "verify", "latest").exit_code == 0


def test_covering_needs_the_same_noise_and_as_many_steps() -> None:
    def steps(noise: float, count: int) -> tuple[GaussianSteps, ...]:
        return (GaussianSteps(noise_multiplier=noise, sampling_rate=0.5, steps=count),)

    assert covers(steps(1.0, 5), steps(1.0, 5))
    assert covers(steps(1.0, 2) + steps(1.0, 3), steps(1.0, 5))
    assert not covers(steps(1.0, 4), steps(1.0, 5))
    assert not covers(steps(2.0, 9), steps(1.0, 5))
