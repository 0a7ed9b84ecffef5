"""What may be said of a failure: a code outside, our own words or a place inside."""

from __future__ import annotations

import ast
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.scrub import _is_code, code_of, quiet
from confide.common.errors import ConfideError

PRIVATE = "the patient said"


def logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    with caplog.at_level(logging.DEBUG):
        code = code_of(error)
    return code, caplog.text


def test_our_own_errors_keep_their_code_and_their_message_stays_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, log = logged(ConfideError("data.empty", "no record", "Look."), caplog)
    assert code == "data.empty"
    assert "no record Look." in log


@pytest.mark.parametrize(
    "code", [PRIVATE, "", "data", "data.", "Data.empty", "data.empty\n", "data empty", "1.2"]
)
def test_what_is_no_code_is_not_sent_and_not_logged(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert logged(ConfideError(code, PRIVATE), caplog)[0] == "holder.failed"
    assert PRIVATE not in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, PRIVATE), "disk.full"),
        (OSError(errno.EACCES, PRIVATE), "holder.failed"),
        (MemoryError(PRIVATE), "holder.memory"),
        (RuntimeError(PRIVATE), "holder.failed"),
        (UnicodeEncodeError("ascii", PRIVATE, 0, 1, PRIVATE), "holder.failed"),
        (BaseException(PRIVATE), "holder.failed"),
    ],
)
def test_foreign_errors_are_told_apart_by_type_alone(
    error: BaseException, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, log = logged(error, caplog)
    assert code == expected
    assert type(error).__name__ in log
    assert PRIVATE not in log


def test_the_log_names_the_place_of_a_foreign_error(caplog: pytest.LogCaptureFixture) -> None:
    def innermost() -> Any:
        raise RuntimeError(PRIVATE)

    with pytest.raises(RuntimeError) as caught:
        innermost()
    assert "innermost:" in logged(caught.value, caplog)[1]


# Silence


def write_everywhere(marker: str) -> None:
    print(marker)
    print(marker, file=sys.stderr)  # where warnings go
    print(marker, file=sys.__stderr__)
    os.write(1, marker.encode())
    os.write(2, marker.encode())
    logging.getLogger("transformers").critical(marker)
    logging.getLogger("confide.holder").error(marker)


def test_nothing_printed_or_logged_in_a_quiet_block_gets_out(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    print("before", end=" ")
    with quiet():
        write_everywhere(PRIVATE)
        with quiet():
            write_everywhere(PRIVATE)
        write_everywhere(PRIVATE)
    print("after")
    logging.getLogger("confide.holder").error("afterwards")
    out, err = capfd.readouterr()
    assert out == "before after\n"
    assert PRIVATE not in err
    assert caplog.messages == ["afterwards"]


def test_a_quiet_block_ends_with_the_last_of_those_that_overlap(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(1, PRIVATE.encode())
    second.__exit__(None, None, None)
    os.write(1, b"heard")
    assert capfd.readouterr().out == "heard"


def test_a_failure_ends_the_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), quiet():
        raise ValueError("x")
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_debugging_may_be_asked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_DEBUG", "1")
    with quiet():
        print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_a_process_without_streams_can_be_quiet(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from confide.client.guard.scrub import quiet\n"
        "with open(sys.argv[1], 'w') as heard:\n"
        "    os.close(1); os.close(2)\n"
        "    with quiet(): print('private')\n"
        "    heard.write('whole')\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "heard"], check=False, timeout=60)
    assert (tmp_path / "heard").read_text() == "whole"


# Codes are constants of the program: none is ever made from a value


def test_every_code_in_the_source_is_a_constant(root: Path) -> None:
    made: list[str] = []
    seen = 0
    for file in [*(root / "client").rglob("*.py"), *(root / "common").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ConfideError":
                if file.name == "enrolment.py":
                    continue  # of files that people hand each other: it answers no task
                seen += 1
                code = node.args[0]
                if not (isinstance(code, ast.Constant) and _is_code(code.value)):
                    made.append(f"{file.name}: {ast.unparse(code)}")
    assert seen > 50
    # The policy's codes are made from the names of its own fields, the contract's by constants.
    # What a child of ``join`` was refused with is told on the administrator's screen; it answers
    # no task.
    assert sorted(made) == [
        "contract.py: f'contract.{name}'",
        "policy.py: f'policy.{_key(limit)}'",
        "users.py: *answer['refused']",
    ]


def test_a_code_that_is_long_was_made_from_something(caplog: pytest.LogCaptureFixture) -> None:
    code = "data." + "x" * 60
    assert logged(ConfideError(code, ""), caplog)[0] == "holder.failed"
