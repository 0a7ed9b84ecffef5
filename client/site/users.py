"""Users of this machine: the resident and the gateway run as one each, where root starts them.

Nothing is created here; an administrator makes the two users once. What root does by a path in a
folder that another may write to can be turned to any file of the machine by a link that is put
there in between. So root acts by path in its own folders alone (``stranger_at``), and in another's
folder only as that other (``as_user``, ``as_owner_of``).
"""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError

RESIDENT, GATEWAY = "confide", "confide-gateway"
_UNKNOWN = 2
_OTHER_WRITERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40  # one behind the other, as Linux follows


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


def stranger_at(folder: Path) -> Path | None:
    """The first place on the way to a folder, itself included, that somebody besides root may
    change; None where root alone may. In a folder like /tmp, where the system lets nobody touch
    what is another's, what is root's stays so.

    Raises:
        OSError: where the folder is not there.
    """
    # One walk from the root down: what was looked at before is root's, so it is still there.
    return _first_stranger(Path(os.path.abspath(folder)))  # noqa: PTH100 - follows no link


def _first_stranger(path: Path, links: int = 0, *, goes_on: bool = False) -> Path | None:
    for place in (*reversed(path.parents), path):
        found = place.lstat()
        further = goes_on or place != path
        if found.st_uid != 0:
            return place
        if stat.S_ISLNK(found.st_mode):
            if links >= _MOST_LINKS:
                return place
            stranger = _first_stranger(place.parent / place.readlink(), links + 1, goes_on=further)
            if stranger is not None:
                return stranger
        elif found.st_mode & _OTHER_WRITERS and not (further and found.st_mode & stat.S_ISVTX):
            return place
    return None


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Under root: act as whoever owns the folder, and be root again behind it. Anybody else acts
    as before."""
    owner = folder.stat() if os.geteuid() == 0 and folder.is_dir() else None
    if owner is None or owner.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    except OSError as error:
        raise ConfideError(
            "user.change", f"This process cannot act as the owner of {folder}: {error.strerror}."
        ) from None
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def as_user(user: User | None, work: Callable[[], Any]) -> Any:
    """What ``work`` returns (something that JSON can carry), done by a child that becomes the user;
    in this process, where there is none.

    Raises:
        ConfideError: that of ``work``, or ``user.change`` when the child ends without a word.
    """
    if user is None:
        return work()
    back, out = os.pipe()
    child = os.fork()
    if child == 0:
        status = _UNKNOWN
        try:
            os.close(back)
            told = json.dumps(_done_as(user, work)).encode()
            with os.fdopen(out, "wb") as stream:
                stream.write(told)
            status = 0
        finally:
            os._exit(status)
    os.close(out)
    with os.fdopen(back, "rb") as stream:
        told = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise ConfideError("user.change", f"What was asked of {user.name!r} was not done.")
    answer = json.loads(told)
    if "refused" in answer:
        raise ConfideError(*answer["refused"])
    return answer["done"]


def _done_as(user: User, work: Callable[[], Any]) -> dict[str, Any]:
    try:
        become(user)
        return {"done": work()}
    except ConfideError as error:
        return {"refused": [error.code, error.message, error.hint]}
    except Exception as error:  # noqa: BLE001 - the parent has no other way to hear of it
        why = f"What was asked of {user.name!r} was not done: {type(error).__name__}."
        return {"refused": ["user.change", why, ""]}


def may_read(user: User, path: Path) -> bool:
    """Whether the user may read what is there; nothing, where nothing is."""
    return bool(as_user(user, lambda: os.access(path, os.R_OK)))


def may_write(user: User, path: Path) -> bool:
    """Whether the user may write to what is there."""
    return bool(as_user(user, lambda: os.access(path, os.W_OK)))
