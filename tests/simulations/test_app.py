"""The ServerApp of a simulation holds every file against the run's settings before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.server.run import run
from confide.simulations import app as module
from confide.simulations.ready import check_text
from tests import tiny
from tests.server import federated


def test_a_record_that_does_not_fit_is_told_before_anything_is_trained_or_charged(
    tiny_model: Path, tmp_path: Path
) -> None:
    """FAULTS F2: one label of many mistyped, and the others were charged for nothing."""
    data = tiny.save_federation(tmp_path / "data")
    file = data / "holder-01.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[7]["label"] = "negativ"
    tiny.write_jsonl(file, rows)
    flat = federated.config(tiny_model, data, tmp_path / "runs")
    transport = federated.Transport(federated.holders(data, tmp_path / "ledgers"))
    with pytest.raises(ConfideError, match=r"Record 8 of holder-01\.jsonl") as caught:
        run(flat, transport, check=check_text)
    assert caught.value.code == "data.unfit"
    assert transport.tasks == []
    assert federated.events(federated.only_folder(tmp_path / "runs"), "end")[0]["code"] == (
        "data.unfit"
    )


def test_plain_flwr_run_looks_too_and_does_not_wait_for_holders_that_cannot_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(module, "serve", lambda *args, **named: seen.append((args, named)))
    grid, context = SimpleNamespace(), SimpleNamespace(run_config={})
    module.main(grid, context)  # type: ignore[arg-type]
    ((args, named),) = seen
    assert args == (grid, context, check_text)
    assert 0 < named["patience"] <= 60
