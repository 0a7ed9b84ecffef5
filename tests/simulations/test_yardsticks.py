"""Yardsticks: each is a run of the product on the same text, and lands in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confide.server.report.build import build_report
from confide.server.run import run
from confide.simulations.inprocess import federation
from confide.simulations.yardsticks import YARDSTICKS, measure
from tests import tiny


def test_yardsticks_are_measured_and_stand_in_the_report(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", round__count=1)
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    folder = run(config, federation(files, tmp_path / "ledgers")).path
    said: list[str] = []
    measure(folder, config, said.append)
    rows = {row["name"]: row for row in json.loads((folder / "yardsticks.json").read_text())}
    assert said == [y.name for y in YARDSTICKS]
    assert set(rows) == {"TF-IDF + logistic regression", *said}
    # The labels of the tiny text are in its words, so TF-IDF must find nearly all of them.
    assert rows["TF-IDF + logistic regression"]["accuracy"] > 0.9
    assert rows["No privacy"]["epsilon"] is None
    promise = config.get("privacy.epsilon", 8.0)
    for name in ("One holder alone", "Private head alone", "Central, pooled records"):
        assert rows[name]["epsilon"] == pytest.approx(promise, rel=2e-3)
    shown = {row["name"] for row in build_report(folder, prv=False)["utility"]["yardsticks"]}
    assert shown == set(rows)
