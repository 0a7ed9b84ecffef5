"""Benchmarks that print tables: what privacy costs in the task's main metric, with seeds and
intervals.

Every row is the product's own run, in this process, on the scenario's own split; a seed decides
the initial adapter, and the noise is fresh each time, as it is for everybody. Intervals are of
the mean over seeds (Student's t); the held-out records are the same, so they say how far another
run would land on these records, not on others.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.settings import Scalar
from ...server.run import run
from ..inprocess import federation
from ..scenario import Scenario, prepare, run_config

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

_NO_METRIC = ("event", "time", "round", "examples", "loss", "metric")

METHODS: Mapping[str, Mapping[str, Scalar]] = {
    "ffa": {"aggregate.method": "ffa"},
    "fedsvd": {"aggregate.method": "fedsvd"},
    "rolora": {"aggregate.method": "rolora", "aggregate.optimizer": "none"},
    "hetlora": {"aggregate.method": "hetlora"},
    "flexlora": {"aggregate.method": "flexlora"},
    "fedex": {"aggregate.method": "fedex", "aggregate.optimizer": "none"},
    "flora": {"aggregate.method": "flora", "aggregate.optimizer": "none"},
    "fedsa": {"aggregate.method": "fedsa", "round.mode": "steps"},
    "lora": {"aggregate.method": "lora"},
    "head": {"lora.method": "head"},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The main metric of a method at an epsilon over the seeds; epsilon None means no privacy.

    Attributes:
        before: the main metric before training, the mean over the seeds.
        others: the task's other metrics, over the same seeds.
    """

    method: str
    epsilon: float | None
    metric: str
    before: float
    values: tuple[float, ...]
    others: Mapping[str, tuple[float, ...]]
    seconds: float
    bytes_up: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean; infinite for one seed."""
        return half_width(self.values)

    def to_json(self) -> dict[str, Any]:
        """The row with its mean and interval."""
        return {**asdict(self), "mean": self.mean, "half_width": self.half_width}


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean; infinite for one value."""
    n = len(values)
    if n < 2:
        return math.inf
    quantile = _T95[n - 1] if n <= len(_T95) else 1.96
    return quantile * statistics.stdev(values) / math.sqrt(n)


def utility(
    scenario: Scenario,
    *,
    methods: Sequence[str],
    epsilons: Sequence[float | None],
    seeds: int,
    changes: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Rows as they are ready."""
    data = prepare(scenario)
    for method in methods:
        for epsilon in epsilons:
            results = []
            for seed in range(seeds):
                say(f"{method}, epsilon {epsilon or 'off'}, seed {seed}")
                config = {**run_config(scenario, changes), **METHODS[method], "run.seed": seed}
                results.append(_one(config | _privacy(epsilon), data))
            others = results[0]["others"]
            yield Row(
                method=method,
                epsilon=epsilon,
                metric=results[0]["metric"],
                before=statistics.fmean(r["before"] for r in results),
                values=tuple(r["value"] for r in results),
                others={name: tuple(r["others"][name] for r in results) for name in others},
                seconds=statistics.fmean(r["seconds"] for r in results),
                bytes_up=results[0]["bytes_up"],
            )


def _privacy(epsilon: float | None) -> dict[str, Scalar]:
    return {"privacy.trust": "off"} if epsilon is None else {"privacy.epsilon": epsilon}


def _one(config: Mapping[str, Scalar], data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        out = Path(scratch)
        files = sorted(data.glob("holder-*.jsonl"))
        started = time.monotonic()
        changed = {"run.out": str(out / "runs"), "data.path": str(data)}
        folder = run({**config, **changed}, federation(files, out / "ledgers"))
        seconds = time.monotonic() - started
        lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    first, *_, last = [e for e in events if e["event"] == "evaluation"]
    metric = last["metric"]
    return {
        "metric": metric,
        "before": first[metric],
        "value": last[metric],
        "others": {name: last[name] for name in last if name not in (*_NO_METRIC, metric)},
        "bytes_up": [e["bytes_up"] for e in events if e["event"] == "round"][-1],
        "seconds": seconds,
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/benchmarks.md has it."""
    metrics = [rows[0].metric, *rows[0].others] if rows else ["accuracy"]
    heads = ["method", "epsilon", "before", f"{metrics[0]} (95 % interval)", *metrics[1:]]
    table = [[*heads, "seeds", "seconds", "bytes up"]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        epsilon = "no privacy" if row.epsilon is None else f"{row.epsilon:g}"
        figures = [_figure(values) for values in (row.values, *row.others.values())]
        costs = [str(len(row.values)), f"{row.seconds:.0f}", f"{row.bytes_up:,}"]
        table.append([row.method, epsilon, f"{row.before:.3f}", *figures, *costs])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _figure(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {half_width(values):.3f}"
