"""What privacy costs in the task's main metric, by method, trust, epsilon and partition, with seeds
and intervals.

Every run is an ordinary run in this process. A seed decides the initial adapter; the noise is fresh
each time. Intervals are of the mean over seeds (Student's t). The held-out records are the same in
all runs, so the intervals cover another run on these records, not on others.

A learning rate that was tuned for one method makes it look better than the others. So each method
gets as many trials, over the same rates, at each epsilon, at the first of the partitions, with
seeds of their own; they are judged on one half of the public records, and the table on the other.
Or they are judged on all public records of another scenario, and the table is on all of its own.
The text is public: on private text each trial would have to be paid for.

Whom one trusts is one of three: ``local``, where each holder adds all of the noise;
``distributed``, shares behind a secure sum that provides for one holder in five who colludes and
one in five who is missing; ``central``, one trusted place that has all records and adds the noise
once. The last is no mode of confide, but a run of one holder with a divisor as many times as large:
the same sum of clipped gradients over the same number, which is central DP-SGD exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.methods import METHODS
from ...common.methods.lora import Lora
from ...common.metrics import METRICS
from ...common.models.batches import frozen_layers_shared
from ...common.settings import COORDINATORS_OWN, PrivacySpec, Scalar
from ...common.tasks import TASKS
from ...common.tasks.task import PERPLEXITY
from ..scenario import Scenario, run_config
from ..simulation import in_process
from .places import EVERYTHING, Place
from .results import Measured, Results, Row

_REACH = 8.0  # of the rates that are tried, above and below the scenario's
_TUNING_SEEDS = (2**31 - 1, 2**31 - 2)  # no row has them
_TRIED_TWICE = 2  # rates

# How often a run is measured: before and after it is all that the table wants.
_MEASURED = "round.evaluate-every"
_CHANGES_NOTHING = (*COORDINATORS_OWN, _MEASURED)

TRUSTS = ("local", "distributed", "central")
_HEAD = "head"  # the line of the private head alone, without LoRA


def compared_methods() -> dict[str, dict[str, Scalar]]:
    """The rows that a table may have, by method, each with its settings; plain LoRA and the head
    come last. Each row sets ``lora.method``, since the scenario's own may be the head alone."""
    found: dict[str, dict[str, Scalar]] = {
        name: {"lora.method": "lora", "aggregate.method": name, **method.needs()}
        for name, method in sorted(METHODS.items(), key=lambda one: one[0] == Lora.name)
        if method.compared
    }
    return found | {_HEAD: {"lora.method": "head"}}


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table compares.

    Attributes:
        places: where the runs take place, by partition.
        seeds: runs of each row.
        trials: learning rates that are tried for each method and epsilon; 0 takes the scenario's.
        trusts: the kinds of trust to compare, of ``TRUSTS``.
        other: the table on whose text rates are chosen, by all of its public records.
        whole: whether this is such a table.
    """

    scenario: Scenario
    methods: Sequence[str]
    epsilons: Sequence[float | None]
    places: Sequence[Place]
    seeds: int = 5
    trials: int = 0
    trusts: Sequence[str] = ("local",)
    other: Table | None = None
    whole: bool = False

    @property
    def in_halves(self) -> bool:
        """Whether one half of the public records chooses and the other is reported."""
        return bool(self.trials) and self.other is None and not self.whole


def utility(
    table: Table, results: Results, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Every row of the table. Runs that are in ``results`` are not repeated.

    Every row gets its first run before any gets its second, so that a table that is stopped has all
    rows, with fewer runs.

    Raises:
        ConfideError: ``bench.public``. A run that fails counts in its row and raises nothing.
    """
    runs: dict[tuple[str, str, float | None], list[Measured]] = {}
    cells = list(itertools.product(table.methods, table.trusts, table.epsilons))
    with frozen_layers_shared():
        for seed, where in itertools.product(range(table.seeds), table.places):
            for method, trust, epsilon in cells:
                run = _Cell(table, where, method, epsilon, results, say, trust)
                if why := _left_out(table, where, method, epsilon, trust):
                    say(f"{run.name}, epsilon {epsilon or 'off'}: left out, {why}")
                    continue
                rate = _chosen_rate(replace(run, where=table.places[0]), table)
                cell = (where.partition, run.name, epsilon)
                runs.setdefault(cell, []).append(run.measured(seed, rate))
    return [_row(cell, table) for cell in runs.values()]


def _left_out(table: Table, where: Place, method: str, epsilon: float | None, trust: str) -> str:
    """Why there is no such row; empty if there is one."""
    if epsilon is None and trust != "local":
        return "without noise nobody has to be trusted with it"
    config = run_config(table.scenario)
    kind = str(config["task.kind"])
    if method == _HEAD:
        headless = TASKS[kind].language
        return f"task.kind = {kind!r} has no head of its own" if headless else ""
    facts = METHODS[method]
    same = facts.at_one_rank
    if same in table.methods and where.smallest_rank >= int(config["lora.rank"]):
        return f"where no holder's rank is smaller it is {same}"
    if facts.noise.verdict == "refused" and epsilon is not None:
        return "it is for runs without noise"
    if trust == "distributed" and not facts.summed:
        return "it takes more than the sum of the updates"
    if facts.stays and TASKS[kind].language:
        stays = f"its {facts.stays} stays at the holders"
        return f"{stays}, and task.kind = {kind!r} has no head to measure"
    return ""


def rates(centre: float, trials: int) -> list[float]:
    """The learning rates that are tried: evenly spaced by their logarithm, from an eighth of the
    scenario's to eight times it, the same for every method."""
    if trials < 2:
        return [centre]
    spaced = [centre * _REACH ** (2 * i / (trials - 1) - 1) for i in range(trials)]
    return [float(f"{rate:.3g}") for rate in spaced]


@dataclass(frozen=True)
class _Cell:
    """A method at an epsilon at a place."""

    table: Table
    where: Place
    method: str
    epsilon: float | None
    results: Results
    say: Callable[[str], None]
    trust: str = "local"

    @property
    def name(self) -> str:
        """The method's name in the table, with the kind of trust if that is not the default."""
        return self.method if self.trust == "local" else f"{self.method}, {self.trust}"

    def measured(self, seed: int, rate: float, *, trial: bool = False) -> Measured:
        """The run of a seed at a rate; made only if ``results`` lacks it."""
        part = ("choose" if trial else "report") if self.table.in_halves else EVERYTHING
        config = self.config(seed, rate)
        told = {key: value for key, value in config.items() if key not in _CHANGES_NOTHING}
        decided = json.dumps([told, self.where.digest(part)], sort_keys=True)
        of = hashlib.sha256(decided.encode()).hexdigest()
        known = self.results.get(of)
        if known is not None:
            return known
        purpose = "trial of rate" if trial else f"seed {seed}, rate"
        epsilon = "off" if self.epsilon is None else f"{self.epsilon:g}"
        self.say(f"{self.where.partition}, {self.name}, epsilon {epsilon}, {purpose} {rate:g}")
        started = time.process_time()
        try:
            where = replace(self.where, pooled=self.trust == "central")
            figures = _run(config, where, part)
        except ConfideError as error:
            figures = {"failed": error.code, "others": {}}
        result = Measured(
            of=of,
            scenario=self.table.scenario.name,
            partition=self.where.partition,
            method=self.name,
            epsilon=self.epsilon,
            seed=seed,
            rate=rate,
            trial=trial,
            seconds=round(time.process_time() - started, 2),
            **figures,
        )
        self.results.add(result)
        return result

    def config(self, seed: int, rate: float | None = None) -> dict[str, Scalar]:
        """The flat settings of a run."""
        config = {**run_config(self.table.scenario), **compared_methods()[self.method]}
        config |= {"run.seed": seed, _MEASURED: 0, **_privacy(self.epsilon)}
        config |= _trusting(self.trust, len(self.where.holders), config)
        return config if rate is None else config | {"train.lr": rate}


def _privacy(epsilon: float | None) -> dict[str, Scalar]:
    return {"privacy.trust": "off"} if epsilon is None else {"privacy.epsilon": epsilon}


def _trusting(trust: str, holders: int, config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings of this kind of trust, with this many holders. A fifth of them may collude
    unless the scenario names another number."""
    if trust == "central":
        batch = int(config["train.batch"]) * holders
        return {"round.min-holders": 1, "round.holders": 1, "train.batch": batch}
    if trust == "local" or config["privacy.trust"] == "off":
        return {}
    named, default = config["privacy.colluding"], PrivacySpec().colluding
    return {
        "privacy.trust": trust,
        "privacy.colluding": max(1, holders // 5) if named == default else named,
        "round.min-holders": math.ceil(0.8 * holders),
    }


def _chosen_rate(cell: _Cell, table: Table) -> float:
    """The rate that does best on the half of the public records that is not reported. If a method
    fails at every rate, the scenario's; its row will say that it fails.

    Each rate is tried once, and of three or more the best two once more (successive halving,
    Jamieson and Talwalkar 2016): if a method is about to diverge, one run may do well and the next
    one badly.
    """
    if table.other is not None:
        other = replace(cell, table=table.other, where=table.other.places[0])
        return _chosen_rate(other, table.other)
    centre = float(cell.config(0)["train.lr"])
    if not table.trials:
        return centre
    first, second = _TUNING_SEEDS
    tried = [[cell.measured(first, rate, trial=True)] for rate in rates(centre, table.trials)]
    best = sorted(filter(_sound, tried), key=_merit)[-_TRIED_TWICE:]
    if len(tried) > _TRIED_TWICE and len(best) > 1:
        for runs in best:
            runs.append(cell.measured(second, runs[0].rate, trial=True))
    left = list(filter(_sound, best)) or list(filter(_sound, tried))
    return max(left, key=_merit)[0].rate if left else centre


def _sound(runs: Sequence[Measured]) -> bool:
    return not any(run.failed for run in runs)


def _merit(runs: Sequence[Measured]) -> tuple[float, float]:
    """A larger value is better; of two equal metrics, the smaller loss wins."""
    name = runs[0].metric
    sign = -1 if name == PERPLEXITY or METRICS[name].less else 1
    return sign * statistics.fmean(r.value for r in runs), -statistics.fmean(r.loss for r in runs)


def _run(config: Mapping[str, Scalar], where: Place, part: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        out, holders = Path(scratch), where.holders
        if where.pooled:
            whole = out / "holder-00.jsonl"
            whole.write_bytes(b"".join(file.read_bytes() for file in holders))
            holders = [whole]
        public = where.public(part, config, out / "public")
        changed = {"run.out": str(out / "runs"), "data.path": str(public)}
        done = in_process({**config, **changed}, holders)
        rows = done.metrics
    first, *_, last = [row for row in rows if "metric" in row]
    rounds = [row for row in rows if "bytes_up" in row]
    metric = last["metric"]
    if not math.isfinite(last[metric]):
        raise ConfideError("bench.not-finite", f"The {metric} is {last[metric]} after the run.")
    return {
        "metric": metric,
        "before": first[metric],
        "value": last[metric],
        "loss": last["loss"],
        "others": {
            name: last[name] for name in last if name in (PERPLEXITY, *METRICS) and name != metric
        },
        "bytes_up": round(statistics.fmean(e["bytes_up"] for e in rounds)),
        "bytes_down": round(statistics.fmean(e["bytes_down"] for e in rounds)),
    }


def _row(runs: Sequence[Measured], table: Table) -> Row:
    done = [run for run in runs if not run.failed]
    first = done[0] if done else runs[0]
    chooses = table.other or table
    tried = rates(float(run_config(chooses.scenario)["train.lr"]), chooses.trials)
    return Row(
        partition=first.partition,
        method=first.method,
        epsilon=first.epsilon,
        rate=first.rate,
        metric=first.metric,
        before=statistics.fmean(r.before for r in done) if done else math.nan,
        values=tuple(r.value for r in done),
        others={name: tuple(r.others[name] for r in done) for name in first.others},
        seconds=statistics.median(r.seconds for r in runs),
        bytes_up=first.bytes_up,
        bytes_down=first.bytes_down,
        at_edge=chooses.trials > 1 and first.rate in (tried[0], tried[-1]),
        failed=tuple(run.failed for run in runs if run.failed),
    )
