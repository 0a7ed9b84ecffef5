"""The lines of the utility table: intervals, how they are shown, and that the tables in the docs
are those of the runs that are kept beside them."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from confide.simulations.benchmarks.places import PARTITIONS
from confide.simulations.benchmarks.results import Row, markdown, overview
from confide.simulations.benchmarks.utility import compared_methods

# What ``make utility`` compares.
SCENARIOS = ("movies", "r8", "shakespeare")
EPSILONS = (None, 8.0, 3.0, 1.0)
SEEDS = 5


def row(*accuracies: float, **changes: Any) -> Row:
    plain = Row(
        partition="own",
        method="ffa",
        epsilon=8.0,
        rate=1.0,
        metric="accuracy",
        before=0.5,
        values=accuracies,
        others={},
        seconds=1.0,
        bytes_up=10,
        bytes_down=20,
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "values", [(0.5, 0.6), (0.5, 0.6, 0.7, 0.8, 0.55), tuple(n % 5 / 9 for n in range(14))]
)
def test_the_interval_is_students(values: tuple[float, ...]) -> None:
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=row(*values).mean, scale=stats.sem(values)
    )
    assert row(*values).half_width == pytest.approx((high - low) / 2, rel=1e-3)


def test_one_seed_has_no_interval() -> None:
    assert row(0.5).half_width == math.inf


def test_the_overview_has_a_line_for_each_method_and_text_and_a_column_for_each_epsilon() -> None:
    users = {"partition": "natural", "failed": ("run.no-round",), "seconds": 2.6}
    rows = [
        row(0.5, 0.7, epsilon=None),
        row(0.5, 0.6),
        row(0.9, method="fedex", epsilon=None, bytes_up=1234),
        row(0.8, **users),
        row(**users, epsilon=None),
    ]
    assert overview(rows).splitlines() == [
        "| text | method | no privacy | 8 | processor seconds | bytes up | bytes down |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| own | ffa | 0.600 ± 1.271 | 0.550 ± 0.635 | 1 | 10 | 20 |",
        "| own | fedex | 0.900 |  | 1 | 1,234 | 20 |",
        "| natural | ffa | - (1 failed) | 0.800 (1 failed) | 3 | 10 | 20 |",
    ]


def kept_rows(file: Path) -> list[Row]:
    """The rows of a scenario, from the runs that are kept, each as plainly as can be."""
    runs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    tried = {run["rate"] for run in runs if run["trial"]}
    found = []
    for cell in itertools.product(PARTITIONS, compared_methods(), EPSILONS):
        own = [r for r in runs if (r["partition"], r["method"], r["epsilon"]) == cell]
        told = sorted((r for r in own if not r["trial"]), key=lambda r: r["seed"])
        if not told:
            continue
        assert [r["seed"] for r in told] == list(range(SEEDS)), cell
        assert len({r["rate"] for r in told}) == 1, cell
        done = [r for r in told if not r["failed"]]
        found.append(
            Row(
                **{n: told[0][n] for n in ("partition", "method", "epsilon", "rate", "metric")},
                **{name: told[0][name] for name in ("bytes_up", "bytes_down")},
                before=statistics.fmean(r["before"] for r in done),
                values=tuple(r["value"] for r in done),
                others={name: tuple(r["others"][name] for r in done) for name in done[0]["others"]},
                seconds=statistics.median(r["seconds"] for r in told),
                at_edge=told[0]["rate"] in (min(tried), max(tried)),
                failed=tuple(r["failed"] for r in told if r["failed"]),
            )
        )
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_tables_in_the_docs_are_those_of_the_runs_that_are_kept(
    scenario: str, root: Path
) -> None:
    rows = kept_rows(root / "docs" / "utility" / f"{scenario}.jsonl")
    page = (root / "docs" / "aggregation.md").read_text(encoding="utf-8")
    shown = re.search(rf"<!-- methods: {scenario} -->\n((?:\|.*\n)+)", page)
    assert shown, scenario
    assert shown[1].strip() == overview(rows)
    whole = (root / "docs" / "utility" / f"{scenario}.md").read_text(encoding="utf-8")
    assert markdown(rows) in whole
