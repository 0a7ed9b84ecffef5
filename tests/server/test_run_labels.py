"""Holders whose text is not as the run says.

By its contract a holder refuses, is named with a code, and pays nothing. What is in a text is never
told: a record that does not fit contributes zero, and its holder answers like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.policy_file import simulated_policy
from confide.client.holder import Holder
from confide.common.errors import ConfideError
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
    "another label": another_label,
    "another case": another_case,
    "numbers": numbered,
    "another column": another_column,
    "no label": no_label,
}


def federation(folder: Path, **spoiled: Any) -> Path:
    """Three holders; the last row of those named is not like the others."""
    data = tiny.save_federation(folder)
    for name, change in spoiled.items():
        rows = tiny.rows(24, seed=5)
        told = [change(row) if n == 23 else dict(row) for n, row in enumerate(rows)]
        tiny.write_jsonl(data / f"{name}.jsonl", told)
    return data


def says(data: Path, name: str, table: str) -> None:
    """The contract of one simulated holder, beside its text."""
    (data / f"{name}.policy.toml").write_text(table, encoding="utf-8")


def members(data: Path, ledgers: Path) -> list[Holder]:
    """Simulated holders, each under the policy beside its text."""
    found = federated.holders(data, ledgers)
    for member in found:
        object.__setattr__(member.site, "policy", simulated_policy(member.site.data))
    return found


@pytest.mark.parametrize("case", SPOILED)
def test_what_a_text_holds_is_not_told_and_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, case: str
) -> None:
    data = federation(tmp_path / "data", **{"holder-01": SPOILED[case]})
    config = federated.config(tiny_model, data, tmp_path / "runs")
    holders = federated.holders(data, tmp_path / "ledgers")
    folder = run(config, federated.Transport(holders))
    for row in federated.events(folder, "round"):
        assert [each["holder"] for each in row["accepted"]] == [h.site.name for h in holders]
        assert row["left_out"] == []
    assert [holder.unused for holder in holders] == [0, 1, 0]
    everything = "".join(p.read_text() for p in folder.path.glob("*.*") if p.suffix != ".html")
    assert NEUTRAL not in everything, "a holder's label is private text"


MIXED = tiny.DATA_TABLE.replace('"positive"]', f'"positive", "{NEUTRAL}"]')
OTHER_COLUMN = tiny.DATA_TABLE.replace('target = "label"', 'target = "mood"')


@pytest.mark.parametrize(
    ("table", "code"), [(MIXED, "contract.labels"), (OTHER_COLUMN, "contract.target")]
)
def test_a_holder_whose_contract_does_not_fit_is_named_and_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, table: str, code: str
) -> None:
    data = federation(tmp_path / "data")
    says(data, "holder-01", table)
    config = federated.config(tiny_model, data, tmp_path / "runs")
    folder = run(config, federated.Transport(members(data, tmp_path / "ledgers")))
    for row in federated.events(folder, "round"):
        assert [each["holder"] for each in row["accepted"]] == ["holder-00", "holder-02"]
        assert row["left_out"] == [{"holder": "holder-01", "code": code}]
        assert not row["abandoned"]
    report = json.loads((folder.path / "report.json").read_text())
    assert {"round": 1, "holder": "holder-01", "code": code} in report["faults"]
    assert report["utility"]["after"]["accuracy"] is not None
    ledger = tmp_path / "ledgers" / "holder-01" / "ledger.sqlite"
    assert not ledger.exists(), "what was never used costs nothing"
    everything = "".join(p.read_text() for p in folder.path.glob("*.*") if p.suffix != ".html")
    assert NEUTRAL not in everything, "the contract stays at the holder"


def test_where_too_few_are_left_the_run_says_what_they_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = federation(tmp_path / "data")
    says(data, "holder-00", MIXED)
    says(data, "holder-01", OTHER_COLUMN)
    config = federated.config(tiny_model, data, tmp_path / "runs")
    with pytest.raises(ConfideError) as caught:
        run(config, federated.Transport(members(data, tmp_path / "ledgers")))
    assert caught.value.code == "run.too-few-holders"
    assert "holder-00 said contract.labels, holder-01 said contract.target" in caught.value.message
    assert not list((tmp_path / "ledgers").rglob("*.sqlite")), "and nobody was charged"
    assert NEUTRAL not in str(caught.value)


def test_a_number_outside_of_the_scale_is_not_told_either(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny.save_task_federation(tmp_path / "data", "regression", holders=3)
    rows = [{"text": "a day", "label": 4.0}, *({"text": "a town", "label": 0.5},) * 11]
    tiny.write_jsonl(data / "holder-02.jsonl", rows)
    config = federated.config(tiny_model, data, tmp_path / "runs", **tiny.TASKS["regression"])
    holders = federated.holders(data, tmp_path / "ledgers")
    folder = run(config, federated.Transport(holders))
    assert [row["left_out"] for row in federated.events(folder, "round")] == [[], []]
    assert [holder.unused for holder in holders] == [0, 0, 1]
