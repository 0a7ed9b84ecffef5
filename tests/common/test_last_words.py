"""What a program said before it ended: its error, not the edge of a box (verl#1120, ray#35010)."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.common.last_words import last_words, last_words_in, size_of

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
    assert (size_of(log), last_words_in(log)) == (0, "It said nothing.")
    log.write_text("error of last year\n")
    start = size_of(log)
    assert last_words_in(log, start) == "It said nothing."
    with log.open("a") as more:
        more.write("INFO: all is well\n" * 100_000 + "killed by nobody\n")
    assert last_words_in(log, start) == "killed by nobody"
    log.write_text("cut by logrotate: error\n")
    assert last_words_in(log, start + 10**6) == "cut by logrotate: error"
