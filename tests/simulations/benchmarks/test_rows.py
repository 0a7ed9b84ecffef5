"""The lines of the utility table: intervals, and how they are shown."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from confide.simulations.benchmarks.rows import Row, overview


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
