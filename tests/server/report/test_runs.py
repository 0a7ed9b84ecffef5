"""Runs in a list, and two of them side by side."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.server.report.build import write_report
from confide.server.report.runs import beside, beside_page, runs_in, show_beside, show_runs

MakeRun = Callable[..., Path]
Lines = list[dict[str, Any]]


def printed(show: Callable[[Console], None]) -> str:
    written = io.StringIO()
    show(Console(width=80, file=written))
    return written.getvalue()


@pytest.fixture
def two(make_run: MakeRun, tmp_path: Path) -> tuple[Path, Path]:
    def lose_rounds(lines: Lines) -> None:
        for line in [line for line in lines if line["event"] == "round"][15:]:
            line["abandoned"] = True

    found = []
    for name, folder in (
        ("first", make_run),
        ("second", lambda: make_run(lose_rounds, train__batch=900)),
    ):
        (tmp_path / name).mkdir()
        made = folder()
        write_report(made, prv=False)
        found.append(Path(shutil.move(made, tmp_path / name / made.name)))
    return found[0], found[1]


def test_a_list_says_when_how_it_ended_what_is_claimed_and_how_well_it_does(
    two: tuple[Path, Path],
) -> None:
    first, second = two
    row = runs_in(first.parent)[0]
    assert row.began == "2026-01-01 12:00"
    assert row.status == "finished"
    assert row.claim.endswith("per record")
    assert row.score.startswith("Accuracy")
    assert runs_in(second.parent)[0].status == "finished, 15 of 20"


def test_a_run_without_a_report_says_how_far_it_came(tmp_path: Path) -> None:
    lines = {
        "a": [{"event": "start", "time": "2026-01-01T00:00:00Z"}, {"event": "round", "round": 1}],
        "b": [
            {"event": "start", "time": "2026-01-02T00:00:00Z"},
            {"event": "end", "status": "failed", "code": "run.no-round"},
        ],
        "c": [{"event": "start", "time": "2026-01-03T00:00:00Z"}, {"no": "event"}],
    }
    for name, events in lines.items():
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    rows = runs_in(tmp_path)
    assert [(row.name, row.status) for row in rows] == [
        ("c", "damaged"),
        ("b", "failed run.no-round"),
        ("a", "not ended, 1 rounds"),
    ]
    shown = printed(lambda console: show_runs(rows, console))
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_name_is_shown_whole_in_eighty_columns(two: tuple[Path, Path]) -> None:
    shown = printed(lambda console: show_runs(runs_in(two[1].parent), console))
    assert two[1].name in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_names_of_somebody_elses_are_shown_as_words(tmp_path: Path) -> None:
    (tmp_path / "\x1b[31mred").mkdir()
    (tmp_path / "\x1b[31mred" / "metrics.jsonl").write_text('{"event": "start"}\n')
    assert "\x1b" not in runs_in(tmp_path)[0].name


def test_two_runs_side_by_side_show_claim_scores_and_what_differs(two: tuple[Path, Path]) -> None:
    one, other = (json.loads((folder / "report.json").read_text()) for folder in two)
    found = beside(one, other)
    groups = dict(found.groups)
    assert {name for name, *_ in groups["Claim"]} >= {"epsilon", "delta", "unit", "rounds"}
    assert ("rounds", "20 of 20", "15 of 20") in groups["Claim"]
    assert ("train.batch", "600", "900") in groups["Settings"]
    assert "privacy.delta" not in {name for name, *_ in groups["Settings"]}, "it is the same"
    assert any(name == "Accuracy after" for name, *_ in groups["Scores"])
    shown = printed(lambda console: show_beside(found, console))
    assert "train.batch" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_page_needs_nothing_and_lets_no_word_of_elsewhere_be_code(
    two: tuple[Path, Path],
) -> None:
    one, other = (json.loads((folder / "report.json").read_text()) for folder in two)
    other["run"]["id"] = "<script>alert(1)</script>"
    other["settings"]["model.name"] = '"><img src=x>'
    text = beside_page(beside(one, other))
    assert "<script>" not in text
    assert "<img" not in text
    assert "default-src 'none'" in text
    assert "train.batch" in text


def test_the_commands_print_json_and_write_the_page(two: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(str, two)
    page = tmp_path / "diff.html"
    done = CliRunner().invoke(
        build_app(), ["report", "diff", first, second, "--html", str(page), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert ["train.batch", "600", "900"] in json.loads(done.stdout)["settings"]
    assert page.read_text().startswith("<!doctype html>")
    listed = CliRunner().invoke(build_app(), ["runs", str(two[0].parent), "--json"])
    assert json.loads(listed.stdout)[0]["status"] == "finished"


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["runs", str(tmp_path)])
    assert done.exit_code != 0
    assert "confide simulate" in str(done.exception)
