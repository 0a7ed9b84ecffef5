"""The resident as it is deployed: a process without a network, over five hundred markers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.client.holder import Holder
from confide.client.site import unix_socket
from confide.client.site.join import status
from confide.common.machine.installed import code_hash
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import Refusal, Update, reply_to_bytes, request_to_bytes
from tests.client.marked import MARKER, PLACE_MARKER
from tests.deployment.conftest import ROOT
from tests.deployment.house import House


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"), tiny_model)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_without_its_ledger_nothing_is_served(house: House, tmp_path: Path) -> None:
    """It would forget what was spent; none is made in its place."""
    nowhere = tmp_path / "mistyped.sqlite"
    command = house.command("--ledger", str(nowhere), "--socket", str(tmp_path / "run" / "socket"))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 1
    assert "[ledger.missing]" in done.stderr
    assert not nowhere.exists()


def test_a_run_is_denied_and_allowed_by_the_administrator_beside_the_running_resident(
    house: House,
) -> None:
    command = [sys.executable, "-m", "confide", "client"]
    denied = subprocess.run([*command, "deny", str(house.socket), "run-9"], check=False)
    assert denied.returncode == 0
    refused = house.ask(house.place.task(run="run-9"))
    assert getattr(refused, "code", "") == "policy.run-denied"
    said = subprocess.run(
        [*command, "runs", str(house.socket), "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(said.stdout)
    (row,) = [row for row in told["runs"] if row["run"] == "run-9"]
    assert (row["said"], row["spent"]) == ("denied", 0.0)
    assert "is left" in told["left"][0]
    subprocess.run([*command, "allow", str(house.socket), "run-9"], check=True)
    assert isinstance(house.ask(house.place.task(run="run-9")), Update)


def test_the_status_says_that_the_network_was_taken_away(house: House) -> None:
    report = status(house.socket)
    assert report["alive"]
    assert report["name"] == "ward"
    assert report["network_taken_by"]
    assert house.process is not None
    if "namespace" in report["network_taken_by"]:
        ours, theirs = (
            Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", house.process.pid)
        )
        assert ours != theirs


def test_through_the_socket_come_the_bytes_that_the_holder_itself_gives(house: House) -> None:
    task = house.place.task()
    reply = house.ask(task)
    assert isinstance(reply, Update)
    itself = Holder(dataclasses.replace(house.place.site, name="ward"))
    assert reply_to_bytes(itself.handle(task)) == reply_to_bytes(reply)
    assert house.ask(task) == reply


def test_the_status_tells_what_was_spent_and_not_how_much_text_there_is(house: House) -> None:
    house.ask(house.place.task(run="run-2"))
    report = status(house.socket)
    assert report["model_loaded"]
    assert report["ledger"]["charged"] == report["ledger"]["released"] >= 1
    assert report["code"] == code_hash()
    assert report["left"][0].startswith("epsilon ")
    assert "of 1000 is left" in report["left"][0]
    assert report["unused_records"] == 0
    assert report["ledger_file"] == str(house.place.site.ledger)
    with Ledger.open(house.place.site.ledger, create=False) as ledger:
        assert ledger.entries()[-2].payload["bundle"] == code_hash()
    assert "170" not in str(report)


def test_a_changed_policy_counts_from_the_next_task(house: House) -> None:
    before = house.policy.read_text()
    house.policy.write_text("max-epsilon = 0.1\n")
    reply = house.ask(house.place.task(run="run-3"))
    assert (reply.holder, getattr(reply, "code", "")) == ("ward", "policy.max-delta")
    house.policy.write_text("no limit = 1\n")
    assert house.ask(house.place.task(run="run-3")) == Refusal(
        holder="ward", task_hash="", code="policy.format"
    )
    house.policy.write_text(before)


def test_hostile_bytes_are_answered_with_codes_and_nothing_of_the_text_comes_out(
    house: House,
) -> None:
    rng = random.Random(7)
    task = request_to_bytes(house.place.task(run="run-4", number=2))
    came = b""
    for _ in range(150):
        body = bytearray(task)
        for _ in range(rng.randint(1, 5)):
            body[rng.randrange(min(len(body), 900))] = rng.randrange(256)
        body = body[: rng.choice([len(body), len(body) // 2, 40])]
        came += house.raw(b"cfd1T" + len(body).to_bytes(8, "big") + bytes(body))
    assert came.count(b'"kind": "refusal"') > 100
    assert PLACE_MARKER.search(came) is None
    assert status(house.socket)["alive"]


def test_the_log_is_lines_of_json_without_a_marker_of_the_text(house: House) -> None:
    assert {event["event"] for event in house.events()} >= {"start", "ready", "task"}
    lines = [line for line in house.log.read_bytes().splitlines() if b'"event": "log"' not in line]
    assert PLACE_MARKER.search(b"\n".join(lines)) is None
    assert MARKER.search(house.log.read_bytes()) is None  # our own messages may name a file


def test_killed_in_mid_round_and_started_again_it_has_charged_once(house: House) -> None:
    task = house.place.task(run="run-5")
    before = house.place.charges()
    with unix_socket.connect(house.socket, 30) as call:
        unix_socket.send(call, unix_socket.TASK, request_to_bytes(task))
        deadline = time.monotonic() + 30
        while house.place.charges() == before and time.monotonic() < deadline:
            time.sleep(0.002)
        house.stop(signal.SIGKILL)
    house.start()
    reply = house.ask(task)
    assert isinstance(reply, Update) or reply.code == "ledger.task-spent"
    assert house.place.charges() == before + 1


def test_the_change_is_that_of_the_holder_itself_where_nothing_is_random(house: House) -> None:
    """A run without noise in which every record is drawn; it spends the whole budget."""
    bare = house.place.hostile(privacy__trust="off", train__batch=256)
    other = House(house.socket.parent.parent / "other", house.place.model)
    replies = [house.ask(bare), Holder(other.place.site).handle(bare)]
    assert all(isinstance(reply, Update) for reply in replies)
    assert replies[0].values == replies[1].values


def test_asked_to_stop_it_ends_well_and_its_socket_is_dead(house: House) -> None:
    assert house.stop() == 0
    with socket.socket(socket.AF_UNIX) as call, pytest.raises(ConnectionRefusedError):
        call.connect(str(house.socket))
    assert house.events()[-1]["event"] == "stop"
