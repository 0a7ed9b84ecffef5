"""Tests that are ended by a time limit have named what failed, and name what still ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFTEST = """
from tests import told

def pytest_configure(config):
    told.begin(config)
"""
TESTS = """
import time
from pathlib import Path
import pytest

@pytest.fixture
def kept():
    yield
    Path("cleared").touch()

@pytest.fixture
def broken():
    raise RuntimeError

def test_that_fails():
    assert False

def test_whose_fixture_fails(broken):
    pass

def test_that_passes():
    pass

def test_that_does_not_end(kept):
    time.sleep(100)
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "test_few.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return tmp_path


def said_until_ended(root: Path, folder: Path, workers: int, number: int) -> tuple[str, int]:
    """Output and status of the tests there, to whose process group the signal is sent as soon as
    both failures are in the output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers)]
    with (folder / "said").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(root)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 40
            while (folder / "said").read_text("utf-8").count("test_few.py::") < 2:
                assert time.monotonic() < deadline
                assert process.poll() is None, (folder / "said").read_text("utf-8")
                time.sleep(0.05)
            time.sleep(0.5)  # the last test begins
            os.killpg(process.pid, number)
            process.wait(30)
        finally:
            process.kill()
            process.wait()
    return (folder / "said").read_text("utf-8"), process.returncode


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_that_are_told_to_end_name_what_failed_and_what_still_ran(
    root: Path, session: Path, workers: int
) -> None:
    said, status = said_until_ended(root, session, workers, signal.SIGTERM)
    assert status == pytest.ExitCode.INTERRUPTED
    assert "short test summary" in said
    assert said.count("FAILED test_few.py::test_that_fails") == 2  # at once, and in the summary
    assert said.count("ERROR test_few.py::test_whose_fixture_fails") == 2
    (running,) = [line for line in said.splitlines() if line.startswith("STILL RUNNING")]
    assert running.endswith("test_few.py::test_that_does_not_end")
    assert (session / "cleared").exists()


def test_tests_that_are_killed_have_named_what_failed(root: Path, session: Path) -> None:
    said, status = said_until_ended(root, session, 0, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert "FAILED test_few.py::test_that_fails" in said.splitlines()
    assert "ERROR test_few.py::test_whose_fixture_fails" in said.splitlines()
