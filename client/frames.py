"""One request, one reply on the resident's Unix socket: a kind, a length, and so many bytes.

The bytes are what ``common.wire`` makes of a task or a reply, or the JSON of a status. Nothing is
unpickled. A length is believed only as far as bytes come in, up to ``MOST_BYTES``, and all of them
have to be there within ``MOST_SECONDS``. Imports neither torch nor Flower.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from ..common.errors import ConfideError

TASK, REPLY, STATUS, REPORT, WORD = b"T", b"R", b"S", b"J", b"W"
MOST_BYTES = 512 * 2**20  # a float32 adapter of 134 million values
MOST_SECONDS = 120.0

_HEAD = struct.Struct("!4scQ")
_MAGIC = b"cfd1"
_PIECE = 2**20


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
