"""The table of the ledger: which charges are in it, and how a figure comes about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.simulations import cli
from confide.simulations.benchmarks.ledger import ledger_rows, line, quantile, sync_times

ROUNDS = 8


def run(*arguments: str) -> Any:
    app = typer.Typer()
    cli.add_commands(app)
    return CliRunner().invoke(app, ["bench", "ledger", *arguments])


def test_near_the_limit_the_second_run_is_refused_and_far_from_it_none(tmp_path: Path) -> None:
    rows = list(ledger_rows(tmp_path, rounds=ROUNDS))
    assert [(row.rate, row.limit) for row in rows] == [
        (rate, limit) for rate in (1.0, 0.05) for limit in ("far", "near")
    ]
    for row in rows:
        assert (len(row.charges) == 2 * ROUNDS) == (row.limit == "far")
        assert ROUNDS <= len(row.charges) <= 2 * ROUNDS
        assert len(row.charges) == len(row.releases) > 0
        assert row.entries == 1 + len(row.charges) + len(row.releases)


def test_a_fault_of_the_ledger_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ConfideError("ledger.write", "disk full")

    monkeypatch.setattr(Ledger, "charge", broken)
    with pytest.raises(ConfideError, match="disk full"):
        list(ledger_rows(tmp_path, rounds=ROUNDS))


def test_a_quantile_is_a_time_that_was_measured() -> None:
    times = [float(n) for n in range(100, 0, -1)]
    assert [quantile(times, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert quantile([7.0], 0.5) == 7.0


def test_the_disk_alone_is_timed_and_leaves_nothing(tmp_path: Path) -> None:
    assert len(sync_times(tmp_path, 3)) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_row_for_each_and_cleans_up(tmp_path: Path) -> None:
    done = run("--rounds", "3", "--folder", str(tmp_path))
    assert done.exit_code == 0, done.output
    table = [text for text in done.stdout.splitlines() if text.startswith("|")]
    assert len(table) == 2 + 4
    assert {text.count("|") for text in table} == {table[0].count("|")}
    assert "syncs of this disk alone" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_holds_every_time(tmp_path: Path) -> None:
    told = json.loads(run("--rounds", "3", "--folder", str(tmp_path), "--json").stdout)
    assert len(told["rows"]) == 4
    assert all(row["charge_p99"] == max(row["charges"]) for row in told["rows"])
    assert len(told["syncs"]) == 3


def test_a_line_has_milliseconds(tmp_path: Path) -> None:
    row = next(ledger_rows(tmp_path, rounds=2))
    assert f"{1e3 * max(row.charges):.1f}" in line(row)
