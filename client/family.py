"""Processes that belong together: those that ``join`` starts end when it does, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from ..common.errors import ConfideError

SUPERVISED = "CONFIDE_SUPERVISED"  # the process id of the parent, for the children of ``join``
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def end_with_parent() -> None:
    """Under a supervisor, have the kernel send SIGTERM when that ends (prctl(2)). To be called
    after a change of user, which forgets it.

    Raises:
        ConfideError: ``join.gone`` if it has ended already.
    """
    parent = os.environ.get(SUPERVISED)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if str(os.getppid()) != parent:
        raise ConfideError("join.gone", "What started this process is no more.")


def keep_memory_private() -> None:
    """No other process of the same user may look into this one's memory or open files."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask each to stop, in order and at once; after ``seconds``, kill them with all below them.
    Each leads a session of its own."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
