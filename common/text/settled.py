"""What the name of a benchmark settles (``data.benchmark``): what is learnt, from which columns,
and by which metric.

Kind, labels, scale and columns follow from the table of ``benchmarks``: another value beside the
name is a contradiction, and refused. Metric and template are the benchmark's own unless others are
chosen. A benchmark of classes may also be written out as text (``task.kind = seq2seq`` or
``causal``): the label names are then the words to write. Nothing here reads a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from ..errors import ConfideError
from ..tasks import TASKS
from .benchmarks import Benchmark, spec

KEY = "data.benchmark"
# Every row becomes a record in these columns.
TEXT, TARGET = "text", "label"

Value = str | int | float | bool
# Kinds that write the answer, whatever the benchmark's own kind is.
_WRITTEN = tuple(k for k, task in TASKS.items() if task.language and task.target != "none")
_PLAIN = "{text}"  # of task.template: nobody has chosen one
_WRITTEN_METRIC = "exact-match"  # what accuracy is to an answer that is written


def settled(given: Mapping[str, Value]) -> dict[str, Value]:
    """The flat settings that the benchmark decides; none where no benchmark is named.

    Args:
        given: flat keys that somebody chose. Empty text chooses nothing.

    Raises:
        ConfideError: ``benchmark.unknown`` with the nearest name, or ``settings.combination`` for
            a choice that contradicts the benchmark.
    """
    name = given.get(KEY, "")
    if not isinstance(name, str) or not name:
        return {}
    benchmark = spec(name)
    kind = given.get("task.kind", benchmark.kind)
    if kind not in (benchmark.kind, *_WRITTEN):
        kinds = " or ".join(dict.fromkeys((benchmark.kind, *_WRITTEN)))
        _refuse(name, "task.kind", kind, f"is {kinds}", f"Set task.kind = {benchmark.kind!r}.")
    firm = _firm(benchmark, str(kind))
    for key, value in firm.items():
        if given.get(key, "") not in ("", value):
            hint = "Leave it empty." if isinstance(value, str) else f"Set {key} = {value:g}."
            _refuse(name, key, given[key], f"has {value!r}", hint)
    own: dict[str, Value] = {"task.metric": benchmark.metrics[0]}
    if kind in _WRITTEN:
        own = {"task.metric": _written_metric(benchmark), "task.template": benchmark.template}
    return firm | {k: v for k, v in own.items() if given.get(k, "") in ("", _PLAIN)}


def _firm(benchmark: Benchmark, kind: str) -> dict[str, Value]:
    labels = ",".join(benchmark.labels) if TASKS[kind].fewest_labels else ""
    firm: dict[str, Value] = {
        "task.kind": kind,
        "task.labels": labels,
        "data.text": TEXT,
        "data.target": TARGET,
    }
    if benchmark.scale is not None and TASKS[kind].scale:
        firm |= {"task.low": benchmark.scale[0], "task.high": benchmark.scale[1]}
    return firm


def _written_metric(benchmark: Benchmark) -> str:
    return benchmark.metrics[0] if benchmark.free else _WRITTEN_METRIC


def _refuse(name: str, key: str, value: object, has: str, hint: str) -> NoReturn:
    raise ConfideError(
        "settings.combination",
        f"{key} = {value!r:.100}, but {KEY} = {name!r:.100} {has}.",
        hint,
    )
