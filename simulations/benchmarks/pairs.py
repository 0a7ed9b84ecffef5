"""Paired times: what a step takes, as a ratio to another step a moment before or after it.

In each repetition every step runs once, in an order that rotates, with Python's garbage collector
off. A repetition gives one ratio to the base of the *same* repetition, so that a machine that
slows down slows both; the figure is the median of those ratios, its spread their quartiles.
On one thread the seconds are the processor's, so that other processes hardly matter; else the
clock's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

Seconds = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender on one model; without ``seconds`` the note says why.

    Attributes:
        seconds: of a step, one for each repetition.
        ratios: those over the base's of the same repetition.
        peak: bytes that a step needs on top of model and engine.
        memory: the same over the base's.
        difference: of the clipped sum from the reference, as a share of its largest value.
    """

    model: str
    engine: str
    seconds: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    peak: int | None = None
    memory: float | None = None
    difference: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """The figure: of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Its spread."""
        if len(self.ratios) < 2:
            return None
        low, _, high = statistics.quantiles(self.ratios, method="inclusive")
        return low, high

    def to_json(self) -> dict[str, Any]:
        """The row with its median and quartiles."""
        return {**asdict(self), "median": self.median, "quartiles": self.quartiles}


def interleaved(
    steps: Mapping[str, Callable[[], None]],
    repetitions: int,
    device: str = "cpu",
    threads: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each step, one for each repetition."""
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    names, seconds = list(steps), {name: list[float]() for name in steps}
    with _without_collector():
        for repetition in range(repetitions):
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                gc.collect()
                seconds[name].append(_seconds(steps[name], device, clock))
    return seconds


@contextmanager
def _without_collector() -> Iterator[None]:
    """Garbage is collected by request alone, and what is there already is not looked at again."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _seconds(step: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    _wait(device)
    started = clock()
    step()
    _wait(device)
    return clock() - started


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def ratios(seconds: Seconds, name: str, base: str) -> tuple[float, ...]:
    """Of ``name`` to ``base``, repetition by repetition."""
    return tuple(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


HEADER = """| model | engine | time (quartiles) | memory | seconds | MB |
|---|---|---|---|---|---|"""


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/benchmarks.md has it."""
    return "\n".join([HEADER, *map(line, rows)])


def line(row: Row) -> str:
    """One row of the table."""
    if row.median is None:
        figures = [row.note, "", "", ""]
    else:
        low, high = row.quartiles or (row.median, row.median)
        figures = [
            f"{_ratio(row.median)} ({_ratio(low)}–{_ratio(high)})",
            "–" if row.memory is None else _ratio(row.memory),
            f"{statistics.median(row.seconds):.3g}",
            "–" if row.peak is None else f"{row.peak / 1e6:.0f}",
        ]
    return f"| {' | '.join([row.model, row.engine, *figures])} |"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
