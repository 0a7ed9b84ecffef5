"""A federation's server as a process of its own, on free ports of the loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 270.0  # a quiet machine takes 10

# Required where the project is checked; elsewhere a machine may do without.
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None
    and "CONFIDE_NGINX_REQUIRED" not in os.environ,
    reason="nginx is not installed; .ci/run installs it",
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def server(
    folder: Path, inside: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """``confide server start``, when its door is open; ended, with all below it, at the end.
    ``inside`` is what it is run by, with the variables ``env``."""
    with (folder / "said").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [*inside, sys.executable, "-m", "confide", "server", "start", str(folder), "--json"],
            env=env,
            stdout=said,
            stderr=said,
        )
        try:
            wait_for(lambda: "open" in said_by(folder) or process.poll() is not None)
            assert process.poll() is None, (folder / "said").read_text()
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def said_by(folder: Path) -> list[str]:
    """The events of the server so far, by name."""
    path = folder / "log" / "server.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line)["event"] for line in lines]


def wait_for(true: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.2)
