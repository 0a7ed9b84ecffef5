"""The benchmark of the secure sum: what it times is a right sum, and its bytes meet the bar."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.simulations.benchmarks import secure_sum
from confide.simulations.benchmarks.secure_sum import HEADER, line, sum_row


def test_a_row_is_of_a_right_sum_and_within_the_bytes_that_were_promised() -> None:
    row = sum_row(6, 500, 3)
    assert row.bytes_over <= 2000 + 3 * 1200
    assert min(row.contribute, row.opening, row.peer_holder) > 0
    assert line(row).count("|") == HEADER.splitlines()[0].count("|")


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_sum, "SHAPES", ((3, 100), (4, 10_000)))
    monkeypatch.setattr(secure_sum, "OPENERS", {3: 2, 4: 2})
    told = CliRunner().invoke(build_app(), ["bench", "sum", "--most", "100"])
    assert told.exit_code == 0, told.output
    assert len(told.stdout.strip().splitlines()) == 3
    rows = json.loads(CliRunner().invoke(build_app(), ["bench", "sum", "--json"]).stdout)
    assert [(row["members"], row["values"]) for row in rows] == [(3, 100), (4, 10_000)]
