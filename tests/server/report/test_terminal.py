from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from confide.server.cli import add_commands
from confide.server.report.build import build_report, write_report
from confide.server.report.terminal import outcome, show, show_verdict
from confide.server.report.verify import HolderVerdict, Verdict

WIDE, NARROW = 110, 60
MARKUP = "[bold]x[/bold][/"


def printed(report: dict[str, Any], width: int = WIDE) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    show(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def command(*arguments: str) -> Any:
    app = typer.Typer()
    add_commands(app)
    return CliRunner().invoke(app, list(arguments))


def test_the_claim_comes_first_and_everything_is_there(torch_free_report: dict[str, Any]) -> None:
    text = printed(torch_free_report)
    order = [
        "Privacy report",
        "Utility",
        "Holders",
        "What left the holders",
        "Checks",
        "Left out, or noticed",
    ]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    for word in ("holder-07", "policy.rounds", "TF-IDF", "82.7 %", "not accounted", "passed"):
        assert word in text


def test_the_outcome_and_the_claim_name_the_unit(make_run: Callable[..., Path]) -> None:
    report = build_report(make_run(privacy__unit="person"), prv=False)
    assert outcome(report).endswith("per person.")
    assert "any single person at a holder" in " ".join(printed(report).split())


def test_no_line_is_wider_than_the_terminal(torch_free_report: dict[str, Any]) -> None:
    assert max(map(len, printed(torch_free_report, NARROW).splitlines())) <= NARROW


def test_a_failed_check_is_not_to_be_overlooked(torch_free_report: dict[str, Any]) -> None:
    assert "FAILED" not in printed(torch_free_report)
    torch_free_report["checks"][0]["state"] = "failed"
    assert "FAILED" in printed(torch_free_report)


def test_words_of_a_run_are_never_read_as_markup(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["run"]["name"] = MARKUP
    torch_free_report["holders"][0]["name"] = MARKUP
    torch_free_report["utility"]["yardsticks"][0] |= {"name": MARKUP, "note": MARKUP}
    torch_free_report["faults"][0]["code"] = MARKUP
    assert printed(torch_free_report, 200).count(MARKUP) == 5


def test_many_holders_are_cut_and_the_cut_is_told(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["holders"] *= 3
    assert "and 18 more" in printed(torch_free_report)


@pytest.mark.parametrize("checked", [True, False])
def test_a_holder_without_a_ledger_is_never_shown_as_agreeing(checked: bool) -> None:
    one = HolderVerdict(
        name="holder-00", epsilon_pld=1.0 if checked else None, reported=1.0, differences=()
    )
    console = Console(file=io.StringIO(), width=WIDE, no_color=True)
    unchecked = () if checked else ("holder-00: its ledger is not at hand",)
    verdict = Verdict(run="it", holders=(one,), differences=(), not_checked=unchecked)
    show_verdict(verdict, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("not checked" in text) is not checked
    assert ("ledgers of 1 of 1 holders" in text) is checked
    assert ("1 of 1 holders not checked" in text) is not checked
    assert verdict.status == (0 if checked else 3)


def test_show_computes_a_report_that_is_not_there(run_folder: Path) -> None:
    shown = command("report", "show", str(run_folder), "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["claim"]["private"] is True
    assert not (run_folder / "report.json").exists()


def test_show_prints_what_was_written(run_folder: Path) -> None:
    report = write_report(run_folder, prv=False)
    assert json.loads(command("report", "show", str(run_folder), "--json").stdout) == report
    text = command("report", "show", str(run_folder)).stdout
    assert "report.html" in text
    assert "Checks" in text


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egone"


def poisoned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_no_word_from_elsewhere_is_obeyed_by_a_terminal(torch_free_report: dict[str, Any]) -> None:
    report = poisoned(torch_free_report)
    report["utility"]["metric"] = torch_free_report["utility"]["metric"]
    report["settings"] = torch_free_report["settings"]
    for sum_ in report["sums"]:
        sum_["of"] = "accuracy"
    one = HolderVerdict(name=HOSTILE, epsilon_pld=1.0, reported=1.0, differences=(HOSTILE,))
    console = Console(file=io.StringIO(), width=WIDE, no_color=True)
    told = {"differences": (HOSTILE,), "not_checked": (HOSTILE,), "notes": (HOSTILE,)}
    show_verdict(Verdict(run=HOSTILE, holders=(one,), **told), console)
    text = printed(report) + outcome(report) + console.file.getvalue()  # type: ignore[attr-defined]
    assert "owned" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_what_bears_on_the_claim_is_told_beside_it(torch_free_report: dict[str, Any]) -> None:
    text = printed(torch_free_report)
    assert text.index("record-though-persons") < text.index("Utility")
    assert "reasonable" in text
    assert "This run alone" in text
