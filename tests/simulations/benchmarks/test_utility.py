"""The utility table: intervals, rows, and a whole small one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from confide.simulations.benchmarks import utility as bench
from confide.simulations.benchmarks.utility import Row, markdown, utility
from confide.simulations.scenario import Scenario
from tests import tiny


def row(*accuracies: float) -> Row:
    return Row(
        method="ffa",
        epsilon=8.0,
        metric="accuracy",
        before=0.5,
        values=accuracies,
        others={},
        seconds=1.0,
        bytes_up=10,
    )


@pytest.mark.parametrize("values", [(0.5, 0.6), (0.5, 0.6, 0.7, 0.8, 0.55)])
def test_the_interval_is_students(values: tuple[float, ...]) -> None:
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=row(*values).mean, scale=stats.sem(values)
    )
    assert row(*values).half_width == pytest.approx((high - low) / 2, rel=1e-3)


def test_one_seed_has_no_interval() -> None:
    assert row(0.5).half_width == math.inf


def test_the_table_has_a_line_for_every_method_and_epsilon(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "prepare", lambda _: tiny_federation)
    config = tiny.config(tiny_model, tiny_federation, tmp_path, round__count=1)
    scenario = Scenario(name="tiny", source="x", holders=3, partition="unit", config=config)
    rows = list(utility(scenario, methods=["ffa", "head"], epsilons=[None, 3.0], seeds=2))
    assert [(r.method, r.epsilon, len(r.values)) for r in rows] == [
        ("ffa", None, 2),
        ("ffa", 3.0, 2),
        ("head", None, 2),
        ("head", 3.0, 2),
    ]
    assert rows[0].bytes_up > rows[2].bytes_up > 0
    assert markdown(rows).count("\n") == 5
    assert "| no privacy |" in markdown(rows)
