"""A child of the process that has the libraries is a process as any other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import warm


def test_it_says_what_a_new_process_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_TEST_WORD", "here")
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['CONFIDE_TEST_WORD'])"
    done = warm.run(code, "one", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{['one', '2']} {tmp_path} here\n"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a word')", 1, "a word"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_its_end_is_told(tmp_path: Path, code: str, status: int, said: str) -> None:
    done = warm.run(code, cwd=tmp_path)
    assert done.returncode == status
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)


def test_it_has_the_libraries_and_nothing_of_ours_or_of_the_one_before(tmp_path: Path) -> None:
    look = (
        "import sys; print('torch' in sys.modules, 'confide' in sys.modules, hasattr(sys, 'was'))"
    )
    assert warm.run(f"{look}; sys.was = 1", cwd=tmp_path).stdout == "True False False\n"
    assert warm.run(look, cwd=tmp_path).stdout == "True False False\n"
    pids = {warm.run("import os; print(os.getpid())", cwd=tmp_path).stdout for _ in range(2)}
    assert len(pids) == 2
    assert f"{os.getpid()}\n" not in pids
