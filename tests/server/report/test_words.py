"""The standing words: all that leaves and is not accounted, and all that is not covered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.common.wire.outgoing import OUTGOING, Protection
from confide.server.report.build import build_report
from tests.server.report.conftest import MakeRun

TOTALS = "The ledger's length, its totals and the number of runs in each receipt"
LIMIT = "The holder's limit on epsilon in each receipt"
KEYS = "Keys and masks of secure sums"


def things(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["what"]: row["why"] for row in rows}


def test_what_left_without_being_accounted_is_told(torch_free_report: dict[str, Any]) -> None:
    released = torch_free_report["released"]
    assert len(released["accounted"]) == 1
    told = things(released["not_accounted"])
    assert set(told) == {
        "Which holders took part, and why one did not",
        TOTALS,
        LIMIT,
        KEYS,
        "The time of each answer",
    }


def test_every_field_outside_the_guarantee_has_its_line(torch_free_report: dict[str, Any]) -> None:
    """A field that is added to the messages needs a place here, and in the report's words."""
    lines = {
        "Which holders took part, and why one did not": {"holder", "code", "src_node_id", "schema"},
        TOTALS: {
            "receipt", "ledger_id", "head", "entries", "epsilon", "proven", "unmasked", "runs",
            "steps_run",
        },
        LIMIT: {"limit"},
        KEYS: {"card", "statement", "values"},
        "The time of each answer": {
            "created_at", "delivered_at", "ttl", "message_id", "src_task_id",
        },
    }  # fmt: skip
    outside = {field.name for field in OUTGOING if field.protection is Protection.OUTSIDE}
    assert set().union(*lines.values()) == outside
    assert set(lines) == set(things(torch_free_report["released"]["not_accounted"]))


def test_without_noise_the_update_itself_is_not_accounted(make_run: MakeRun) -> None:
    report = build_report(make_run(privacy__trust="off"), prv=False)
    assert report["released"]["accounted"] == []
    assert "it can reveal records" in json.dumps(report["released"]["not_accounted"])


def test_a_factor_that_stays_is_not_said_to_leave(make_run: MakeRun) -> None:
    changes = {"aggregate__method": "fedsa", "round__mode": "steps"}
    (row,) = build_report(make_run(**changes), prv=False)["released"]["accounted"]
    assert "without LoRA's B" in row["what"]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([770], "adapter of 770 numbers per round"),
        ([512, 1768], "adapter of 512 or 1,768 numbers (rounds differ) per round"),
        (None, "adapter per round"),
    ],
)
def test_the_numbers_of_an_update_are_those_that_leave(
    make_run: MakeRun, sent: list[int] | None, told: str
) -> None:
    """Not all that is trained: a factor may stay (``fedsa``), or rest in a round (``rolora``)."""
    folder = make_run(round__mode="steps")
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    start = json.loads(lines[0])
    start["model"]["sent"] = sent
    changed = "\n".join([json.dumps(start), *lines[1:]]) + "\n"
    (folder / "metrics.jsonl").write_text(changed, "utf-8")
    (row,) = build_report(folder, prv=False)["released"]["accounted"]
    assert told in row["what"]


def test_what_is_not_covered_is_told_whoever_the_holder_is(
    torch_free_report: dict[str, Any],
) -> None:
    told = things(torch_free_report["not_protected"])
    assert set(told) == {
        "A person with several records",
        "One person at several holders",
        "Facts shared by many",
        "The holder's own machine",
        "A holder that runs other software",
        "Limits of the machine",
    }
    assert "floating point" in told["Limits of the machine"]
    assert "time depends on the text" in told["Limits of the machine"]
