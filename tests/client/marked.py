"""Five hundred markers in a holder's text, and every way in which something can fail over it."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pytest
import torch

from confide.common.errors import ConfideError
from confide.common.wire.messages import Reply, reply_to_records
from tests import tiny
from tests.client.conftest import Place

RECORDS = 170
# Texts, persons, a column that no run reads, values and keys of JSON: zqt007, zqp007, ...
MARKER = re.compile(rb"zq[tpnlk]\d", re.IGNORECASE)
# Names of folders and files, which the holder's own log may name, and nothing that leaves.
PLACE_MARKER = re.compile(rb"zq[tpnlkf]\d", re.IGNORECASE)


def marked_rows(count: int = RECORDS) -> list[dict[str, str]]:
    """A marker of its own in every text, for every person, and in a column that is not read."""
    rows = tiny.rows(count, seed=3)
    for i, row in enumerate(rows):
        row["text"] = f"{row['text']} zqt{i:03d}"
        row["person"] = f"zqp{i:03d}"
        row["note"] = f"zqn{i:03d}"
    return rows


def marked_words() -> list[str]:
    return [
        word for row in marked_rows() for word in " ".join(row.values()).split() if "zq" in word
    ]


SECRET = json.dumps(marked_rows())


def move_to_marked_folder(place: Place) -> None:
    """Text and ledger lie in a folder, and the text in a file, whose names are private too."""
    folder = place.data.parent / "zqf001 ward"
    place.data = tiny.write_jsonl(folder / "zqf002.jsonl", marked_rows())
    object.__setattr__(place.site, "data", place.data)
    object.__setattr__(place.site, "ledger", folder / "zqf003.sqlite")


# Failures


class RustPanic(BaseException):
    """A panic in a Rust extension is no Exception, and quotes the string it could not slice."""


class TalkativeError(Exception):
    """Says it in every way that an exception has."""

    def __repr__(self) -> str:
        print(SECRET)
        return SECRET

    __str__ = __repr__


def _noted() -> BaseException:
    error = RuntimeError(SECRET)
    error.add_note(SECRET)
    return error


def _chained() -> BaseException:
    error = ConfideError("data.format", "A line cannot be read.")
    error.__cause__ = ValueError(SECRET)
    error.__context__ = RustPanic(SECRET)
    return error


def _locked() -> BaseException:
    error = sqlite3.OperationalError(f"database is locked: {SECRET}")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


Kind = tuple[str, Callable[[], BaseException], str]
KINDS: list[Kind] = [
    ("a value", lambda: ValueError(SECRET), "holder.failed"),
    ("a panic", lambda: RustPanic(SECRET), "holder.failed"),
    ("a key", lambda: KeyError(SECRET), "holder.failed"),
    ("a decoder", lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 9, SECRET),
     "holder.failed"),
    ("a code of text", lambda: ConfideError(SECRET, SECRET), "holder.failed"),
    ("a code like text", lambda: ConfideError("zqt.zqt0", ""), "holder.failed"),
    ("no space", lambda: OSError(errno.ENOSPC, "No space left on device", SECRET), "disk.full"),
    ("no permission", lambda: PermissionError(13, "denied", SECRET), "holder.failed"),
    ("a group", lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]), "holder.failed"),
    ("a base group", lambda: BaseExceptionGroup(SECRET, [RustPanic(SECRET)]), "holder.failed"),
    ("memory", lambda: MemoryError(SECRET), "holder.memory"),
    ("a cause", _chained, "data.format"),
    ("notes", _noted, "holder.failed"),
    ("recursion", lambda: RecursionError(SECRET), "holder.failed"),
    ("a broken promise", lambda: AssertionError(SECRET), "holder.failed"),
    ("an end", lambda: StopIteration(SECRET), "holder.failed"),
    ("a generator's end", lambda: GeneratorExit(SECRET), "holder.failed"),
    ("a device", lambda: torch.OutOfMemoryError(SECRET), "holder.failed"),
    ("a talkative one", lambda: TalkativeError(SECRET), "holder.failed"),
    ("a file name", lambda: FileNotFoundError(2, "none", SECRET), "holder.failed"),
    ("a lock", _locked, "holder.failed"),
]  # fmt: skip
LOUD = cycle(KINDS)


def failing(error: Callable[[], BaseException]) -> Callable[..., Any]:
    """Say it by every stream and every log, then raise."""

    def broken(*_: Any, **__: Any) -> Any:
        print(SECRET)
        print(SECRET, file=sys.stderr)
        os.write(1, SECRET.encode())
        os.write(2, SECRET.encode())
        for name in ("", "transformers", "flwr", "torch", "confide.holder"):
            logging.getLogger(name).critical(SECRET)
        warnings.warn(SECRET, stacklevel=1)
        raise error()

    return broken


# Where it would be seen


def reply_bytes(reply: Reply) -> bytes:
    records = reply_to_records(reply)
    parts = [json.dumps({k: str(v) for k, v in c.items()}) for c in records.config_records.values()]
    arrays = [a.data for r in records.array_records.values() for a in r.values()]
    return "".join(parts).encode() + b"".join(arrays)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """As outside of pytest, which keeps them for itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda text, *_, **__: print(text, file=sys.stderr)
        yield


class Watch:
    """Everything that could carry a marker away from the text."""

    def __init__(
        self, place: Place, capture: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
    ) -> None:
        self._place, self._capture, self._log = place, capture, log
        self._log.set_level("DEBUG")

    def hits(self, reply: Reply) -> list[str]:
        """The places of a marker: in the reply of any, elsewhere of one of the text."""
        out, err = self._capture.readouterr()
        seen = {"stdout": out.encode(), "stderr": err.encode(), "log": self._log.text.encode()}
        for path in self._place.data.parent.iterdir():
            if path != self._place.data:
                seen[path.name] = path.read_bytes()
        found = ["reply"] if PLACE_MARKER.search(reply_bytes(reply)) else []
        return found + [where for where, content in seen.items() if MARKER.search(content)]
