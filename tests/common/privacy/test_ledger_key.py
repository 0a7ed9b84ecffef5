"""The ledger's secret key: in its file, in nothing that leaves it, and noticed when exchanged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.client.cli import add_commands
from confide.common.errors import ConfideError
from confide.common.privacy import chain
from confide.common.privacy.ledger import Charge, Ledger, verify
from confide.common.privacy.plan import Plan

KEY_BYTES = 32
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=10.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=9,
    delta=1e-5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        charge = Charge(run="run", round=1, task_hash="task", plan=PLAN, bundle_hash="bundle")
        ledger.charge(charge, limit=None)
        ledger.release("task", b"update", "keyed-hash")
    return path


@contextlib.contextmanager
def refused(code: str) -> Iterator[ConfideError]:
    with pytest.raises(ConfideError) as caught:
        yield caught  # type: ignore[misc]
    assert caught.value.code == code


def edit(path: Path, statement: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.execute(statement, values)
        sql.commit()


def key_of(path: Path) -> bytes:
    with Ledger.open(path) as ledger:
        return ledger.identity_key


def command(*arguments: str) -> str:
    app = typer.Typer()
    add_commands(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["ledger", *arguments]).output


def test_each_ledger_has_a_key_of_its_own_for_good(path: Path, tmp_path: Path) -> None:
    key = key_of(path)
    assert len(key) == KEY_BYTES
    assert key_of(path) == key
    assert key_of(tmp_path / "another.sqlite") != key


def test_the_key_is_in_no_entry_receipt_export_or_output(path: Path) -> None:
    key = key_of(path)
    with Ledger.open(path) as ledger:
        told = [repr(ledger.entries()), repr(ledger.receipt(1e-5, "run")), repr(vars(ledger))]
    for name in ("show", "verify", "export"):
        told += [command(name, str(path)), command(name, str(path), "--json")]
    assert all(told)
    for text in told:
        for form in (key.hex(), repr(key)[2:-1], sha256(key).hexdigest()):
            assert form not in text


def test_another_key_is_noticed(path: Path) -> None:
    for key in (bytes(KEY_BYTES), "text", b"", None):
        change = "UPDATE secret SET key = ?" if key is not None else "DELETE FROM secret"
        edit(path, change, *([] if key is None else [key]))
        with refused("ledger.corrupt"):
            Ledger.open(path)
        assert not verify(path).ok


def test_the_code_bundle_is_booked_with_the_charge(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.entries()[1].payload["bundle"] == "bundle"
        other = Charge(run="run", round=2, task_hash="t2", plan=PLAN, bundle_hash=None)  # type: ignore[arg-type]
        with refused("ledger.charge"):
            ledger.charge(other, limit=None)


def old_file(path: Path) -> None:
    """A ledger as the first format was: no table of the key, and no word of it."""
    payload = {"format": 1, "ledger": "0" * 32, "number": 0, "previous": chain.NO_HASH}
    text = chain.canonical({**payload, "state": "created", "time": "2026-01-01T00:00:00+00:00"})
    digest = sha256(text.encode()).hexdigest()
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.executescript(
            "CREATE TABLE entries (number INTEGER PRIMARY KEY, payload TEXT, hash TEXT);"
            "CREATE TABLE head (one INTEGER PRIMARY KEY, entries INTEGER, hash TEXT);"
            "CREATE TABLE replies (number INTEGER PRIMARY KEY, task TEXT, body BLOB);"
        )
        sql.execute("INSERT INTO entries VALUES (0, ?, ?)", (text, digest))
        sql.execute("INSERT INTO head VALUES (1, 1, ?)", (digest,))
        sql.commit()


def test_a_ledger_of_the_first_format_is_refused_by_name_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    old_file(path)
    before = path.read_bytes()
    with pytest.raises(ConfideError) as caught:
        Ledger.open(path)
    assert caught.value.code == "ledger.format"
    assert f"format 1, this version reads {chain.FORMAT}" in caught.value.message
    assert "version of confide that wrote it" in caught.value.hint
    assert path.read_bytes() == before
