"""A text is taken in once; one that was changed waits for its administrator's word."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from confide.client.commands.join import _take_in
from confide.client.text.taken import check_taken, take_in, was_taken_in
from confide.common.errors import ConfideError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def code_of(text: Path, ledger: Path) -> str:
    try:
        check_taken(text, ledger)
    except ConfideError as error:
        return error.code
    return ""


def test_a_text_that_nobody_took_in_is_used_as_it_is(text: Path, ledger: Path) -> None:
    assert not was_taken_in(ledger)
    assert code_of(text, ledger) == ""


def test_a_text_that_was_changed_is_refused_until_it_is_taken_in_again(
    text: Path, ledger: Path
) -> None:
    take_in(text, ledger)
    assert code_of(text, ledger) == ""
    with text.open("a") as file:
        file.write('{"text": "b"}\n')
    assert code_of(text, ledger) == "data.changed"
    take_in(text, ledger)
    assert code_of(text, ledger) == ""


def test_another_file_of_the_same_size_in_its_place_is_a_change(text: Path, ledger: Path) -> None:
    take_in(text, ledger)
    other = text.with_name("other")
    other.write_text('{"text": "b"}\n')
    os.utime(other, ns=(0, 0))
    other.replace(text)
    assert code_of(text, ledger) == "data.changed"


def test_a_join_that_asks_nobody_takes_in_the_first_text_and_no_changed_one(
    text: Path, ledger: Path
) -> None:
    joining: Any = SimpleNamespace(data=text, ledger=ledger)
    _take_in(joining, looked=False)
    assert was_taken_in(ledger)
    os.utime(text, (0, 0))
    _take_in(joining, looked=False)
    assert code_of(text, ledger) == "data.changed", "a service that starts again is nobody's word"
    _take_in(joining, looked=True)
    assert code_of(text, ledger) == ""


def test_it_is_looked_at_by_the_system_alone(text: Path, ledger: Path) -> None:
    """A file of another content, as the system tells of it, is the same file: whether a request is
    answered never depends on what is in the text."""
    take_in(text, ledger)
    told = text.stat()
    text.write_text('{"text": "z"}\n')
    os.utime(text, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert code_of(text, ledger) == ""
    text.chmod(0)
    assert code_of(text, ledger) == ""


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"size": 1}', "[" * 9999])
def test_a_spoilt_note_knows_of_no_file(text: Path, ledger: Path, note: str) -> None:
    take_in(text, ledger)
    (path,) = ledger.parent.glob("*.text.json")
    path.write_text(note)
    assert code_of(text, ledger) == "data.changed"


def test_a_text_that_is_gone_is_not_taken_in(text: Path, ledger: Path) -> None:
    take_in(text, ledger)
    text.unlink()
    assert code_of(text, ledger) == "data.missing-file"
    with pytest.raises(ConfideError, match=r"data\.missing-file"):
        take_in(text, ledger)
