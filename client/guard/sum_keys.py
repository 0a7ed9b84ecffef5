"""A holder's own keys for secure sums, in their folder beside the ledger.

``opening`` says what lies there, and what a restored backup of it can do. Imports no torch: whoever
enrols has a network, and may be root.
"""

from __future__ import annotations

import math
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from ...common.errors import ConfideError
from ...common.machine.paths import replace_durably
from ...common.masking.keys import Identity, SealingKey

IDENTITY_FILE, _RUNS = "identity", "runs"
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
        path = self._folder / IDENTITY_FILE
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
        path = self._folder / IDENTITY_FILE
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
        with suppress(OSError, ValueError, IndexError):
            first = path.with_suffix(_OPENED).read_text().splitlines()[0]
            if first.rpartition(" ")[0] == _file_of(path):
                return path.read_bytes()
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
