"""The log of a deployed holder: one JSON object a line, of constants, numbers and our own messages.

Never private text: no record, label or person, and of a foreign exception its type alone (see
``scrub``). The stream is kept from the start, so that a line written while ``scrub.quiet`` holds
the process silent still gets out, and nothing else does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from typing import Any

_MOST_CHARACTERS = 500


class Journal:
    """Writes what a process of a holder does to its standard error, as that was at the start.

    Args:
        process: ``join``, ``resident`` or ``gateway``.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._out = os.dup(2)

    def write(self, event: str, **fields: Any) -> None:
        """One line. A reader that went away does not end a holder."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": when, "process": self._process, "event": event, **fields})
        with suppress(OSError):  # there is nobody to tell
            os.write(self._out, f"{line}\n".encode())

    def take_logging(self, *names: str) -> None:
        """What is logged under these names comes here, and nowhere else."""
        for name in names:
            logger = logging.getLogger(name)
            logger.handlers = [_Handler(self)]
            logger.propagate = False


class _Handler(logging.Handler):
    """Python's logging -> the journal, without a traceback: it may quote what it failed on."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().strip()[:_MOST_CHARACTERS]
        if message:
            self._journal.write("log", level=record.levelname.lower(), message=message)


def silence() -> None:
    """Whatever else this process prints gets nowhere; ``CONFIDE_DEBUG=1`` leaves it as it is."""
    if os.environ.get("CONFIDE_DEBUG") == "1":
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
