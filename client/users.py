"""Users of this machine: the resident and the gateway run as one each, where root starts them.

Nothing is created here; an administrator makes the two users once.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConfideError

RESIDENT, GATEWAY = "confide", "confide-gateway"
_UNKNOWN = 2


@dataclass(frozen=True, kw_only=True)
class User:
    """A user by name and numbers."""

    name: str
    uid: int
    gid: int


def user_named(name: str) -> User:
    """Look a user up.

    Raises:
        ConfideError: ``user.unknown``, or ``user.root`` for root itself.
    """
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfideError(
            "user.unknown",
            f"This machine has no user {name!r:.100}.",
            f"Run: useradd --system --user-group --shell /usr/sbin/nologin {name:.32}",
        ) from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise ConfideError(
            "user.root", f"{name!r:.100} is root, or in root's group.", "Name a user of its own."
        )
    return User(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def become(user: User) -> None:
    """Turn this process of root's into the user's, for good: no group and no way back is kept.

    Raises:
        ConfideError: ``user.change`` if anything of root is left.
    """
    try:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise ConfideError(
            "user.change", f"This process cannot become {user.name!r}: {error.strerror}."
        ) from None
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3 or os.getgroups():
        raise ConfideError("user.change", f"This process did not become {user.name!r} whole.")


def may_read(user: User, path: Path) -> bool:
    """Whether the user may read what is there; nothing, where nothing is."""
    return _may(user, path, os.R_OK)


def may_write(user: User, path: Path) -> bool:
    """Whether the user may write to what is there."""
    return _may(user, path, os.W_OK)


def _may(user: User, path: Path, mode: int) -> bool:
    """Asked of the system by a child that becomes the user, since rights are more than modes."""
    child = os.fork()
    if child == 0:
        status = _UNKNOWN
        try:
            become(user)
            status = int(not os.access(path, mode))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 1):
        raise ConfideError("user.change", f"What {user.name!r} may do cannot be found out.")
    return status == 0
