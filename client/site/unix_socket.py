"""The resident's Unix socket: where it listens, and one request and one reply over it, each a kind,
a length, and so many bytes.

Whoever starts the resident makes the folder, and keeps it: where root does, for another user, the
folder and all above it stay root's, since what root does by a path in a folder of somebody else it
may do to any file of the machine. So the socket is bound, and given away, where nobody else can put
another file in its place. Nothing that is there already is opened up, taken away or written over,
but the socket of a resident that is no more. Its own user and the gateway's group can reach it.

The bytes are what ``common.wire.messages`` makes of a request or a reply, or the JSON of a status.
Nothing is unpickled. A length is believed only as far as bytes come in, up to ``MOST_BYTES``, and
all of them have to be there within ``MOST_SECONDS``. Imports neither torch nor Flower.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...common.errors import ConfideError
from .users import stranger_at

TASK, REPLY, STATUS, REPORT, WORD = b"T", b"R", b"S", b"J", b"W"
MOST_BYTES = 512 * 2**20  # a float32 adapter of 134 million values
MOST_SECONDS = 120.0

_HEAD = struct.Struct("!4scQ")
_MAGIC = b"cfd1"
_PIECE = 2**20
MOST_CALLERS = 8
_LONGEST_PATH = 107  # bytes; sun_path of unix(7)
_OWN_FOLDER, _ROOTS_FOLDER = 0o750, 0o711  # in root's, the mode of the socket says who may connect
_NOT_THE_SOCKETS = 0o117  # what is left of 0777 is 0660
_NOT_A_FOLDERS = 0o022
_OTHERS, _OTHER_WRITERS = 0o007, 0o022


def connect(path: Path, seconds: float) -> socket.socket:
    """A connection to the resident; it waits ``seconds`` at most for anything.

    Raises:
        ConfideError: ``resident.unreachable``.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(str(path))
    except (OSError, ValueError) as error:
        sock.close()
        raise ConfideError(
            "resident.unreachable",
            f"Nobody answers at {path} ({type(error).__name__}).",
            "Start it with `confide client join`, or wait until it is ready.",
        ) from None
    return sock


def ask(path: Path, kind: bytes, payload: bytes, wanted: bytes, seconds: float) -> bytes:
    """One request and the payload of its reply, waited for ``seconds`` at most.

    Raises:
        ConfideError: ``resident.unreachable``, ``resident.silent`` or ``socket.*``.
    """
    with connect(path, seconds) as sock, suppress(OSError):
        with suppress(OSError):  # a refusal may be there before all is sent
            send(sock, kind, payload)
        try:
            answered, size = receive_head(sock)
            if answered != wanted:
                raise _malformed("the kind of reply that was asked for")
            return receive_body(sock, size)
        except ConfideError as error:
            if error.code != "socket.closed":
                raise
    raise ConfideError(
        "resident.silent",
        f"No answer came from {path} within {seconds:g} s, or it hung up.",
        "The resident's log says what it is doing.",
    )


def send(sock: socket.socket, kind: bytes, payload: bytes) -> None:
    """Write one frame."""
    sock.sendall(_HEAD.pack(_MAGIC, kind, len(payload)))
    if payload:  # sending nothing fails where the other end has answered and gone
        sock.sendall(payload)


def receive_head(sock: socket.socket) -> tuple[bytes, int]:
    """The kind of the frame that comes, and its length in bytes.

    Raises:
        ConfideError: ``socket.malformed``, ``socket.too-large``, ``socket.closed``; OSError for
            what the system says, a timeout among it.
    """
    magic, kind, size = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if magic != _MAGIC or kind not in (TASK, REPLY, STATUS, REPORT, WORD):
        raise _malformed("the beginning of a frame")
    if size > MOST_BYTES:
        raise ConfideError(
            "socket.too-large", f"A frame claims {size} bytes; {MOST_BYTES} are allowed."
        )
    return kind, size


def receive_body(sock: socket.socket, size: int) -> bytes:
    """The ``size`` bytes behind a head; errors as of ``receive_head``, and ``socket.slow``."""
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    deadline = time.monotonic() + MOST_SECONDS
    came = bytearray()
    while len(came) < size:
        if time.monotonic() > deadline:
            raise ConfideError("socket.slow", f"{size} bytes took longer than {MOST_SECONDS:g} s.")
        piece = sock.recv(min(_PIECE, size - len(came)))
        if not piece:
            raise ConfideError("socket.closed", f"{len(came)} of {size} bytes came.")
        came += piece
    return bytes(came)


def _malformed(wanted: str) -> ConfideError:
    return ConfideError("socket.malformed", f"What came is not {wanted}.")


def listen(path: Path, *, uid: int = -1, gid: int = -1) -> socket.socket:
    """A socket of mode 0660, given to the user and the group: in a folder of mode 0750 of one's
    own or, where root gives it to another user, in one of root's.

    Raises:
        ConfideError: ``resident.socket`` when the path cannot be used, ``resident.running`` when
            somebody answers there already.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _unusable(path, f"a socket's path has at most {_LONGEST_PATH} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_folder(path.parent, gid, for_another=uid != -1)
        _clear(path)
        with _masked(_NOT_THE_SOCKETS):
            listener.bind(str(path))
        os.chown(path, uid, gid, follow_symlinks=False)
        listener.listen(MOST_CALLERS)
    except OSError as error:
        listener.close()
        raise _unusable(path, error.strerror or type(error).__name__) from None
    except ConfideError:
        listener.close()
        raise
    return listener


def _make_folder(folder: Path, gid: int, *, for_another: bool) -> None:
    """A folder that nobody else may write to; one that is there already is only looked at."""
    _check_way(folder)
    try:
        with _masked(_NOT_A_FOLDERS):
            folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        mode = folder.stat().st_mode & 0o777
        # The socket of root's folder is not reached by who may reach the folder.
        if mode & (_OTHER_WRITERS if for_another else _OTHER_WRITERS | _OTHERS):
            raise _unusable(folder, f"others can reach in (mode {mode:04o})") from None
    else:
        if not for_another:
            os.chown(folder, -1, gid)
        folder.chmod(_ROOTS_FOLDER if for_another else _OWN_FOLDER)


def _check_way(folder: Path) -> None:
    """Root acts by a path only where every step of it is root's, and so stays as it was found."""
    if os.geteuid() != 0:
        return
    there = next(place for place in (folder, *folder.parents) if place.exists())
    stranger = stranger_at(there)
    if stranger is not None:
        raise _unusable(folder, f"root makes it, and others may change {stranger}")


@contextmanager
def _masked(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _clear(path: Path) -> None:
    """Take away the socket of a resident that is no more."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _unusable(path, "something else lies there")
        try:
            connect(path, 1.0).close()
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
