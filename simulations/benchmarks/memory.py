"""Peak memory of one step, in a process of its own.

On the CPU it is how far the resident set grows: the high-water mark of the step less the resident
set before it, after a small step has loaded code and started threads. The mark is reset before
the step (``/proc/self/clear_refs``), so that the making of the model does not count; the
``ru_maxrss`` of a child would start at its parent's. The allocator is told to give every block
above 64 KiB back at once, so that the mark is what was in use, without the blocks that it would
have kept. On CUDA it is the peak of torch's allocator over what was allocated before.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ...common.errors import ConfideError
from .engines import CLIP, ENGINES, NOISE, Step
from .workload import Model, Setup, make

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
