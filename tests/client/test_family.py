"""Processes that belong together end together, however the first one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from confide.client.family import SUPERVISED, end

CHILD = """
import time
from confide.client.family import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
env = os.environ | {{"{SUPERVISED}": str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=env, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_ends_when_its_parent_is_killed(root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while not gone(child):
        assert time.monotonic() < deadline, os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def test_a_child_whose_parent_is_gone_already_does_not_start(root: Path) -> None:
    env = os.environ | {SUPERVISED: "1234567890"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=root, env=env, capture_output=True, text=True
    )
    assert "join.gone" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("deaf", [False, True])
def test_an_end_takes_those_below_along(deaf: bool, tmp_path: Path) -> None:
    """Also when the process itself ignores that it is asked."""
    trap = "trap '' TERM;" if deaf else ""
    script = f"{trap} sleep 60 & echo $! > {tmp_path / 'pid'}; wait; wait"
    process = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    end([process], 0.5)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not gone(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
