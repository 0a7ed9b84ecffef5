"""No private text leaves: markers in the data, a failure injected at every place.

Looked for in the reply's bytes, the log, both output streams, warnings, and every file that the
holder writes.
"""

from __future__ import annotations

import errno
import json
import re
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client import corpus
from confide.client import holder as holder_module
from confide.client.trainer import Trainer
from confide.common import models
from confide.common.batches import EncodedText
from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.common.tasks import Classification
from confide.common.wire import Reply, reply_to_records
from tests import tiny
from tests.client.conftest import RECORDS, Place, code

MARKER = re.compile(rb"zq[tlpk]\d", re.IGNORECASE)


def marked_rows() -> list[dict[str, str]]:
    """A marker in every text and for every person."""
    rows = tiny.rows(RECORDS, seed=3)
    for i, row in enumerate(rows):
        row["text"] = f"{row['text']} zqt{i:03d}"
        row["person"] = f"zqp{i:03d}"
    return rows


SECRET = " ".join(row["text"] for row in marked_rows())


class RustPanic(BaseException):
    """A panic in a Rust extension is no Exception, and quotes the string it could not slice."""


def raises(error: BaseException) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        warnings.simplefilter("default")
        raise error

    return broken


def chained(*_: Any, **__: Any) -> Any:
    try:
        raise ValueError(SECRET)
    except ValueError as cause:
        raise ConfideError("data.format", "A line cannot be read.") from cause


def nan(_: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.sum(1) * torch.nan


no_space = OSError(errno.ENOSPC, "No space left on device", SECRET)

# (where, what happens there, the code that leaves)
INJECTED: list[tuple[Any, str, Callable[..., Any], str]] = [
    (Classification, "encode", raises(ValueError(SECRET)), "holder.failed"),
    (Classification, "encode", raises(RustPanic(SECRET)), "holder.failed"),
    (Classification, "encode", raises(ConfideError(SECRET, "own message")), "holder.failed"),
    (Classification, "encode", chained, "data.format"),
    (Classification, "losses", raises(RuntimeError(f"bad input {SECRET}")), "holder.failed"),
    (Classification, "losses", nan, "train.self-check"),
    (Classification, "losses", raises(MemoryError(SECRET)), "holder.memory"),
    (corpus, "read_records", raises(UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad")),
     "holder.failed"),
    (corpus, "read_records", raises(no_space), "disk.full"),
    (corpus, "identity_of", raises(PermissionError(13, "denied", SECRET)), "holder.failed"),
    (holder_module, "load_model", raises(OSError(SECRET)), "holder.failed"),
    (holder_module, "release", raises(KeyError(SECRET)), "holder.failed"),
    (EncodedText, "batches", raises(IndexError(SECRET)), "holder.failed"),
    (Trainer, "train", raises(RuntimeError(SECRET)), "holder.failed"),
    (Trainer, "train", raises(ExceptionGroup(SECRET, [ValueError(SECRET)])), "holder.failed"),
    (Trainer, "train", lambda *_, **__: torch.full((3,), torch.nan), "release.not-finite"),
    (Ledger, "open", raises(sqlite3.DatabaseError(SECRET)), "holder.failed"),
    (Ledger, "register", raises(sqlite3.OperationalError(SECRET)), "holder.failed"),
    (Ledger, "charge", raises(sqlite3.OperationalError(SECRET)), "holder.failed"),
    (Ledger, "charge", raises(no_space), "disk.full"),
    (Ledger, "release", raises(no_space), "disk.full"),
    (Ledger, "receipt", raises(ValueError(SECRET)), "holder.failed"),
]  # fmt: skip


def reply_bytes(reply: Reply) -> bytes:
    records = reply_to_records(reply)
    parts = [json.dumps({k: str(v) for k, v in c.items()}) for c in records.config_records.values()]
    arrays = [a.data for r in records.array_records.values() for a in r.values()]
    return "".join(parts).encode() + b"".join(arrays)


class Watch:
    """Everything that could carry a marker away from the text."""

    def __init__(self, place: Place, capture: Any, log: Any) -> None:
        self._place, self._capture, self._log = place, capture, log
        self._log.set_level("DEBUG")

    def hits(self, reply: Reply, caught: list[Any]) -> list[str]:
        out, err = self._capture.readouterr()
        seen = {
            "reply": reply_bytes(reply),
            "stdout": out.encode(),
            "stderr": err.encode(),
            "log": self._log.text.encode(),
            "warnings": " ".join(str(w.message) for w in caught).encode(),
        }
        for path in self._place.data.parent.iterdir():
            if path != self._place.data:
                seen[path.name] = path.read_bytes()
        return [where for where, content in seen.items() if MARKER.search(content)]


@pytest.fixture
def watched(
    make_place: Callable[..., Place],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> tuple[Place, Watch]:
    place = make_place(data__person="person")
    tiny.write_jsonl(place.data, marked_rows())
    models._load.cache_clear()  # a model that was checked already is not checked again
    place.task()  # the model is loaded, as at a warm holder
    return place, Watch(place, capfd, caplog)


@pytest.mark.parametrize(("owner", "name", "failure", "expected"), INJECTED)
def test_a_failure_that_quotes_the_text_leaves_as_a_code(
    watched: tuple[Place, Watch],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    failure: Callable[..., Any],
    expected: str,
) -> None:
    place, watch = watched
    task = place.task()
    monkeypatch.setattr(owner, name, failure)
    with warnings.catch_warnings(record=True) as caught:
        reply = place.holder.handle(task)
    assert code(reply) == expected
    assert watch.hits(reply, caught) == []


ROW = {"text": "zqt001 a day", "label": "positive", "person": "zqp001"}
BROKEN: list[tuple[str, str, str]] = [
    ("text.jsonl", '{"text": "zqt001", "label"', "data.format"),
    ("text.jsonl", "zqt001 zqt002", "data.format"),
    ("text.jsonl", json.dumps({"zqk001 was here": 1, "label": "positive", "person": "1"}),
     "data.missing-column"),
    ("text.jsonl", json.dumps(ROW | {"label": "zql001"}), "data.unknown-label"),
    ("text.jsonl", json.dumps(ROW | {"label": {"zql001": 1}}), "data.bad-value"),
    ("text.jsonl", json.dumps(ROW | {"text": ["zqt001"]}), "data.bad-value"),
    ("text.jsonl", json.dumps(ROW | {"person": ["zqp001"]}), "data.bad-value"),
    ("text.jsonl", json.dumps(ROW | {"text": "zqt001 \ud800"}), "data.bad-value"),
    ("text.csv", "zqt001 was here,positive,zqp001\n", "data.missing-column"),
    ("text.csv", 'text,label,person\n"zqt001,positive,1\n', "data.format"),
    ("text.csv", "text,label,person\nzqt001,positive\n", "data.format"),
    ("text.parquet", "PAR1 zqt001 PAR1", "data.format"),
    ("text.txt", "zqt001\n", "data.missing-column"),
    ("text.zqt001", "zqt001\n", "data.unknown-suffix"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_a_broken_file_is_refused_without_quoting_it(
    watched: tuple[Place, Watch], name: str, content: str, expected: str
) -> None:
    place, watch = watched
    place.data.unlink()
    place.data = place.data.with_name(name)
    place.data.write_text(content, encoding="utf-8")
    object.__setattr__(place.site, "data", place.data)
    with warnings.catch_warnings(record=True) as caught:
        reply = place.holder.handle(place.task())
    assert code(reply) == expected
    found = watch.hits(reply, caught)
    # The holder's own log names the holder's own file; the reply never does.
    assert found == [] or ("zqt001" in name and set(found) <= {"log", "stderr"})


def test_an_update_carries_no_text_either(watched: tuple[Place, Watch]) -> None:
    place, watch = watched
    with warnings.catch_warnings(record=True) as caught:
        reply = place.holder.handle(place.task())
    assert code(reply) == "update"
    assert watch.hits(reply, caught) == []


def test_the_watch_sees_a_marker_wherever_it_is(
    watched: tuple[Place, Watch], capfd: pytest.CaptureFixture[str]
) -> None:
    place, watch = watched
    reply = place.holder.handle(place.task())
    Path(f"{place.site.ledger}-journal").write_bytes(b"..zqt001..")
    print("zqt002")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("zqp003", stacklevel=1)
    object.__setattr__(reply, "holder", "zqt004")
    assert watch.hits(reply, caught) == ["reply", "stdout", "warnings", "ledger.sqlite-journal"]
