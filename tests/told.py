"""What fails is named at once, and what still ran when the tests were ended.

pytest names what failed at its end alone, and its end is not reached where a time limit ends it: a
SIGTERM, which ``timeout`` and a supervisor send, leaves a row of dots. Here it counts as Ctrl-C, so
that fixtures are cleared up and the summary is printed; and should even that not come, because what
follows is a SIGKILL, every failure was printed when it happened.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

import pytest


def begin(config: pytest.Config) -> None:
    """To be called from ``pytest_configure``; a worker of pytest-xdist has nobody to tell."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Told(config))


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("told to end (SIGTERM), perhaps by a time limit")


class Told:
    """Writes where pytest does, of all workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._began.pop(nodeid, None)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write(f"{'FAILED' if report.when == 'call' else 'ERROR'} {report.nodeid}")

    def pytest_keyboard_interrupt(self) -> None:
        for nodeid, began in self._began.items():
            self._write(f"STILL RUNNING after {time.monotonic() - began:.0f} s: {nodeid}")

    def _write(self, line: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:  # it comes after this one, and may be switched off
            reporter.write("\n")  # the dots of other workers may stand before it
            reporter.write_line(line, red=True)
            reporter.flush()
