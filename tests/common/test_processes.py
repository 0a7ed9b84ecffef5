"""Processes that belong together end together, however the first one ends, and what one said before
it ended is its error, not the edge of a box (verl#1120, ray#35010)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from confide.common.machine.processes import (
    SUPERVISED,
    SWITCHES,
    Kept,
    end,
    flower_environment,
    last_words,
    last_words_in,
    length_of,
)

EDGE = "\u2500" * 9
BOX = (
    f"\x1b[91m\u256d{EDGE} Error \u256e\n"
    f"\u2502 No such option: --x  \u2502\n\u2570{EDGE}\u256f\x1b[0m\n"
)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (BOX, "No such option: --x"),
        ("Traceback:\n  here\nValueError: of 3\n\nINFO: goodbye\n", "ValueError: of 3"),
        ("INFO: one\nINFO: two\n---\n", "INFO: two"),
        ("", "It said nothing."),
        ("\u2500\u2500\n  \n", "It said nothing."),
        ("it failed \x1b]0;mine\x07 here", "it failed  ]0;mine  here"),
        (f"error {'x' * 9999}", f"error {'x' * 294}"),
    ],
)
def test_it_is_the_line_that_tells_of_the_failure(log: str, said: str) -> None:
    assert last_words(log) == said


def test_of_a_log_that_goes_on_only_what_is_new_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert (length_of(log), last_words_in(log)) == (0, "It said nothing.")
    log.write_text("error of last year\n")
    start = length_of(log)
    assert last_words_in(log, start) == "It said nothing."
    with log.open("a") as more:
        more.write("INFO: all is well\n" * 100_000 + "killed by nobody\n")
    assert last_words_in(log, start) == "killed by nobody"
    log.write_text("cut by logrotate: error\n")
    assert last_words_in(log, start + 10**6) == "cut by logrotate: error"


CHILD = """
import time
from confide.common.machine.processes import end_with_parent
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


def seen_to_end(kept: Kept) -> None:
    while not kept.ended():
        time.sleep(0.01)


def test_a_process_that_ends_is_started_again_after_pauses_that_double(tmp_path: Path) -> None:
    now = [0.0]
    log = tmp_path / "log"
    kept = Kept("it", ["/bin/sh", "-c", "echo; exit 3"], log=log, clock=lambda: now[0])
    kept.start()
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        seen_to_end(kept)
        assert (kept.look(), kept.pause) == ("ended", pause)
        assert kept.process is not None
        assert kept.process.returncode == 3
        now[0] += pause - 0.1
        assert kept.look() == ""
        assert kept.ended()
        now[0] += 0.2
        assert kept.look() == "started"
    seen_to_end(kept)
    assert kept.stop() is False
    assert log.read_text().count("\n") == 9


def test_after_a_steady_life_the_pause_is_short_again() -> None:
    now, pauses = [0.0], []
    kept = Kept("it", ["/bin/true"], clock=lambda: now[0])
    for life in (0.0, 0.0, 61.0):
        kept.start()
        seen_to_end(kept)
        now[0] += life
        assert kept.look() == "ended"
        pauses.append(kept.pause)
    kept.stop()
    assert pauses == [1, 2, 1]


def test_what_it_said_in_an_earlier_life_is_not_its_last_words(tmp_path: Path) -> None:
    kept = Kept("it", ["/bin/sh", "-c", "exit 3"], log=tmp_path / "log")
    assert kept.log is not None
    kept.log.write_text("error of last year\n")
    kept.start()
    seen_to_end(kept)
    assert kept.last_words() == "It said nothing."
    assert kept.how_it_ended() == ": it ended with status 3"


def test_an_end_takes_along_what_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """As Flower's simulation and Ray do."""
    script = f"setsid sleep 60 & echo $! > {tmp_path / 'pid'}; wait"
    kept = Kept("it", ["/bin/sh", "-c", script])
    kept.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    assert kept.stop(5.0) is True
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_program_of_flower_gets_what_is_passed_on_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert flower_environment(tmp_path)["HF_TOKEN"] == "secret"
    env = flower_environment(tmp_path, {"LANG": "C"})
    assert "secret" not in env.values()
    assert env.items() >= {**SWITCHES, "LANG": "C", "FLWR_HOME": str(tmp_path)}.items()
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
