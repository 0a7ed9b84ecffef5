"""Frames on the Unix socket: bounded, timed, and refused when they are none."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from confide.client.site import unix_socket
from confide.common.errors import ConfideError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        for end in (here, there):
            end.settimeout(5)
        yield here, there


def code_of(sock: socket.socket) -> str:
    with pytest.raises(ConfideError) as caught:
        unix_socket.receive_body(sock, unix_socket.receive_head(sock)[1])
    return caught.value.code


def test_a_frame_comes_as_it_went(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    payload = bytes(range(256)) * 5000
    thread = threading.Thread(target=unix_socket.send, args=(here, unix_socket.TASK, payload))
    thread.start()
    kind, size = unix_socket.receive_head(there)
    assert (kind, size) == (unix_socket.TASK, len(payload))
    assert unix_socket.receive_body(there, size) == payload
    thread.join()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n", "socket.malformed"),
        (b"cfd1X" + bytes(8), "socket.malformed"),
        (b"cfd0T" + bytes(8), "socket.malformed"),
        (struct.pack("!4scQ", b"cfd1", b"T", unix_socket.MOST_BYTES + 1), "socket.too-large"),
        (struct.pack("!4scQ", b"cfd1", b"T", 2**64 - 1), "socket.too-large"),
        (struct.pack("!4scQ", b"cfd1", b"T", 100) + b"few", "socket.closed"),
        (b"cfd1", "socket.closed"),
        (b"", "socket.closed"),
    ],
)
def test_what_is_no_frame_is_refused(
    pair: tuple[socket.socket, socket.socket], data: bytes, code: str
) -> None:
    here, there = pair
    here.sendall(data)
    here.close()
    assert code_of(there) == code


def test_a_caller_that_trickles_is_cut_off(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    monkeypatch.setattr(unix_socket, "MOST_SECONDS", 0.2)

    def trickle() -> None:
        here.sendall(struct.pack("!4scQ", b"cfd1", b"T", 100))
        with suppress(OSError):  # the test is over
            for _ in range(20):
                here.sendall(b"x")
                time.sleep(0.05)

    threading.Thread(target=trickle, daemon=True).start()
    assert code_of(there) == "socket.slow"


def test_nobody_behind_a_path_is_said_with_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / ("x" * 200)):
        with pytest.raises(ConfideError, match="Nobody answers") as caught:
            unix_socket.ask(path, unix_socket.STATUS, b"", unix_socket.REPORT, 1)
        assert caught.value.code == "resident.unreachable"
        assert "confide client join" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "resident.silent"),
        (struct.pack("!4scQ", b"cfd1", b"R", 0), "socket.malformed"),
        (struct.pack("!4scQ", b"cfd1", b"J", 9) + b"few", "resident.silent"),
        (struct.pack("!4scQ", b"cfd1", b"J", 2**40), "socket.too-large"),
        (None, "resident.silent"),
    ],
)
def test_a_resident_that_does_not_answer_as_it_should_is_an_error(
    tmp_path: Path, answer: bytes | None, code: str
) -> None:
    def reply(listener: socket.socket) -> None:
        with listener.accept()[0] as caller:
            caller.recv(100)
            if answer is None:
                time.sleep(1)
            else:
                caller.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        thread = threading.Thread(target=reply, args=(listener,))
        thread.start()
        with pytest.raises(ConfideError) as caught:
            unix_socket.ask(tmp_path / "socket", unix_socket.STATUS, b"", unix_socket.REPORT, 0.5)
        thread.join()
    assert caught.value.code == code
