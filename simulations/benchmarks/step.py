"""What one private step costs: time and memory against the same step without privacy.

In one process every engine has a model of its own that shares the frozen weights, and makes steps
on the same batch (``pairs`` says how they are timed). Before that each private engine must compute
the right result: without noise and in float64, its clipped sum is compared with that of a loop over
batches of one example on the plain model, for four examples of which two are clipped. (In float32
the loop itself is off by 2e-4 for T5: rounding would hide a fault, or look like one.) Confide's own
engine must pass, or the benchmark stops; of another the row says what is wrong. The peak of memory
is taken in a fresh process for each row (``peak``).

On the CPU the peak is how far the resident set grows: the high-water mark of the step less the
resident set before it, after a small step has loaded code and started threads. The mark is reset
before the step (``/proc/self/clear_refs``), so that the making of the model does not count; the
``ru_maxrss`` of a child would start at its parent's. The allocator is told to give every block
above 64 KiB back at once, so that the mark is what was in use, without the blocks that it would
have kept. On CUDA it is the peak of torch's allocator over what was allocated before.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...common.errors import ConfideError
from .engines import CLIP, CONFIDE, ENGINES, NOISE, PLAIN, Engine, Step, quiet
from .pairs import Row, interleaved, ratios
from .workload import Model, Setup, Workload, make

_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
_LIMIT_SECONDS = 1800
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(model: Model, engine: str, setup: Setup) -> int | None:
    """Bytes that one step needs on top of model and engine; None where it cannot be told.

    Raises:
        ConfideError: ``bench.memory``, when the step fails there.
    """
    asked = {"model": asdict(model), "engine": engine, "setup": asdict(setup)}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(asked)],
        env=os.environ | _GIVE_BACK,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ConfideError(
            "bench.memory",
            f"The step of {engine} on {model.name} failed in a process of its own:"
            f" {done.stderr.strip().rpartition(chr(10))[-1]}",
            "Use a smaller --batch if memory ran out.",
        )
    answer: int | None = json.loads(done.stdout)
    return answer


def measure(model: Model, engine: str, setup: Setup) -> int | None:
    """The same in this process, which must be fresh."""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    _step(model, engine, replace(setup, batch=2, tokens=8))()  # loads what a step needs
    step = _step(model, engine, setup)
    gc.collect()
    before = _begin(setup.device)
    if before is None:
        return None
    step()
    return _highest(setup.device) - before


def _step(model: Model, engine: str, setup: Setup) -> Step:
    return ENGINES[engine].make(make(model, setup), CLIP, NOISE)


def _begin(device: str) -> int | None:
    """Bytes in use; from here on the highest is noted."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return None
    return _from_status("VmRSS")


def _highest(device: str) -> int:
    return _from_status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _from_status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _answer(text: str) -> str:
    asked = json.loads(text)
    found = measure(Model(**asked["model"]), asked["engine"], Setup(**asked["setup"]))
    return json.dumps(found)


if __name__ == "__main__":
    print(_answer(sys.argv[1]))


TOLERANCE = 1e-4  # Opacus adds 1e-6 to a norm before it divides by it
_CHECKED = 4  # examples: in float64 a large model needs gigabytes for more

Say = Callable[[str], None]
_T = TypeVar("_T")


def step_rows(
    models: Sequence[Model],
    engines: Sequence[Engine],
    setup: Setup,
    *,
    repetitions: int,
    say: Say = lambda _: None,
) -> Iterator[Row]:
    """A row for each model and engine, a model at a time; plain PEFT is always there, first.

    Raises:
        ConfideError: ``bench.unequal``, when confide's own engine computes something else, or
            ``bench.device``.
    """
    if setup.device != "cpu" and not torch.cuda.is_available():
        raise ConfideError("bench.device", f"There is no {setup.device} here.", "Use --device cpu.")
    if setup.threads:
        torch.set_num_threads(setup.threads)
    chosen = [PLAIN, *(engine for engine in engines if engine is not PLAIN)]
    for model in models:
        yield from _rows_of(model, chosen, setup, repetitions, say)


def _rows_of(
    model: Model, engines: Sequence[Engine], setup: Setup, repetitions: int, say: Say
) -> Iterator[Row]:
    say(f"{model.name}: clipped sums")
    rows = _checked(model, engines, setup)
    say(f"{model.name}: first steps")
    steps, rows = _ready(model, engines, setup, rows)
    say(f"{model.name}: time of {repetitions} steps each")
    with quiet():
        seconds = interleaved(steps, repetitions, setup.device, setup.threads)
    base: int | None = None
    for engine in engines:
        row = rows[engine.name]
        if engine.name in steps:
            say(f"{model.name}: memory of {engine.name}")
            top = peak(model, engine.name, setup)
            base = top if engine is PLAIN else base
            row = replace(
                row,
                seconds=tuple(seconds[engine.name]),
                ratios=ratios(seconds, engine.name, PLAIN.name),
                peak=top,
                memory=top / base if top and base else None,
            )
        yield row


@dataclass(frozen=True)
class Reference:
    """What a private step without noise has to compute: the clipped sum (N,), at ``clip``."""

    clip: float
    total: Tensor


def reference(work: Workload) -> Reference:
    """The reference by a loop over batches of one example, slow and obvious; half of them are
    clipped."""
    model = work.twin()
    rows = []
    for index in range(work.size):
        model.model.zero_grad()
        model.row(index).losses().sum().backward()
        rows.append(model.gradient())
    norms = [float(row.norm()) for row in rows]
    clip = statistics.median(norms)
    factors = [clip / max(norm, clip) for norm in norms]
    total = torch.stack([row * factor for row, factor in zip(rows, factors, strict=True)]).sum(0)
    return Reference(clip, total)


def check(engine: Engine, work: Workload, expected: Reference) -> float:
    """The largest difference of an engine's clipped sum, as a share of the sum's largest value.

    Raises:
        ConfideError: ``bench.unequal``, above ``TOLERANCE``.
    """
    twin = work.twin()
    engine.make(twin, expected.clip, 0.0)()
    total = twin.gradient() * work.size
    difference = float((total - expected.total).abs().max() / expected.total.abs().max())
    if not difference <= TOLERANCE:  # NaN included
        raise ConfideError(
            "bench.unequal",
            f"The clipped sum of {engine.name} is off by {difference:.1e} of its largest value.",
            f"At most {TOLERANCE:g} may come from rounding; do not time what is wrong.",
        )
    return difference


def _checked(model: Model, engines: Sequence[Engine], setup: Setup) -> dict[str, Row]:
    work = make(model, replace(setup, dtype="float64", batch=min(setup.batch, _CHECKED)))
    expected = reference(work)
    rows = {}
    for engine in engines:
        row = Row(model=model.name, engine=engine.name)
        if not engine.installed:
            row = replace(row, note="not installed")
        elif engine.private:
            found, note = _tried(engine, check, work, expected)
            row = replace(row, difference=found, note=note)
        rows[engine.name] = row
    return rows


def _ready(
    model: Model, engines: Sequence[Engine], setup: Setup, rows: dict[str, Row]
) -> tuple[dict[str, Step], dict[str, Row]]:
    """The step of each engine that can make one, warmed up by a first."""
    work, steps, after = make(model, setup), {}, dict(rows)
    for engine in engines:
        if rows[engine.name].note:
            continue
        step, note = _tried(engine, _first, work)
        if step is None:
            after[engine.name] = replace(rows[engine.name], note=note)
        else:
            steps[engine.name] = step
    return steps, after


def _first(engine: Engine, work: Workload) -> Step:
    """The step that is timed, after one that warms it up."""
    step = engine.make(work.twin(), CLIP, NOISE)
    step()
    return step


def _tried(engine: Engine, act: Callable[..., _T], *args: Any) -> tuple[_T | None, str]:
    """The result of a library's code, or its failure, which is a finding, too."""
    try:
        with quiet():
            return act(engine, *args), ""
    except Exception as error:
        if engine in (PLAIN, CONFIDE):
            raise
        return None, error.message if isinstance(error, ConfideError) else type(error).__name__
