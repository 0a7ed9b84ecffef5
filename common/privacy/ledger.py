"""The privacy ledger of one data set: what was ever spent on it, and a proof that it was booked.

One SQLite file. Entries are only ever appended; each is canonical JSON that
names its place and the hash of the entry before it, and its own hash is the SHA-256 of those
bytes. Order of events: ``charge`` (durable when it returns), then read text and train, then
``release`` with the bytes that leave. A task that was charged and never released stays spent:
something may have left.

What opening the file detects: any changed, missing, added or re-ordered entry, and entries cut
off the end, since a separate row of the same database holds their number and the last hash.
What no file can show about itself: an older copy of the whole file put back, the last entries
removed together with a matching head row, or a chain made anew from its first entry by someone
who may write it. For those the head must be known elsewhere: each update carries it as its
receipt, and ``verify(path, known_head=...)`` tells whether a ledger still contains it.

The same file holds a secret key, chosen when it was made: the identity of the text is hashed
under it, so that whoever sees receipts, exports or reports cannot test a guess of the text. It is
in no entry and leaves by no method but ``identity_key``; the first entry holds its hash.

Never here: private text, or a message that quotes it. Nor a refund.
"""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import ConfideError
from . import budget
from .accountant import GaussianSteps, epsilon_pld
from .chain import (
    FORMAT,
    NO_HASH,
    Book,
    Charge,
    Entry,
    Receipt,
    RunPlan,
    canonical,
    check_charge,
    check_unit,
    checked_key,
    checked_reply,
    corrupt,
    hash_of_key,
    in_words,
    task_spent,
)
from .plan import Trust, Unit

KEPT_REPLIES = 4  # of the newest releases, so that a task delivered again gets the same bytes

__all__ = [
    "Charge",
    "Entry",
    "Ledger",
    "Receipt",
    "RunPlan",
    "Verdict",
    "already_opened",
    "canonical",
    "in_words",
    "verify",
]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a check; ``problem`` is empty exactly when ``ok``."""

    ok: bool
    ledger_id: str = ""
    entries: int = 0
    head: str = ""
    problem: str = ""


class Ledger:
    """An open ledger; several processes may have the same one open. Not for several threads."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Use ``Ledger.open``."""
        self._sql = connection
        self._path = path
        self._book = Book()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = True) -> Ledger:
        """Open and verify the whole chain; make a new ledger where there is no file.

        Raises:
            ConfideError: ``ledger.missing``, ``ledger.corrupt``, ``ledger.locked``,
                ``ledger.write`` or ``ledger.format``. A damaged ledger is never repaired or
                replaced: what it had booked would be spent again.
        """
        path = Path(path)
        if not path.is_file():
            if not create or path.exists():
                raise ConfideError(
                    "ledger.missing",
                    f"There is no ledger file at {path}.",
                    "Check the path; without its ledger a data set's past is unknown.",
                )
            with translated(path):
                make(path)
        with translated(path):
            ledger = cls(connect(path, mode="rw"), path)
            try:
                with ledger._transaction("DEFERRED"):
                    ledger._read_key()
                    ledger._check_replies()
            except BaseException:
                ledger.close()
                raise
        return ledger

    def close(self) -> None:
        self._sql.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def ledger_id(self) -> str:
        """Random, chosen when the ledger was made: a ledger made anew is another ledger."""
        return self._book.ledger_id

    @property
    def identity_key(self) -> bytes:
        """Secret, for the keyed hash of the data set alone: never print, send or store it."""
        with translated(self._path):
            return self._read_key()

    @property
    def head(self) -> str:
        """Hash of the newest entry, in hex."""
        return self._current().head

    def entries(self) -> tuple[Entry, ...]:
        """Everything from the first entry on, verified once more."""
        with self._transaction("DEFERRED"):
            book = Book()
            return tuple(book.take(*row) for row in self._rows(0))

    @property
    def identity(self) -> str:
        """Of the text that was read for the newest release, as it was given; empty before one."""
        return self._current().identity

    @property
    def unit(self) -> tuple[Unit, str] | None:
        """The unit of every charge with noise, with its column of persons; None before one."""
        return self._current().unit

    def check_unit(self, unit: Unit, person: str = "") -> None:
        """Refuse another unit than that of the charges so far, with ``ledger.unit``."""
        check_unit(self._current(), unit, person)

    def objection(
        self, charge: Charge, limit: float | None, run_limit: float | None = None
    ) -> ConfideError | None:
        """Why ``charge`` would be refused for what it costs, or None if it fits. The first charge
        of a run may take seconds, the others no time."""
        return budget.objection(self._current(), charge, limit, run_limit)

    def charge(self, charge: Charge, limit: float | None, run_limit: float | None = None) -> None:
        """Book one task before any text is read for it. Durable when this returns.

        Everything ever charged, in all runs, together with this task must stay within ``limit``
        (epsilon at the plan's delta, by the bounds of ``budget``; None: no limit), and everything
        charged in its run within ``run_limit``. Refused means nothing was written.

        Raises:
            ConfideError: ``ledger.task-spent`` if this task was charged before, ``ledger.unit`` if
                noise was charged for another unit, ``ledger.budget-exhausted`` or
                ``policy.max-epsilon-per-run`` if it does not fit.
        """
        check_charge(charge, limit)
        # Once outside the transaction, so that others rarely wait for the computation.
        self.objection(charge, limit, run_limit)
        with self._transaction("IMMEDIATE"):
            book = self._book
            if charge.task_hash in book.tasks:
                raise task_spent()
            if charge.plan.trust is not Trust.OFF:
                check_unit(book, charge.plan.unit, charge.person)
            refused = budget.objection(book, charge, limit, run_limit)
            if refused is not None:
                raise refused
            held = None if limit is None or limit == math.inf else float(limit)
            self._append(
                state="reserved",
                run=charge.run,
                round=charge.round,
                task=charge.task_hash,
                plan=charge.plan.to_json(),
                person=charge.person,
                bundle=charge.bundle_hash,
                whole=[step.to_json() for step in budget.planned(charge).whole],
                limit=held,
                order=budget.terms_of(book, charge, held).order,
            )

    def release(self, task_hash: str, reply: bytes, identity: str = "") -> None:
        """Book that ``reply`` leaves, and keep it for ``replay``. Durable when this returns.

        Args:
            identity: of the text that was read, opaque here: a keyed hash of it, under
                ``identity_key``.
        """
        with self._transaction("IMMEDIATE"):
            if task_hash not in self._book.tasks:
                raise ConfideError(
                    "ledger.not-charged", "A task must be charged before its release."
                )
            if self._book.tasks[task_hash]:
                raise task_spent()
            self._sql.execute(
                "INSERT INTO replies VALUES (?, ?, ?)", (self._book.entries, task_hash, reply)
            )
            self._sql.execute(
                "DELETE FROM replies WHERE number NOT IN"
                " (SELECT number FROM replies ORDER BY number DESC LIMIT ?)",
                (KEPT_REPLIES,),
            )
            digest = sha256(reply).hexdigest()
            self._append(state="released", task=task_hash, reply=digest, text=identity)

    def replay(self, task_hash: str) -> bytes | None:
        """The very bytes that this task released; None if it was never charged.

        Raises:
            ConfideError: ``ledger.task-spent`` if it was charged but its bytes are not kept.
        """
        with self._transaction("DEFERRED"):
            if task_hash not in self._book.tasks:
                return None
            row = self._sql.execute(
                "SELECT body FROM replies WHERE task = ?", (task_hash,)
            ).fetchone()
        if row is None:
            raise task_spent()
        return checked_reply(row[0], self._book.tasks[task_hash])

    def open_sum(self, call: str, contributions: str) -> None:
        """Book that this holder helps to open the sum ``call`` over a set of ``contributions``
        (hashes of both). Durable when this returns; nothing for the same set once more.

        Raises:
            ConfideError: ``sum.opened`` where another set was booked for the call: two sets would
                tell what is between them.
        """
        with self._transaction("IMMEDIATE"):
            known = self._book.opened.get(call)
            if known is None:
                self._append(state="opened", call=call, set=contributions)
            elif known != contributions:
                raise already_opened()

    def steps(self, run: str | None = None, *, unmasked: bool = False) -> tuple[GaussianSteps, ...]:
        """All that was charged, by every run or by one; what is only reserved counts as spent.
        ``unmasked``: what it is worth where every mask of a secure sum fails."""
        return self._current().steps(run, unmasked=unmasked)

    def plans(self, run: str | None = None) -> tuple[RunPlan, ...]:
        """What every run was to release in all, or one run; several where its plan changed."""
        return tuple(self._current().plans_of(run))

    def charged(self, run: str) -> dict[int, int]:
        """How many steps were charged for each round of a run."""
        return {r: count for (of, r), count in self._current().charged.items() if of == run}

    def epsilon(self, delta: float, run: str | None = None) -> float:
        """Spent so far, by PLD."""
        return epsilon_pld(self.steps(run), delta)

    def proven(self, delta: float, run: str) -> float:
        """What is proven of everything that was charged, ``run`` in full (``budget.proven``)."""
        return budget.proven(self._current(), run, delta)

    def receipt(self, delta: float, run: str) -> Receipt:
        """What to send along with an update of ``run``."""
        book = self._current()
        return Receipt(
            ledger_id=book.ledger_id,
            head=book.head,
            entries=book.entries,
            delta=float(delta),
            epsilon=epsilon_pld(book.steps(None), delta),
            proven=budget.proven(book, run, delta),
            unmasked=epsilon_pld(book.steps(None, unmasked=True), delta),
            runs=len(book.plans),
            limit=book.limit,
            steps_run=book.steps(run),
        )

    def _current(self) -> Book:
        """The book with what other processes appended meanwhile."""
        with self._transaction("DEFERRED"):
            return self._book

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        """Begin, read and verify what is new, run the body, commit; any error rolls back.

        The book in memory learns of the body's own entries by reading them back next time, so
        it never knows anything that is not in the file.
        """
        with translated(self._path):
            self._sql.execute(f"BEGIN {kind}")
            try:
                self._catch_up()
                yield
                self._sql.execute("COMMIT")
            finally:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")

    def _catch_up(self) -> None:
        known = self._book.entries
        stored = self._sql.execute("SELECT entries, hash FROM head WHERE one = 1").fetchone()
        if stored is None:
            raise corrupt("Its head row is missing.")
        for row in self._rows(known):
            self._book.take(*row)
        if (self._book.entries, self._book.head) != stored:
            raise corrupt(f"It has {self._book.entries} entries, its head row says {stored[0]}.")

    def _rows(self, first: int) -> Iterable[tuple[int, str, str]]:
        return self._sql.execute(
            "SELECT number, payload, hash FROM entries WHERE number >= ? ORDER BY number", (first,)
        )

    def _append(self, **payload: Any) -> None:
        append(self._sql, self._book.entries, self._book.head, payload)

    def _read_key(self) -> bytes:
        row = self._sql.execute("SELECT key FROM secret WHERE one = 1").fetchone()
        return checked_key(row[0] if row else None, self._book.key_hash)

    def _check_replies(self) -> None:
        """Kept are the newest releases, all of them and nothing else."""
        query = "SELECT number, task, body FROM replies ORDER BY number"
        rows = self._sql.execute(query).fetchall()
        if [(number, task) for number, task, _ in rows] != self._book.releases[-KEPT_REPLIES:]:
            raise corrupt("It does not keep the replies of its newest releases.")
        for _, task, body in rows:
            checked_reply(body, self._book.tasks[task])


def already_opened() -> ConfideError:
    """The error of a sum that was opened over another set of contributions."""
    return ConfideError(
        "sum.opened",
        "This sum was opened over another set of contributions.",
        "Nothing was answered. No coordinator needs two sums of one request.",
    )


def first_objection(
    charge: Charge, limit: float | None, run_limit: float | None = None
) -> ConfideError | None:
    """What ``Ledger.objection`` says where nothing was ever charged, and there is no file yet."""
    return budget.objection(Book(), charge, limit, run_limit)


def verify(path: str | os.PathLike[str], *, known_head: str = "") -> Verdict:
    """Check a ledger file as ``open`` does, and that ``known_head`` (from any receipt ever sent)
    is one of its entries: a ledger that lost it was rolled back or replaced."""
    try:
        with Ledger.open(path, create=False) as ledger:
            entries = ledger.entries()
            ledger_id = ledger.ledger_id
    except ConfideError as error:
        if error.code != "ledger.corrupt":
            raise
        return Verdict(ok=False, problem=error.message)
    problem = ""
    if known_head and known_head not in {e.hash for e in entries}:
        problem = f"It does not contain the entry {known_head}: it was rolled back or replaced."
    return Verdict(
        ok=not problem,
        ledger_id=ledger_id,
        entries=len(entries),
        head=entries[-1].hash,
        problem=problem,
    )


# --- the file ---
#
# The SQLite file of a ledger: made whole, synced at every commit, its errors told as ours.
#
# Durability: rollback journal in TRUNCATE mode with synchronous FULL. SQLite then syncs journal,
# file and the end of the journal before a commit returns, so neither kill -9 nor a power failure
# loses a charge that was acknowledged, and the one file is whole whenever no process writes. (In
# DELETE mode a power failure may bring a removed journal back and roll an acknowledged charge
# back; in WAL mode a copy of the file alone may lack the newest entries.)


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
