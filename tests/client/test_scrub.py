"""What may be said of a failure: a code outside, our own words or a place inside."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest

from confide.client.scrub import code_of
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
