"""The resident's manners: one task at a time, a status meanwhile, and it outlives every caller."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from confide.client.app import relay
from confide.client.site import resident as resident_module
from confide.client.site import unix_socket
from confide.client.site.join import status
from confide.client.site.journal import Journal
from confide.client.site.resident import Resident
from confide.client.site.unix_socket import MOST_CALLERS, listen
from confide.client.site.users import as_user, user_named
from confide.common.errors import ConfideError
from confide.common.wire.messages import (
    NO_ADAPTER,
    Refusal,
    Reply,
    TrainRequest,
    Update,
    reply_from_bytes,
    request_from_bytes,
    request_to_bytes,
)

TASK = TrainRequest(run="r", round=1, settings={"round.timeout": 30.0}, **NO_ADAPTER)
TASK = dataclasses.replace(TASK, adapter=b"1234" * 1000)
UPDATE = Update(
    holder="ward",
    run="r",
    round=1,
    task_hash=TASK.hash,
    schema="s",
    encoding="fp32",
    receipt={"head": "h"},
    values=b"0123" * 1000,
)


class Served:
    """A resident in a thread; ``answer`` may be set by the test."""

    def __init__(self, folder: Path, uid: int = -1, gid: int = -1) -> None:
        self.path = folder / "run" / "socket"
        self.answer: Callable[[bytes], Reply] = lambda data: UPDATE
        self.resident = Resident(
            listen(self.path, uid=uid, gid=gid),
            lambda data: self.answer(data),
            lambda: {"name": "ward"},
            Journal("t"),
            lambda: {"unused_records": 7, "left": "epsilon 3 of 10"},
        )
        self.finished: list[bool] = []
        self.thread = threading.Thread(target=lambda: self.finished.append(self.resident.serve()))
        self.thread.start()

    def stop(self) -> bool:
        self.resident.stop()
        self.thread.join(20)
        return self.finished[0]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    if made.thread.is_alive():
        made.stop()


def ask(path: Path, kind: bytes, payload: bytes) -> Reply:
    return reply_from_bytes(unix_socket.ask(path, kind, payload, unix_socket.REPLY, 10))


def in_threads(count: int, work: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_a_task_goes_in_whole_and_its_reply_comes_out_whole(served: Served) -> None:
    seen: list[bytes] = []
    served.answer = lambda data: seen.append(data) or UPDATE
    assert relay(TASK, served.path) == UPDATE
    assert [request_from_bytes(data) for data in seen] == [TASK]


def test_only_the_user_and_the_group_reach_the_socket(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660
    assert stat.S_IMODE(served.path.parent.stat().st_mode) == 0o750


def test_its_own_user_and_root_are_told_what_is_for_this_machine_alone(served: Served) -> None:
    report = status(served.path)
    assert (report["name"], report["unused_records"]) == ("ward", 7)
    assert "left" in report


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_another_user_is_told_no_more_than_the_coordinator_may_know(served: Served) -> None:
    """The gateway's user can connect, and has the network."""
    gateway = user_named("daemon")
    served.path.parent.chmod(0o711)
    os.chown(served.path, -1, gateway.gid)
    with world_reachable(served.path.parent) as path:
        report = as_user(gateway, lambda: status(path / "socket"))
        assert set(status(path / "socket")) - set(report) == {"unused_records", "left"}
    assert report["alive"] is True
    assert report["name"] == "ward"


@contextmanager
def world_reachable(folder: Path) -> Iterator[Path]:
    """A way to a folder below pytest's own, which root alone may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        way = Path(name) / "way"
        way.mkdir(mode=0o755)
        (way / "socket").hardlink_to(folder / "socket")
        yield way


def test_tasks_are_done_one_at_a_time_and_the_status_answers_meanwhile(served: Served) -> None:
    at_work, most = [], []
    go_on = threading.Event()

    def slow(data: bytes) -> Reply:
        at_work.append(1)
        most.append(len(at_work))
        go_on.wait(10)
        at_work.pop()
        return UPDATE

    served.answer = slow
    threads = in_threads(4, lambda: relay(TASK, served.path))
    while not most:
        time.sleep(0.01)
    report = status(served.path)
    assert (report["busy"], report["updates"], report["alive"]) == (True, 0, True)
    go_on.set()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert status(served.path)["updates"] == 4


def test_more_callers_than_there_is_room_for_are_turned_away_and_do_no_harm(
    served: Served,
) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CALLERS):
            stack.enter_context(unix_socket.connect(served.path, 5))
        time.sleep(0.3)
        with unix_socket.connect(served.path, 5) as one_more:
            assert one_more.recv(1) == b""
    time.sleep(0.3)
    assert relay(TASK, served.path) == UPDATE


def test_a_stop_waits_for_the_task_in_hand(served: Served) -> None:
    begun, go_on, replies = threading.Event(), threading.Event(), []

    def slow(data: bytes) -> Reply:
        begun.set()
        go_on.wait(10)
        return UPDATE

    served.answer = slow
    threads = in_threads(1, lambda: replies.append(relay(TASK, served.path)))
    begun.wait(10)
    served.resident.stop()
    threading.Timer(0.5, go_on.set).start()
    assert served.stop()
    threads[0].join()
    assert replies == [UPDATE]
    with pytest.raises(ConfideError, match="Nobody answers"):
        status(served.path)


def test_a_task_that_waits_is_refused_when_a_stop_comes(served: Served) -> None:
    begun, go_on = threading.Event(), threading.Event()
    replies: list[Reply] = []

    def slow(data: bytes) -> Reply:
        begun.set()
        go_on.wait(10)
        return UPDATE

    served.answer = slow
    threads = in_threads(3, lambda: replies.append(relay(TASK, served.path)))
    begun.wait(10)
    time.sleep(0.3)
    served.resident.stop()
    go_on.set()
    for thread in threads:
        thread.join()
    assert replies.count(UPDATE) == 1
    assert {reply.code for reply in replies if isinstance(reply, Refusal)} == {"resident.stopping"}


def test_a_stop_does_not_wait_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "STOP_SECONDS", 0.2)
    begun, go_on = threading.Event(), threading.Event()

    def slow(data: bytes) -> Reply:
        begun.set()
        go_on.wait(10)
        return UPDATE

    served.answer = slow

    call = unix_socket.connect(served.path, 10)
    unix_socket.send(call, unix_socket.TASK, request_to_bytes(TASK))
    begun.wait(10)
    assert not served.stop()
    go_on.set()
    call.close()


def test_whatever_an_answer_raises_ends_that_caller_alone(served: Served) -> None:
    def fail(data: bytes) -> Reply:
        raise RuntimeError("a private sentence")

    served.answer = fail
    with pytest.raises(ConfideError) as caught:
        relay(TASK, served.path)
    assert caught.value.code == "resident.silent"
    served.answer = lambda data: UPDATE
    assert relay(TASK, served.path) == UPDATE


@pytest.mark.parametrize("seed", range(4))
def test_bytes_at_random_are_refused_with_a_code_and_the_resident_lives(
    served: Served, seed: int
) -> None:
    rng = random.Random(seed)
    whole = b"cfd1T" + len(request_to_bytes(TASK)).to_bytes(8, "big") + request_to_bytes(TASK)
    for _ in range(50):
        raw = bytearray(whole[: rng.choice([3, 13, 200, len(whole)])])
        for _ in range(rng.randint(0, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        with unix_socket.connect(served.path, 5) as call:
            try:
                call.sendall(raw)
                call.shutdown(socket.SHUT_WR)
                while call.recv(65536):
                    pass
            except OSError:
                pass  # hung up on, which is an answer too
    assert status(served.path)["alive"]
    assert relay(TASK, served.path) == UPDATE


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (unix_socket.REPLY, b"", "socket.malformed"),
        (unix_socket.REPORT, b"", "socket.malformed"),
        (unix_socket.STATUS, b"more", "socket.malformed"),
    ],
)
def test_other_questions_get_a_refusal(
    served: Served, kind: bytes, payload: bytes, code: str
) -> None:
    assert ask(served.path, kind, payload) == Refusal(holder="", task_hash="", code=code)


def test_the_claim_of_a_huge_task_costs_nothing(served: Served) -> None:
    with unix_socket.connect(served.path, 5) as call:
        call.sendall(b"cfd1T" + (2**40).to_bytes(8, "big"))
        kind, size = unix_socket.receive_head(call)
        assert kind == unix_socket.REPLY
        reply = reply_from_bytes(unix_socket.receive_body(call, size))
    assert isinstance(reply, Refusal)
    assert reply.code == "socket.too-large"


def test_a_task_that_is_too_large_is_refused_before_it_is_sent_whole(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "MOST_BYTES", 1000)
    large = dataclasses.replace(TASK, adapter=bytes(10_000_000))
    assert relay(large, served.path) == Refusal(holder="", task_hash="", code="socket.too-large")


def test_the_socket_of_a_dead_resident_is_taken_over_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run" / "socket"
    listen(path).close()
    with listen(path), pytest.raises(ConfideError) as caught:
        listen(path)
    assert caught.value.code == "resident.running"
    path.unlink()
    path.write_text("a file of somebody's")
    with pytest.raises(ConfideError, match="something else lies there"):
        listen(path)
    assert path.read_text() == "a file of somebody's"


def test_a_folder_that_everybody_reaches_is_neither_used_nor_changed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfideError, match="others can reach in") as caught:
        listen(tmp_path / "open" / "socket")
    assert caught.value.code == "resident.socket"
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match="at most 107 bytes"):
        listen(tmp_path / ("x" * 120))


def test_who_asked_for_the_status_and_went_away_is_not_worth_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As ``join`` does, whose patience may end while the resident imports its libraries."""
    listener = listen(tmp_path / "run" / "socket")
    for _ in range(3):
        with unix_socket.connect(tmp_path / "run" / "socket", 5) as call:
            unix_socket.send(call, unix_socket.STATUS, b"")
    resident = Resident(listener, lambda data: UPDATE, dict, Journal("t"))
    thread = threading.Thread(target=resident.serve)
    thread.start()
    assert status(tmp_path / "run" / "socket")["alive"]  # asked last, so the others were met
    resident.stop()
    thread.join(20)
    assert capfd.readouterr().err == ""


def test_the_journal_has_a_line_for_each_task_and_no_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served = Served(tmp_path)
    relay(TASK, served.path)
    served.answer = lambda data: Refusal(holder="w", task_hash="t", code="policy.max-delta")
    relay(TASK, served.path)
    served.stop()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["outcome"] for line in lines if line["event"] == "task"] == [
        "update",
        "policy.max-delta",
    ]
    assert status_keys(lines) == set()


def status_keys(lines: list[dict[str, Any]]) -> set[str]:
    known = {"time", "process", "event", "task", "seconds", "outcome", "run", "round", "problem"}
    return {key for line in lines for key in line} - known
