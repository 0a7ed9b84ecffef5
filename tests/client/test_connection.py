"""What the gateway tells of the connection: codes alone, counted by the resident (F18)."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from confide.client.site import connection as module
from confide.client.site import supernode, unix_socket
from confide.client.site.connection import (
    CONNECTED,
    ENDED,
    MEANINGS,
    SILENT,
    SILENT_SECONDS,
    STOPPED,
    Connection,
    Teller,
    in_words,
)
from confide.client.site.join import status
from confide.client.site.journal import Journal
from confide.client.site.resident import Resident
from confide.client.site.unix_socket import listen
from confide.common.errors import ConfideError
from confide.common.wire.messages import Refusal
from confide.server.deploy.keys import write_ca, write_door_certificate

FLEET = "/v1/fleet/pull-messages"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_since_when_counts_from_the_turn_and_not_from_the_newest_reason() -> None:
    clock = Clock()
    heard = Connection(clock)
    assert (heard.report()["connected"], heard.report()["code"]) == (False, SILENT)
    clock.now += 100
    heard.hear(b"connected")
    turned = heard.report()
    assert turned["connected"]
    for reason in (b"connection.no-answer", b"connection.key", b"gateway.ended"):
        clock.now += 50
        heard.hear(reason)
        assert heard.report()["code"] == reason.decode()
    assert abs(time.time() - heard.report()["since"] - 100) < 5, "not connected for 100 seconds"


def test_who_said_that_all_is_well_and_then_nothing_is_silent_since_then() -> None:
    clock = Clock()
    heard = Connection(clock)
    heard.hear(b"connected")
    clock.now += SILENT_SECONDS + 60
    told = heard.report()
    assert (told["connected"], told["code"]) == (False, SILENT)
    assert abs(time.time() - told["since"] - SILENT_SECONDS - 60) < 5
    heard.hear(b"connected")
    assert heard.report()["connected"]
    assert time.time() - heard.report()["since"] < 5
    heard.hear(b"connection.key")
    clock.now += 10 * SILENT_SECONDS
    assert heard.report()["code"] == "connection.key", "the newest reason stays"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """The socket of a resident that answers no task."""
    path = tmp_path / "run" / "socket"
    refusal = Refusal(holder="ward", task_hash="", code="policy.rounds")
    resident = Resident(listen(path), lambda _: refusal, lambda: {"name": "ward"}, Journal("t"))
    thread = threading.Thread(target=resident.serve)
    thread.start()
    yield path
    resident.stop()
    thread.join(20)


def word(path: Path, payload: bytes) -> None:
    with unix_socket.connect(path, 5) as sock, suppress(ConnectionError):
        unix_socket.send(sock, unix_socket.WORD, payload)
        sock.recv(100)  # until it hung up, or refused


@pytest.mark.parametrize(
    "hostile",
    [b"", b"connected\n", b"CONNECTED", b"\x1b[31mred", b"\xff" * 8, b"connected" * 100, b"kit."],
)
def test_nothing_of_a_hostile_word_is_kept(served: Path, hostile: bytes) -> None:
    word(served, b"connection.key")
    before = status(served)["connection"]
    word(served, hostile)
    assert status(served)["connection"] == before


def test_what_the_gateway_tells_is_in_the_status_and_is_its_exit_status(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from confide.client.commands.join import status as shown

    def ended(**options: bool) -> int:
        try:
            shown(served, **options)
        except typer.Exit as end:
            return end.exit_code
        return 0

    assert ended() == 1, "nobody ever spoke for a gateway"
    teller = Teller(served, Journal("t"))
    teller.tell("connection.key")
    assert ended() == 1
    said = capsys.readouterr().out
    assert "[connection.key]" in said
    assert ", since 20" in said
    assert "client enrol" in said, "what to do"
    assert ended(resident=True) == 0, "a container's resident is well, whoever is connected"
    teller.tell(CONNECTED)
    assert ended() == 0
    assert "connected        yes, since 20" in capsys.readouterr().out
    assert ended(as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["connection"]["connected"] is True


def test_what_is_the_same_is_told_now_and_then_and_a_new_word_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(
        module.unix_socket, "connect", lambda *_: nullcontext(SimpleNamespace(recv=bytes))
    )
    monkeypatch.setattr(module.unix_socket, "send", lambda _, kind, code: told.append(code))
    clock = Clock()
    teller = Teller(tmp_path / "socket", Journal("t"), clock)
    for code in (CONNECTED, CONNECTED, "connection.key"):
        teller.tell(code)
    clock.now += 20
    teller.tell("connection.key")
    assert told == [b"connected", b"connection.key", b"connection.key"]
    teller.ended()
    assert told[-1] == b"connection.key", "the reason stays"
    clock.now += 20
    teller.tell(CONNECTED)
    teller.ended()
    assert told[-1] == ENDED.encode()
    assert {len(code) <= module.LONGEST_WORD for code in MEANINGS} == {True}


def test_a_resident_that_is_not_there_ends_no_gateway(tmp_path: Path) -> None:
    teller = Teller(tmp_path / "nobody", Journal("t"))
    teller.tell(STOPPED)
    assert teller._told == float("-inf"), "it is told again, at once, to one that comes"


def test_a_resident_that_says_nothing_of_it_is_not_taken_for_connected() -> None:
    for odd in (None, {}, {"connected": "yes"}, {"connected": True, "code": 7}, "connected"):
        connected, lines = in_words(odd)
        assert connected is (isinstance(odd, dict) and odd.get("connected") is True)
        assert lines


# What calls meet, over real sockets.


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ``supernode`` tells of the calls of this test."""
    monkeypatch.setattr(httpx.Client, "send", httpx.Client.send)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    heard: list[str] = []
    supernode.tell_of_calls(heard.append)
    return heard


@contextmanager
def a_door(answer: int, folder: Path, *, date: str = "") -> Iterator[str]:
    """A server with a certificate for localhost, whose CA is in the folder; answers this."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response_only(answer)
            self.send_header("Date", date or formatdate(usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    write_ca(folder / "ca.key", folder / "ca.crt", "t")
    write_door_certificate(
        folder / "s.key",
        folder / "s.crt",
        ca_key=folder / "ca.key",
        ca_certificate=folder / "ca.crt",
        host="localhost",
    )
    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "s.crt", folder / "s.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def call(url: str, ca: Path | None) -> None:
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if ca else True
    with httpx.Client(verify=verify, timeout=5) as client:
        try:
            client.post(url)
        except httpx.TransportError:
            pass


@pytest.mark.parametrize(
    ("answer", "path", "date", "code"),
    [
        (200, FLEET, "", CONNECTED),
        (403, "/v1/fleet/get-run", "", CONNECTED),  # a run that is over
        (403, "/v1/fleet/activate-node", "", "connection.coordinator"),
        (502, FLEET, "", "connection.coordinator"),  # a door without its SuperLink
        (401, FLEET, "", "connection.key"),
        (401, FLEET, "Wed, 01 Jan 2020 00:00:00 GMT", "connection.clock"),
        (401, FLEET, "yesterday", "connection.key"),
    ],
)
def test_what_the_coordinator_answers(
    told: list[str], tmp_path: Path, answer: int, path: str, date: str, code: str
) -> None:
    with a_door(answer, tmp_path, date=date) as url:
        call(url + path, tmp_path / "ca.crt")
    assert told == [code]


def test_a_certificate_of_another_ca_is_named(told: list[str], tmp_path: Path) -> None:
    write_ca(tmp_path / "other.key", tmp_path / "other.crt", "t")
    with a_door(200, tmp_path) as url:
        call(url + FLEET, tmp_path / "other.crt")
    assert told == ["connection.certificate"]


def test_nobody_no_name_and_a_dead_proxy_are_told_apart(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
    call(f"https://{dead}", None)
    call("https://no-such-host.invalid:8443", None)
    monkeypatch.setenv("https_proxy", f"http://{dead}")
    call("https://fleet.example.org:8443", None)
    monkeypatch.setenv("no_proxy", dead.partition(":")[0])
    call(f"https://{dead}", None)
    assert told == [
        "connection.no-answer",
        "connection.name",
        "connection.proxy",
        "connection.no-answer",
    ]


def test_a_server_that_hangs_up_is_not_blamed_for_its_certificate(told: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        call(f"https://127.0.0.1:{listener.getsockname()[1]}", None)
        thread.join()
    assert told == ["connection.no-answer"]


def test_the_words_come_through_the_pipe_of_the_gateway_and_none_is_waited_for() -> None:
    from confide.client.site.gateway import _pass_on

    words, theirs = os.pipe()
    os.set_blocking(words, False)
    write: Callable[[str], None] = supernode._writer(theirs)
    heard: list[str] = []
    teller = type("T", (), {"tell": lambda _, code: heard.append(code)})()
    _pass_on(words, teller)
    for _ in range(20_000):  # more than a pipe holds
        write("connection.key")
    _pass_on(words, teller)
    write(CONNECTED)
    _pass_on(words, teller)
    assert heard == ["connection.key", CONNECTED]
    assert not os.get_inheritable(theirs)
    os.close(theirs)
    _pass_on(words, teller)
    os.close(words)


def test_every_word_has_a_meaning() -> None:
    for code in ("kit.expired", *(c for c in MEANINGS if c != CONNECTED)):
        said, hint = MEANINGS[code]
        assert said.endswith(".")
        assert hint.endswith(".")
    with pytest.raises(ConfideError):
        Connection().hear(b"kit.unheard-of")
