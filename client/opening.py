"""A holder's part in secure sums: its keys, what it contributes, and what it opens.

The keys lie in a folder beside the ledger that its own user alone may read, and never leave it:

    identity        the signing key, made by `confide client enrol`; in a simulation, when asked
    runs/RUN.key    the sealing key of a run, made when the run asks who can take part
    runs/RUN.opened which file the key is, and the sums that it opened over which contributions

A contribution is hidden in this process before anything is released; an opening answers once for a
call, over one set of contributions, which ledger and key folder have booked before the answer
exists.

What a killed or restored opener may do. The key of a run is durable: an opener that was killed
answers after its restart as it would have before, over the set that was booked, with the same
bytes; otherwise every round under way would be lost with the budget of all who contributed. The key
is destroyed once no call of its run can be open: a day after the longest that a round may wait
since it was last used. An older ledger that is put back finds the sums booked beside the key
(``sum.opened``). A key that is put back from a backup is another file, by its inode and the time of
its last change, which no copy keeps, and is destroyed unread (``sum.no-key``). What nothing here
can notice is a whole machine put back, its file system with all inodes: it may open one call a
second time, if the coordinator asks it to and kept the first answer. Keep the folder out of
backups, and remove ``runs/`` after a machine was put back.
"""

from __future__ import annotations

import math
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from ..common.errors import ConfideError
from ..common.machine.paths import replace_durably
from ..common.masking.keys import Identity, Roster, SealingKey
from ..common.masking.openers import (
    Call,
    Card,
    contribute,
    openable,
    openers_from_bytes,
    statements_from_bytes,
)
from ..common.masking.ring import CHECKS, to_words
from ..common.privacy.ledger import Ledger, already_opened
from ..common.settings import Settings
from ..common.wire.messages import Opening, OpenRequest, TrainRequest
from .guard.policy import Policy, review_openers, review_roster, review_sizes
from .guard.release import Outgoing

RING = "ring32"  # the encoding of a masked update

_IDENTITY, _RUNS = "identity", "runs"
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MOST_RUNS = 16
_OPENED = ".opened"
_DAY = 24 * 3600.0  # seconds


class SumKeys:
    """The keys of one holder, in their folder.

    Args:
        create: make an identity where there is none, as a simulated holder does.
    """

    def __init__(self, folder: Path, name: str, *, create: bool = False) -> None:
        self._folder, self._name, self._create = folder, name, create

    @property
    def identity(self) -> Identity:
        """The signing key.

        Raises:
            ConfideError: ``sum.no-identity``.
        """
        path = self._folder / _IDENTITY
        if self._create and not path.exists():
            self.enrol()
        try:
            return Identity(self._name, path.read_bytes())
        except (OSError, ValueError):
            raise ConfideError(
                "sum.no-identity",
                f"There is no signing key at {path}.",
                "Make one by `confide client enrol`, and let the coordinator add its public half.",
            ) from None

    def enrol(self) -> None:
        """Make the signing key; one that is there stays.

        Raises:
            ConfideError: ``sum.enrolled``.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / _IDENTITY
        if path.exists():
            raise ConfideError(
                "sum.enrolled",
                f"There is a signing key at {path}, and it is never overwritten.",
                "Use it; or move it away to become another member, which makes another roster.",
            )
        replace_durably(path, Identity.new_secret())

    def of_run(self, run: str, seconds: float | None = None) -> SealingKey:
        """The sealing key of a run.

        Args:
            seconds: make one where there is none, and how long a round of the run waits.

        Raises:
            ConfideError: ``sum.no-key`` where there is none, or one that was put back.
        """
        self.destroy_old()
        path = self._path(run)
        if seconds is not None and self._secret(path) is None:
            self._make(path, seconds)
        secret = self._secret(path)
        if secret is None:
            raise ConfideError(
                "sum.no-key",
                "This holder has no key of the run: it was destroyed, or never made here.",
                "Nothing was answered. The run's next round is opened by others.",
            )
        os.utime(path.with_suffix(_OPENED))  # when it was last used
        return SealingKey(secret)

    def opened(self, run: str) -> dict[str, str]:
        """The set of contributions of each call of a run that was opened (hashes of both)."""
        lines = self._path(run).with_suffix(_OPENED).read_text().splitlines()
        return dict(line.split() for line in lines[1:])

    def book(self, run: str, call: str, contributions: str) -> None:
        """Book an opening beside the key. Durable when this returns."""
        path = self._path(run).with_suffix(_OPENED)
        first = path.read_text().splitlines()[0]
        known = self.opened(run) | {call: contributions}
        lines = [first, *(f"{one} {of}" for one, of in known.items())]
        replace_durably(path, "\n".join(lines).encode())

    def destroy(self, run: str) -> None:
        """Destroy the key of a run: what was sealed to it stays closed."""
        _destroy(self._path(run))

    def destroy_old(self) -> None:
        """Destroy every key of which no call can be open any more."""
        for path in self._runs():
            beside = path.with_suffix(_OPENED)
            with suppress(OSError, ValueError, IndexError):
                waits = int(beside.read_text().split()[2])
                if time.time() > beside.stat().st_mtime + waits + _DAY:
                    _destroy(path)

    def _make(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for oldest in self._runs()[: -_MOST_RUNS + 1]:
            _destroy(oldest)
        _destroy(path)
        replace_durably(path, SealingKey.new_secret())
        place = f"{_file_of(path)} {math.ceil(seconds)}"
        replace_durably(path.with_suffix(_OPENED), place.encode())

    def _secret(self, path: Path) -> bytes | None:
        """What a key's file holds; None where there is none. One that was put back goes."""
        try:
            first = path.with_suffix(_OPENED).read_text().splitlines()[0]
            if first.rpartition(" ")[0] == _file_of(path):
                return path.read_bytes()
        except (OSError, ValueError, IndexError):
            pass
        _destroy(path)
        return None

    def _path(self, run: str) -> Path:
        if not _RUN.fullmatch(run):
            raise ConfideError("task.run", "The run's id is not 1 to 128 of A-Z a-z 0-9 . _ -")
        return self._folder / _RUNS / f"{run}.key"

    def _runs(self) -> list[Path]:
        """The keys that are there, the one that was used longest ago first."""

        def used(path: Path) -> float:
            with suppress(OSError):
                return path.with_suffix(_OPENED).stat().st_mtime
            return 0.0

        return sorted((self._folder / _RUNS).glob("*.key"), key=used)


class SumMember:
    """A holder as a member of secure sums: every check by its policy, then the cryptography."""

    def __init__(self, keys: SumKeys, name: str, policy: Policy) -> None:
        self._keys, self._name, self._policy = keys, name, policy

    def card(self, request: TrainRequest, settings: Settings) -> bytes:
        """What this holder says of itself to a run that asks who can take part.

        Raises:
            ConfideError: ``policy.roster``, ``sum.stranger``, ``sum.no-identity``.
        """
        if request.roster or not self._policy.allow_any_roster:
            self._roster(request.roster)
        key = self._keys.of_run(request.run, settings.round.timeout)
        return Card.of(self._keys.identity, request.run, key).to_bytes()

    def call(self, request: TrainRequest, settings: Settings, values: int) -> Call:
        """The sum that a request asks for, checked: nothing is contributed to any other.

        Raises:
            ConfideError: ``policy.roster``, ``policy.openers`` or ``sum.`` and what is wrong.
        """
        roster = self._roster(request.roster)
        call = Call(
            run=request.run,
            request=request.hash,
            roster=roster,
            openers=openers_from_bytes(request.openers),
            least=settings.round.min_holders,
            colluding=settings.privacy.colluding,
            size=values + CHECKS,
        )
        call.check()
        review_openers([one.name for one in call.openers], self._name, self._policy)
        return call

    def hide(self, call: Call, values: Tensor, step: float, schema: str = "") -> Outgoing:
        """The values (n,) in float64, with this holder's share of noise, as they leave: rounded to
        multiples of ``step`` and masked.

        Raises:
            ConfideError: ``sum.not-finite``, ``sum.range``.
        """
        words = to_words(values.numpy().astype(np.float64), step)
        statement, masked = contribute(self._keys.identity, call, words)
        return Outgoing(values=masked, encoding=RING, schema=schema, statement=statement.to_bytes())

    def open(self, request: OpenRequest, ledger: Ledger) -> Opening:
        """Answer for a sum: once, over one set of contributions, which is booked first.

        Raises:
            ConfideError: ``policy.`` and the limit, ``sum.`` and what is wrong, or the ledger's.
        """
        roster = self._roster(request.roster)
        review_sizes(request.least, request.colluding, self._policy)
        call = Call(
            run=request.run,
            request=request.task_hash,
            roster=roster,
            openers=openers_from_bytes(request.openers),
            least=request.least,
            colluding=request.colluding,
            size=request.size,
        )
        call.check()
        statements = statements_from_bytes(request.statements, len(call.openers))
        chosen = openable(self._name, self._keys.of_run(call.run), call, statements)
        known = self._keys.opened(call.run)
        if known.get(call.digest, chosen.digest) != chosen.digest:  # the ledger may be an older one
            raise already_opened()
        ledger.open_sum(call.digest, chosen.digest)
        self._keys.book(call.run, call.digest, chosen.digest)
        return Opening(holder=self._name, task_hash=request.task_hash, values=chosen.answer())

    def _roster(self, data: bytes) -> Roster:
        """The run's roster, by the policy the right one, with this holder in it."""
        if not data:
            review_roster("", self._policy)
        roster = Roster.from_bytes(data)
        review_roster(roster.digest, self._policy)
        if roster.member(self._name) != self._keys.identity.member:
            raise ConfideError(
                "sum.stranger",
                f"The roster has another key of {self._name} than this holder's.",
                "Give the coordinator the request that `confide client enrol` wrote, and compare"
                " the new roster.",
            )
        return roster


def _file_of(path: Path) -> str:
    """Which file this is: its inode, and when that was last changed, in nanoseconds."""
    found = path.stat()
    return f"{found.st_ino} {found.st_ctime_ns}"


def _destroy(path: Path) -> None:
    """Overwrite and remove; a file system that copies on write may keep an older block."""
    with suppress(OSError):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    path.with_suffix(_OPENED).unlink(missing_ok=True)
