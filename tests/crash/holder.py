"""A holder at work, to be killed: charge, train (a stand-in), release, say that the update left.

``python -m tests.crash.holder LEDGER RUN PLACE COUNT MANNER``. It kills itself with SIGKILL when
it comes to PLACE for the COUNTth time; ``operation`` is before any write, sync or truncation of
SQLite, ``nowhere`` leaves it to others. MANNER is ``honest``, or what a broken one does.
What it says has left is on its standard output, a line for each update.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable

from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from tests.crash.vfs import looking

LIMIT = 8.0
REPLY_BYTES = 3000
ROUNDS = 10_000
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=1000.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=ROUNDS,
    delta=1e-5,
)
PLACES = ("before the charge", "after the charge", "training", "booked", "left", "operation")
MANNERS = ("honest", "releases before it charges", "books after it released", "never commits")

Come = Callable[[str], None]


def killer(place: str, count: int) -> Come:
    """Called with a place when it is come to."""
    times = 0

    def come(to: str) -> None:
        nonlocal times
        times += to == place
        if times == count and to == place:
            os.kill(os.getpid(), signal.SIGKILL)

    return come


def leave(task: str, reply: bytes, come: Come) -> None:
    """The update leaves: from here on it cannot be taken back."""
    os.write(1, f"{task} {hashlib.sha256(reply).hexdigest()}\n".encode())
    come("left")


def honest(ledger: Ledger, charge: Charge, reply: bytes, come: Come) -> None:
    come("before the charge")
    ledger.charge(charge, LIMIT)
    come("after the charge")
    sum(range(1000))  # the training
    come("training")
    ledger.release(charge.task_hash, reply)
    come("booked")
    leave(charge.task_hash, reply, come)


def releases_first(ledger: Ledger, charge: Charge, reply: bytes, come: Come) -> None:
    come("before the charge")
    leave(charge.task_hash, reply, come)
    come("training")
    ledger.charge(charge, LIMIT)
    come("after the charge")
    ledger.release(charge.task_hash, reply)
    come("booked")


def books_late(ledger: Ledger, charge: Charge, reply: bytes, come: Come) -> None:
    come("before the charge")
    ledger.charge(charge, LIMIT)
    come("after the charge")
    come("training")
    leave(charge.task_hash, reply, come)
    ledger.release(charge.task_hash, reply)
    come("booked")


class _Uncommitted:
    """A connection in one transaction that never ends."""

    def __init__(self, sql: object) -> None:
        self._sql = sql

    def __getattr__(self, name: str) -> object:
        return getattr(self._sql, name)

    def execute(self, statement: str, *values: object) -> object:
        if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            statement = "SELECT 1"
        return self._sql.execute(statement, *values)  # type: ignore[attr-defined]


def never_commits(ledger: Ledger, charge: Charge, reply: bytes, come: Come) -> None:
    if not isinstance(ledger._sql, _Uncommitted):
        ledger._sql.execute("BEGIN IMMEDIATE")
        vars(ledger)["_sql"] = _Uncommitted(ledger._sql)
    honest(ledger, charge, reply, come)


def main(path: str, run: str, place: str, count: str, manner: str) -> None:
    come = killer(place, int(count))
    work = dict(zip(MANNERS, (honest, releases_first, books_late, never_commits), strict=True))
    with Ledger.open(path) as ledger:
        os.write(1, b"ready\n")
        for number in range(ROUNDS):
            task = f"{run}-{number}"
            charge = Charge(run=run, round=number, task_hash=task, plan=PLAN)
            work[manner](ledger, charge, os.urandom(REPLY_BYTES), come)


if __name__ == "__main__":
    if sys.argv[3] == "operation":
        stop = killer("operation", int(sys.argv[4]))
        with looking(lambda _: stop("operation")):
            main(*sys.argv[1:])
    else:
        main(*sys.argv[1:])
