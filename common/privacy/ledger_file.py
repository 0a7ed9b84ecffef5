"""The SQLite file of a ledger: made whole, synced at every commit, its errors told as ours.

Durability: rollback journal in TRUNCATE mode with synchronous FULL. SQLite then syncs journal,
file and the end of the journal before a commit returns, so neither kill -9 nor a power failure
loses a charge that was acknowledged, and the one file is whole whenever no process writes. (In
DELETE mode a power failure may bring a removed journal back and roll an acknowledged charge
back; in WAL mode a copy of the file alone may lack the newest entries.)
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ConfideError
from .chain import FORMAT, NO_HASH, canonical, corrupt, hash_of_key

BUSY_SECONDS = 30.0
_KEY_BYTES = 32

_SCHEMA = """
CREATE TABLE entries (number INTEGER PRIMARY KEY, payload TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER, hash TEXT);
CREATE TABLE secret (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL);
CREATE TABLE replies (number INTEGER PRIMARY KEY, task TEXT NOT NULL, body BLOB NOT NULL);
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


def connect(path: Path, *, mode: str) -> sqlite3.Connection:
    """Open the file of that mode (rw: it must be there), with the durability named above."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def make(path: Path) -> None:
    """Build a ledger beside ``path`` and link it there whole, so that an empty or half-made file
    is always damage and never a fresh start. Whoever links second uses what is there."""
    if not path.parent.is_dir():
        raise ConfideError(
            "ledger.missing", f"There is no folder {path.parent}.", "Make the folder first."
        )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        connection = connect(draft, mode="rw")
        try:
            connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO head VALUES (1, 0, ?)", (NO_HASH,))
            key = secrets.token_bytes(_KEY_BYTES)
            connection.execute("INSERT INTO secret VALUES (1, ?)", (key,))
            name = secrets.token_hex(16)
            payload = {
                "state": "created",
                "format": FORMAT,
                "ledger": name,
                "key": hash_of_key(key),
            }
            append(connection, 0, NO_HASH, payload)
            connection.execute("COMMIT")
        finally:
            connection.close()
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)


def append(sql: sqlite3.Connection, number: int, head: str, payload: Mapping[str, Any]) -> None:
    """Write one entry and the head that names it, in the caller's transaction."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = canonical({**payload, "number": number, "previous": head, "time": now})
    digest = sha256(text.encode()).hexdigest()
    sql.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, digest))
    sql.execute("UPDATE head SET entries = ?, hash = ? WHERE one = 1", (number + 1, digest))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours; the words of the original stay in the cause."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a closed ledger or another thread: a mistake of the caller, not of the file
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ConfideError(
                "ledger.locked",
                f"The ledger {path} was in use for {BUSY_SECONDS:g} s.",
                "Find the process that holds it, then try again; this task was not booked.",
            ) from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY) or (
            code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
        ):
            raise _unwritable(path, str(error)) from error
        raise corrupt(f"{path} is not a sound database.") from error
    except UnicodeDecodeError as error:  # of SQLite's own message, which quotes a damaged schema
        raise corrupt(f"{path} is not a sound database.") from error
    except OSError as error:
        raise _unwritable(path, error.strerror or "input/output error") from error


def _unwritable(path: Path, why: str) -> ConfideError:
    return ConfideError(
        "ledger.write",
        f"The ledger {path} cannot be read or written: {why}.",
        "Check permissions and free space; what was not booked must not be released.",
    )
