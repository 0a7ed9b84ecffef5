"""Results of runs, one JSON object a line, kept as they are ready, and the rows of the utility
table.

A table takes hours, so that a run which is in the file already is not done again: the same
command goes on where it was killed. What makes two runs the same is a digest over all that
decides them; a last line that a kill tore is dropped, and that run is done again.
"""

from __future__ import annotations

import fcntl
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ...common.errors import ConfideError


@dataclass(frozen=True, kw_only=True)
class Row:
    """The main metric of a method at an epsilon over the seeds; epsilon None means no privacy.

    Attributes:
        at_edge: whether ``rate`` is the least or the largest that was tried, so that one beyond
            might do better.
        failed: the codes of the runs that failed, of which ``values`` has none.
        seconds: the median over the runs: one of them computes the frozen layers for all.
        before: the main metric before training, the mean over the seeds.
        others: the task's other metrics, over the same seeds.
    """

    partition: str
    method: str
    epsilon: float | None
    rate: float
    metric: str
    before: float
    values: tuple[float, ...]
    others: Mapping[str, tuple[float, ...]]
    seconds: float
    bytes_up: int
    bytes_down: int
    at_edge: bool = False
    failed: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean; infinite for one seed."""
        return half_width(self.values)

    def to_json(self) -> dict[str, Any]:
        """The row with its mean and interval, null where there is none."""
        found = {**asdict(self), "mean": self.mean, "half_width": self.half_width}
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in found.items()
        }


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean; infinite for one value."""
    n = len(values)
    if n < 2:
        return math.inf
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def markdown(rows: Sequence[Row]) -> str:
    """Everything that is known of each row."""
    known = next((row for row in rows if row.values), None)
    metrics = [known.metric, *known.others] if known else ["metric"]
    heads = ["text", "method", "epsilon", "rate", "before", f"{metrics[0]} (95 % interval)"]
    table = [[*heads, *metrics[1:], "seeds", "processor seconds", "bytes up", "bytes down"]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        epsilon = _epsilon(row.epsilon)
        rate = f"{row.rate:g}{' (edge)' if row.at_edge else ''}"
        others = [row.others.get(name, ()) for name in metrics[1:]]
        before = f"{row.before:.3f}" if row.values else "-"
        codes = ", ".join(sorted(set(row.failed)))
        failed = f" ({len(row.failed)} failed: {codes})" if row.failed else ""
        costs = [f"{len(row.values)}{failed}", f"{row.seconds:.0f}"]
        costs += [f"{row.bytes_up:,}", f"{row.bytes_down:,}"]
        figures = [_figure(values) for values in (row.values, *others)]
        table.append([row.partition, row.method, epsilon, rate, before, *figures, *costs])
    return _lines(table)


def overview(rows: Sequence[Row]) -> str:
    """The main metric alone, by method and epsilon: a line for each method and text. Bytes and
    seconds are those of the line's last epsilon, which they hardly depend on."""
    epsilons = list(dict.fromkeys(row.epsilon for row in rows))
    by_line: dict[tuple[str, str], dict[float | None, Row]] = {}
    for row in rows:
        by_line.setdefault((row.partition, row.method), {})[row.epsilon] = row
    heads = ["text", "method", *map(_epsilon, epsilons), "processor seconds", "bytes up"]
    table = [[*heads, "bytes down"], ["---"] * (len(heads) + 1)]
    for (partition, method), found in by_line.items():
        figures = [_with_failures(found[e]) if e in found else "" for e in epsilons]
        last = found[next(reversed(found))]
        costs = [f"{last.seconds:.0f}", f"{last.bytes_up:,}", f"{last.bytes_down:,}"]
        table.append([partition, method, *figures, *costs])
    return _lines(table)


def _with_failures(row: Row) -> str:
    failed = f" ({len(row.failed)} failed)" if row.failed else ""
    return f"{_figure(row.values)}{failed}"


def _epsilon(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"{epsilon:g}"


def _lines(table: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _figure(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{statistics.fmean(values):.3f} ± {half_width(values):.3f}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a method.

    Attributes:
        of: digest over settings, text and public records.
        epsilon: None means no privacy.
        rate: the ``train.lr`` that it ran with.
        trial: whether it served to choose a rate, on the public records that are not reported.
        failed: the code of what ended the run; its figures are zeros then.
        before: the main metric before training, ``value`` after it, ``loss`` beside it.
        seconds: of the processor, all holders and the coordinator together, so that whatever else
            the machine does hardly matters.
        bytes_up: of a holder's update, the mean over the rounds; ``bytes_down`` of the adapter.
    """

    of: str
    scenario: str
    partition: str
    method: str
    epsilon: float | None
    seed: int
    rate: float
    trial: bool
    failed: str = ""
    metric: str = ""
    before: float = 0.0
    value: float = 0.0
    loss: float = 0.0
    others: Mapping[str, float]
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0


class Results:
    """What is known, by digest; in a file, if there is one.

    Raises:
        ConfideError: ``bench.out`` for a file that is none of these or cannot be written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._known = file, dict[str, Measured]()
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(file) as opened:
                opened.seek(0)
                content = opened.read()
                whole = content[: content.rfind(b"\n") + 1]
                opened.truncate(len(whole))
        except OSError as error:
            raise _refused(file, f"cannot be written: {error.strerror}") from None
        for number, line in enumerate(whole.decode(errors="replace").splitlines(), start=1):
            found = _parsed(line)
            if found is None:
                raise _refused(file, f"has no result in line {number}")
            self._known[found.of] = found

    def get(self, of: str) -> Measured | None:
        """The result of that digest, if it is known."""
        return self._known.get(of)

    def add(self, result: Measured) -> None:
        """Keep a result, in the file before the call returns where there is one."""
        self._known[result.of] = result
        if self._file is not None:
            with _alone(self._file) as file:
                file.write((json.dumps(asdict(result)) + "\n").encode())


@contextmanager
def _alone(file: Path) -> Iterator[BinaryIO]:
    """The file, while no other process reads or writes it: several may keep their results there."""
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened


def _parsed(line: str) -> Measured | None:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or set(row) != {f.name for f in fields(Measured)}:
        return None
    return Measured(**row)


def _refused(file: Path, what: str) -> ConfideError:
    return ConfideError("bench.out", f"{file} {what}.", "Name another file with --out.")
