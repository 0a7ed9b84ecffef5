"""Who of the asked has answered so far: one small file in the run folder, replaced as it changes.

For the eyes of whoever watches a run; report, gate and resume never read it, and a disk that
refuses it does not end a round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import ConfideError
from .run_folder import RunFolder

if TYPE_CHECKING:
    from ..common.wire import Task

LIVE = "live.json"
TRAINING, DONE = "training", "done"  # anything else is a refusal's code

Live = Callable[["Task", Mapping[int, str]], None]


def nowhere(task: Task, states: Mapping[int, str]) -> None:
    """For runs that nobody watches."""


def live_file(config: Mapping[str, Any]) -> Live:
    """Writes the states of a round's nodes beside the run's other files."""
    resumed = str(config.get("run.resume", ""))
    named = Path(resumed).expanduser() if resumed else None
    out = named.resolve().parent if named else Path(str(config.get("run.out", "runs"))).expanduser()

    def write(task: Task, states: Mapping[int, str]) -> None:
        row = {"round": task.round, "nodes": {str(node): state for node, state in states.items()}}
        with suppress(ConfideError):
            RunFolder((out / task.run).resolve()).write(LIVE, json.dumps(row).encode())

    return write


def read_live(folder: Path) -> tuple[int, dict[int, str]]:
    """The round and the states of its nodes; round 0 and none before the first."""
    try:
        row = json.loads((folder / LIVE).read_text(encoding="utf-8"))
        return int(row["round"]), {int(node): str(state) for node, state in row["nodes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, {}
