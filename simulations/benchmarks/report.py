"""How long a privacy report takes: a made-up run folder of many rounds and holders.

Each holder has another number of records, so that no two have the same sampling rate and noise, and
takes part in other rounds: all histories differ. The time covers reading metrics.jsonl, adding it
up, and every epsilon of the report; Opacus's second opinion is left out.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ...common.privacy.accountant import GaussianSteps, calibrate
from ...common.privacy.ledger import Receipt
from ...common.settings import Settings
from ...server.report.build import build_report
from ...server.run_folder import RunFolder

EPSILON, DELTA, BATCH = 8.0, 1e-6, 64
_ANCHORS = 24  # sizes at which the noise is calibrated; between them the next larger noise is used


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    rounds: int
    holders: int
    asked: int
    histories: int
    metrics_mb: float
    seconds: float
    processor_seconds: float
    peak_memory_mb: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


HEADER = (
    "| rounds | holders | asked a round | different histories | metrics.jsonl | time |"
    " processor time | peak memory |\n|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """The row in Markdown."""
    return (
        f"| {row.rounds:,} | {row.holders:,} | {row.asked:,} | {row.histories:,} |"
        f" {row.metrics_mb:,.0f} MB | {row.seconds:.1f} s | {row.processor_seconds:.1f} s |"
        f" {row.peak_memory_mb:,.0f} MB |"
    )


def report_row(*, rounds: int, holders: int, asked: int, say: Callable[[str], None]) -> Row:
    """Make the folder up, compute its report, and say how long that took."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as place:
        folder = RunFolder.create(place, "bench")
        say("report: making up a run")
        histories = make_folder(folder, rounds=rounds, holders=holders, asked=asked)
        size = (folder.path / "metrics.jsonl").stat().st_size / 1e6
        say("report: computing")
        started, processor = time.perf_counter(), time.process_time()
        build_report(folder.path, prv=False)
        seconds = time.perf_counter() - started
        processor = time.process_time() - processor
    return Row(
        rounds=rounds,
        holders=holders,
        asked=asked,
        histories=histories,
        metrics_mb=round(size, 1),
        seconds=round(seconds, 2),
        processor_seconds=round(processor, 2),
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def make_folder(folder: RunFolder, *, rounds: int, holders: int, asked: int) -> int:
    """Write config.toml and metrics.jsonl; return the number of different histories."""
    settings = Settings().to_flat() | {
        "model.name": "made-up",
        "task.labels": "no,yes",
        "privacy.epsilon": EPSILON,
        "privacy.delta": DELTA,
        "train.batch": BATCH,
        "round.count": rounds,
        "round.holders": asked if asked < holders else 0,
    }
    folder.write_config(settings)
    rates = [min(1.0, BATCH / (BATCH + 8 * (number + 1))) for number in range(holders)]
    noises = list(_noises(rates, rounds))
    taken = [0] * holders
    generator = random.Random(0)  # noqa: S311 - a made-up run
    with (folder.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        start = {"event": "start", "run": folder.id, "federation": {"holders": holders}}
        file.write(json.dumps(start) + "\n")
        for number in range(1, rounds + 1):
            chosen = generator.sample(range(holders), asked)
            for holder in chosen:
                taken[holder] += 1
            rows = [
                _update(holder, taken[holder], noises[holder], rates[holder]) for holder in chosen
            ]
            file.write(json.dumps(_round(number, rows, holders)) + "\n")
    return len({(n, q, z) for n, q, z in zip(taken, rates, noises, strict=True) if n})


def _noises(rates: list[float], rounds: int) -> Iterator[float]:
    """Noise for ``rounds`` steps at each rate, calibrated at some rates and rounded up between
    them."""
    lowest, highest = min(rates), max(rates)
    ratio = (highest / lowest) ** (1 / max(1, _ANCHORS - 1))
    anchors = [highest / ratio**place for place in range(_ANCHORS)][::-1]
    found = [
        calibrate(epsilon=EPSILON, delta=DELTA, sampling_rate=min(1.0, q), steps=rounds)
        for q in anchors
    ]
    for rate in rates:
        place = next((i for i, q in enumerate(anchors) if q >= rate * (1 - 1e-9)), len(found) - 1)
        yield found[place] * (1 + 1e-6 * rate)  # no two alike


def _update(holder: int, taken: int, noise: float, rate: float) -> dict[str, Any]:
    steps = GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=taken)
    receipt = Receipt(
        ledger_id=f"{holder:032x}",
        head=f"{taken:064x}",
        entries=2 * taken,
        delta=DELTA,
        epsilon=EPSILON * taken / 1e6,
        proven=EPSILON,
        unmasked=EPSILON,
        runs=1,
        limit=None,
        steps_run=(steps,),
    )
    return {"holder": f"holder-{holder:04d}", "bytes_up": 15_368, "receipt": receipt.to_json()}


def _round(number: int, rows: list[dict[str, Any]], holders: int) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "seconds": 1.0,
        "bytes_down": 1,
        "bytes_up": 1,
        "accepted": rows,
        "left_out": [],
        "abandoned": False,
        "asked": len(rows),
        "connected": holders,
    }
