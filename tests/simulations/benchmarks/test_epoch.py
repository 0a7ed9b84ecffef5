"""The levers' table on a tiny federation: every row, the product's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.simulations.benchmarks import epoch
from confide.simulations.benchmarks.epoch import epoch_rows
from confide.simulations.scenario import Scenario
from tests import tiny


def test_every_lever_has_a_row(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "prepare", lambda _: tiny_federation)
    monkeypatch.setattr(epoch, "fast_bfloat16", lambda: True)
    config = tiny.config(tiny_model, tiny_federation, tmp_path)
    scenario = Scenario(
        name="tiny", config={"federation.source": "x", "federation.holders": 3, **config}
    )
    rows = list(epoch_rows(scenario, repetitions=2))
    assert [row.engine for row in rows] == [
        epoch.PLAIN,
        "confide, the same",
        "+ short texts with short ones",
        "+ bfloat16 trunk",
        "+ LoRA in the top layer, first epoch",
        "+ LoRA in the top layer, later",
        "the head alone, first epoch",
        "the head alone, later",
    ]
    assert all(len(row.ratios) == 2 for row in rows)
    assert {row.model for row in rows} == {"epoch of tiny"}
