"""The gateway's whole work on a message: hand the task to the resident, bring its reply back.

Runs in the ClientApp where the node configuration names a ``socket``. Knows no text, opens no file
and imports no torch, so that a message costs no more than Flower's own start.
"""

from __future__ import annotations

from pathlib import Path

from ..common.wire import Reply, Task, reply_from_bytes, task_to_bytes
from . import frames

_LEAST_SECONDS, _MOST_SECONDS = 30.0, 24 * 3600.0


def relay(task: Task, path: Path) -> Reply:
    """The resident's reply, waited for as long as the coordinator waits for this holder.

    Raises:
        ConfideError: ``resident.unreachable``, ``resident.silent``, ``socket.*`` or
            ``wire.malformed``.
    """
    reply = frames.ask(path, frames.TASK, task_to_bytes(task), frames.REPLY, _patience(task))
    return reply_from_bytes(reply)


def _patience(task: Task) -> float:
    """Seconds; ``round.timeout`` as the coordinator says it, within reason."""
    wanted = task.settings.get("round.timeout")
    if not isinstance(wanted, int | float):
        return _LEAST_SECONDS
    return float(min(max(_LEAST_SECONDS, wanted), _MOST_SECONDS))  # not a number is the least
