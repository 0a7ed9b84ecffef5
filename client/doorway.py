"""Where the resident listens: a Unix socket that its own user and the gateway's group can reach.

The folder it lies in is the resident's own. Nothing that is there already is opened up, taken away
or written over, but the socket of a resident that is no more.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from ..common.errors import ConfideError
from . import frames

MOST_CALLERS = 8
_LONGEST_PATH = 107  # bytes; sun_path of unix(7)
_FOLDER, _SOCKET, _ANYBODY = 0o750, 0o660, 0o007


def listen(path: Path, *, uid: int = -1, gid: int = -1) -> socket.socket:
    """A socket of mode 0660 in a folder of mode 0750, both given to the user and the group.

    Raises:
        ConfideError: ``resident.socket`` when the path cannot be used, ``resident.running`` when
            somebody answers there already.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _unusable(path, f"a socket's path has at most {_LONGEST_PATH} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_folder(path.parent, uid, gid)
        _clear(path)
        listener.bind(str(path))
        os.chown(path, uid, gid)
        path.chmod(_SOCKET)
        listener.listen(MOST_CALLERS)
    except OSError as error:
        listener.close()
        raise _unusable(path, error.strerror or type(error).__name__) from None
    except ConfideError:
        listener.close()
        raise
    return listener


def _make_folder(folder: Path, uid: int, gid: int) -> None:
    """A folder of the resident's own; one that is there already is only looked at."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        mode = folder.stat().st_mode & 0o777
        if mode & _ANYBODY:
            raise _unusable(folder, f"everybody can reach in (mode {mode:04o})") from None
    else:
        os.chown(folder, uid, gid)
        folder.chmod(_FOLDER)


def _clear(path: Path) -> None:
    """Take away the socket of a resident that is no more."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _unusable(path, "something else lies there")
        try:
            frames.connect(path, 1.0).close()
        except ConfideError:
            path.unlink()
        else:
            raise ConfideError(
                "resident.running", f"A resident answers at {path} already.", "Stop that one first."
            )


def _unusable(path: Path, why: str) -> ConfideError:
    return ConfideError(
        "resident.socket",
        f"{path} cannot be the resident's socket: {why}.",
        "Name a path in a folder that does not exist yet, such as /run/confide/NAME/socket.",
    )
