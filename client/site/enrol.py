"""A holder makes its own keys: what it connects by, and what it signs secure sums with.

The first lies in the folder that the coordinator's kit is copied over, the second beside the
ledger; both for their owner alone. Where root does this, the signing key is made by the resident's
user, whose it is then, and root never sees it. Nothing that is there is replaced: a key that is
there is used, so that a renewed kit has a new node key and the same signing key.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.kit import (
    KEY_FILE,
    PUBLIC_FILE,
    REQUEST_FILE,
    Kit,
    public_line,
    read_holder_key,
    write_holder_key,
)
from ...common.machine.paths import keys_beside, write_public
from ...common.masking.enrolment import Enrolment, check_name, read_request
from ..guard.sum_keys import IDENTITY_FILE, SumKeys
from .users import User, as_owner_of, as_user, may_read, may_write

_OTHERS = 0o077  # the permission bits of everybody but the owner


@dataclass(frozen=True, kw_only=True)
class Enrolling:
    """What an administrator decided.

    Attributes:
        folder: where the kit will be.
        resident, gateway: the users that will read the text and use the network; None where root
            does not do this.
    """

    folder: Path
    name: str
    ledger: Path
    resident: User | None = None
    gateway: User | None = None


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What was written, and which of the two keys had been there."""

    request: Path
    keys: Path
    kept_node_key: bool
    kept_signing_key: bool


def enrol(enrolling: Enrolling) -> Enrolled:
    """Make what is missing of the two keys, and write the request with their public halves.

    Raises:
        ConfideError: ``enrol.name``, ``enrol.exists``, ``enrol.unwritable``, ``kit.key``,
            ``sum.enrolled`` for a signing key that is damaged, or as ``check_keys``.
    """
    check_name(enrolling.name, "enrol.name")
    folder, path = enrolling.folder, enrolling.folder / REQUEST_FILE
    _check_place(enrolling)
    with _writing(folder), as_owner_of(_nearest(folder)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _writing(folder), as_owner_of(folder):
        if os.path.lexists(path):
            raise ConfideError(
                "enrol.exists",
                f"{path} was made before, and is never overwritten.",
                "Give that one to the coordinator; for new keys, name a new folder.",
            )
        kept_node_key = os.path.lexists(folder / KEY_FILE)
        if not kept_node_key:
            write_holder_key(folder / KEY_FILE, folder / PUBLIC_FILE)
        node = public_line(read_holder_key(folder / KEY_FILE)).decode()
    done = as_user(enrolling.resident, lambda: _signed(enrolling, node))
    check_keys(enrolling.ledger, enrolling.resident, enrolling.gateway)
    with _writing(folder), as_owner_of(folder):
        write_public(path, str(done["request"]).encode())
    return Enrolled(
        request=path,
        keys=keys_beside(enrolling.ledger),
        kept_node_key=kept_node_key,
        kept_signing_key=bool(done["kept"]),
    )


def _check_place(enrolling: Enrolling) -> None:
    place = enrolling.ledger.absolute().parent
    writable = (
        may_write(enrolling.resident, place) if enrolling.resident else os.access(place, os.W_OK)
    )
    if not writable:
        who = enrolling.resident.name if enrolling.resident else "This user"
        raise ConfideError(
            "enrol.unwritable",
            f"{who} cannot write the signing key into {place}, where the ledger is or will be.",
            "Name the text, or the ledger, where it lies for good; or give the folder to that"
            " user.",
        )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def _signed(enrolling: Enrolling, node: str) -> dict[str, Any]:
    """Done as the resident's user: only what is public goes back."""
    keys = SumKeys(keys_beside(enrolling.ledger), enrolling.name)
    kept = os.path.lexists(keys_beside(enrolling.ledger) / IDENTITY_FILE)
    try:
        identity = keys.identity
    except ConfideError as error:
        if error.code != "sum.no-identity":
            raise
        with _writing(keys_beside(enrolling.ledger)):
            keys.enrol()
        identity = keys.identity
    return {"request": Enrolment.of(identity, node).to_text(), "kept": kept}


def check_node_key(kit: Kit) -> None:
    """The kit's key is the one that was made here, where a request says that one was.

    Raises:
        ConfideError: ``kit.other-key``, ``kit.key``, or as ``read_request``.
    """
    path = kit.folder / REQUEST_FILE
    with as_owner_of(kit.folder):
        if not path.is_file():
            return
        if read_request(path).node == public_line(read_holder_key(kit.key)).decode():
            return
    raise ConfideError(
        "kit.other-key",
        f"{kit.key} is not the key of {path.name}: what was copied over it had one of its own.",
        "Whoever made that one can speak in this holder's name. Enrol again in a new folder, and"
        " ask the coordinator to renew the kit with that request.",
    )


def has_keys(ledger: Path, resident: User | None) -> bool:
    """Whether there is a signing key, as the resident's user sees it."""
    path = keys_beside(ledger) / IDENTITY_FILE
    return bool(as_user(resident, lambda: os.path.lexists(path)))


def check_keys(ledger: Path, resident: User | None, gateway: User | None) -> None:
    """The signing key, where there is one, is the resident's alone.

    Raises:
        ConfideError: ``join.keys-open`` or ``join.unreadable``.
    """
    if not has_keys(ledger, resident):
        return
    folder = keys_beside(ledger)
    path = folder / IDENTITY_FILE
    trouble = str(as_user(resident, lambda: _trouble(folder) or _trouble(path)))
    if trouble:
        run = f"chown -R {resident.name} {folder} && " if resident else ""
        raise ConfideError(
            "join.keys-open",
            f"{trouble}: the signing key must be of the user who reads the text, and of nobody"
            " else.",
            f"Run: {run}chmod -R go-rwx {folder}; make another key if others may have read it.",
        )
    if resident and not may_read(resident, path):
        raise ConfideError(
            "join.unreadable", f"{resident.name} cannot read {path}.", f"Run: chmod 600 {path}"
        )
    if gateway and may_read(gateway, path):
        raise ConfideError(
            "join.keys-open",
            f"{gateway.name}, which has the network, could read {path}.",
            f"Run: chmod -R go-rwx {folder}",
        )


def _trouble(path: Path) -> str:
    """What is wrong with the owner or the mode of a file or folder of keys, for this user."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a link"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} has mode {mode:04o}" if mode & _OTHERS else ""


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what the disk refuses into ``enrol.unwritable``."""
    try:
        yield
    except OSError as error:
        raise ConfideError(
            "enrol.unwritable",
            f"{folder} cannot be written: {error.strerror}.",
            "Name a folder that can be written.",
        ) from None
