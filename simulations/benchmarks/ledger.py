"""How much time a ledger takes in a round: a charge and a release, far from the limit and near it.

It repeats a holder's work without the training: open the ledger, and for each round charge, then
release. Two runs of the same plan follow each other. Near the limit means that both together cost
more than the limit, so that the second is refused at some round or as a whole. A charge is durable
when it returns, so every figure includes the disk. The time of the disk alone is below the table
(four syncs of a small file, as many as SQLite makes in one commit).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.ledger import Charge, Ledger
from ...common.privacy.plan import Plan

DELTA, EPSILON = 1e-5, 8.0
REPLY_BYTES = 15_368  # an update of the demo
SYNCS = 4  # of a commit: journal twice, file, end of the journal
HEADER = (
    "| sampling rate | limit | charges | charge p50 | p99 | worst | release p50 | p99 | entries |"
    " open |\n|---|---|---|---|---|---|---|---|---|---|"
)
_FAR, _NEAR = "far", "near"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times in seconds, in the order of the rounds; ``opened``: to open the ledger at the end."""

    rate: float
    limit: str
    charges: tuple[float, ...]
    releases: tuple[float, ...]
    entries: int
    opened: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "charge_p99": quantile(self.charges, 0.99),
            "release_p99": quantile(self.releases, 0.99),
        }


def quantile(times: Sequence[float], share: float) -> float:
    """The smallest of ``times`` that is at least as large as this share of them."""
    ordered = sorted(times)
    return ordered[math.ceil(share * len(ordered)) - 1]


def line(row: Row) -> str:
    """One row of the table, in milliseconds."""
    charges, releases = row.charges, row.releases
    figures = [quantile(charges, 0.5), quantile(charges, 0.99), max(charges)]
    figures += [quantile(releases, 0.5), quantile(releases, 0.99)]
    cells = [f"{row.rate:g}", row.limit, str(len(charges)), *(_ms(f) for f in figures)]
    return f"| {' | '.join([*cells, str(row.entries), _ms(row.opened)])} |"


def ledger_rows(
    folder: Path, *, rounds: int, say: Callable[[str], None] = lambda _: None
) -> Iterator[Row]:
    """Sampling rates 1 and 0.05, far from the limit and near it; a ledger each, in ``folder``."""
    for rate in (1.0, 0.05):
        plan = Plan.calibrate(
            epsilon=EPSILON,
            delta=DELTA,
            sampling_rate=rate,
            steps_per_round=1,
            max_rounds=rounds,
            clip_norm=1.0,
        )
        for name, limit in ((_FAR, 10 * EPSILON), (_NEAR, 1.2 * EPSILON)):
            say(f"sampling rate {rate:g}, {name}")
            yield _run(folder / f"{rate:g}-{name}.sqlite", name, plan, limit)


def sync_times(folder: Path, repetitions: int) -> list[float]:
    """Seconds of ``SYNCS`` small durable writes, by this disk."""
    path, times = folder / "sync", []
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        for _ in range(repetitions):
            start = time.perf_counter()
            for _ in range(SYNCS):
                os.pwrite(handle, os.urandom(4096), 0)
                os.fsync(handle)
            times.append(time.perf_counter() - start)
    finally:
        os.close(handle)
        path.unlink()
    return times


def summary(syncs: Sequence[float]) -> str:
    """The sentence below the table."""
    return (
        f"Times in milliseconds. {SYNCS} syncs of this disk alone: p50"
        f" {_ms(quantile(syncs, 0.5))}, p99 {_ms(quantile(syncs, 0.99))}."
    )


def _run(path: Path, name: str, plan: Plan, limit: float) -> Row:
    charges: list[float] = []
    releases: list[float] = []
    reply = os.urandom(REPLY_BYTES)
    with Ledger.open(path) as ledger:
        for number in range(2 * plan.max_rounds):
            run = f"run-{number // plan.max_rounds}"
            charge = Charge(run=run, round=number, task_hash=f"task-{number}", plan=plan)
            start = time.perf_counter()
            try:
                ledger.charge(charge, limit)
            except ConfideError as error:
                if error.code != "ledger.budget-exhausted":
                    raise
                break
            charged = time.perf_counter()
            ledger.release(charge.task_hash, reply)
            releases.append(time.perf_counter() - charged)
            charges.append(charged - start)
    start = time.perf_counter()
    with Ledger.open(path, create=False) as again:
        opened = time.perf_counter() - start
        return Row(
            rate=plan.sampling_rate,
            limit=name,
            charges=tuple(charges),
            releases=tuple(releases),
            entries=len(again.entries()),
            opened=opened,
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
