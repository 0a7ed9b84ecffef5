"""Holders whose labels are not the run's: named with a code, at no cost, and the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.server.run import run
from tests import tiny
from tests.server import federated

NEUTRAL = "neither-here-nor-there"  # a label of one holder alone


def another_label(row: dict[str, str]) -> dict[str, Any]:
    return {**row, "label": NEUTRAL}


def another_column(row: dict[str, str]) -> dict[str, Any]:
    return {"text": row["text"], "mood": row["label"]}


def another_case(row: dict[str, str]) -> dict[str, Any]:
    return {**row, "label": row["label"].upper()}


def no_label(row: dict[str, str]) -> dict[str, Any]:
    return {**row, "label": None}


def numbered(row: dict[str, str]) -> dict[str, Any]:
    return {**row, "label": ("negative", "positive").index(row["label"])}


SPOILED = {
    "another label": (another_label, "data.unknown-label"),
    "another case": (another_case, "data.unknown-label"),
    "numbers": (numbered, "data.unknown-label"),
    "another column": (another_column, "data.missing-column"),
    "no label": (no_label, "data.bad-value"),
}


def federation(folder: Path, **spoiled: Any) -> Path:
    """Three holders; the last row of those named is not like the others."""
    data = tiny.save_federation(folder)
    for name, change in spoiled.items():
        rows = tiny.rows(24, seed=5)
        whole = change is another_column  # a column is missing in every row, or the file is torn
        told = [change(r) if whole or n == 23 else dict(r) for n, r in enumerate(rows)]
        tiny.write_jsonl(data / f"{name}.jsonl", told)
    return data


@pytest.mark.parametrize("case", SPOILED)
def test_a_holder_with_other_labels_is_named_and_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, case: str
) -> None:
    change, code = SPOILED[case]
    data = federation(tmp_path / "data", **{"holder-01": change})
    config = federated.config(tiny_model, data, tmp_path / "runs")
    folder = run(config, federated.Transport(federated.holders(data, tmp_path / "ledgers")))
    for row in federated.events(folder, "round"):
        assert [each["holder"] for each in row["accepted"]] == ["holder-00", "holder-02"]
        assert row["left_out"] == [{"holder": "holder-01", "code": code}]
        assert not row["abandoned"]
    report = json.loads((folder.path / "report.json").read_text())
    assert {"round": 1, "holder": "holder-01", "code": code} in report["faults"]
    assert report["utility"]["after"]["accuracy"] is not None
    with Ledger.open(tmp_path / "ledgers" / "holder-01" / "ledger.sqlite") as ledger:
        assert ledger.steps(folder.id) == (), "what was never used costs nothing"
    everything = "".join(p.read_text() for p in folder.path.glob("*.*") if p.suffix != ".html")
    assert NEUTRAL not in everything, "a holder's label is private text"


def test_where_too_few_are_left_the_run_says_what_they_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    spoiled = {"holder-00": another_label, "holder-01": another_column}
    data = federation(tmp_path / "data", **spoiled)
    config = federated.config(tiny_model, data, tmp_path / "runs")
    members = federated.holders(data, tmp_path / "ledgers")
    with pytest.raises(ConfideError) as caught:
        run(config, federated.Transport(members))
    assert caught.value.code == "run.no-round"
    assert "data.unknown-label (1)" in caught.value.message
    assert "data.missing-column (1)" in caught.value.message
    assert NEUTRAL not in str(caught.value)


def test_a_number_outside_of_the_scale_is_named_likewise(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny.save_task_federation(tmp_path / "data", "regression", holders=3)
    rows = [{"text": "a day", "label": 4.0}, *({"text": "a town", "label": 0.5},) * 11]
    tiny.write_jsonl(data / "holder-02.jsonl", rows)
    config = federated.config(tiny_model, data, tmp_path / "runs", **tiny.TASKS["regression"])
    folder = run(config, federated.Transport(federated.holders(data, tmp_path / "ledgers")))
    for row in federated.events(folder, "round"):
        assert row["left_out"] == [{"holder": "holder-02", "code": "data.bad-number"}]
        assert not row["abandoned"]
