"""The door and the server behind it, as ``confide server start`` runs them: who gets in.

One server for the whole file; it is started from the folder that ``provision`` makes.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from confide.common.errors import ConfideError
from confide.server.deploy import provision as work
from confide.server.deploy.door import CALLS
from confide.server.deploy.federation import Federation, load_federation
from confide.server.deploy.keys import write_ca
from confide.server.deploy.members import members
from confide.server.deploy.status import check_door
from tests.deployment import door
from tests.deployment.running import free_ports, needs_nginx, said_by, server, wait_for

pytestmark = [needs_nginx, pytest.mark.timeout(600)]

FORBIDDEN, UNAUTHORIZED, OK = 403, 401, 200


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three holders and a running server; holder-3 is revoked by a test at the end."""
    port, inner = free_ports(2)
    folder = tmp_path_factory.mktemp("door") / "fed"
    made = work.provision(folder, holders=3, host="localhost", port=port, superlink_port=inner)
    with server(folder) as process:
        yield made
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode == 0
    assert said_by(folder)[-3:] == ["stopped"] * 3
    for left in (port, inner):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", left)) != 0, "something still listens"


def node_of(fed: Federation, name: str) -> int:
    return next(member.node for member in members(fed) if member.name == name)


def test_a_registered_key_gets_in_and_finds_no_task(fed: Federation) -> None:
    key = door.key_of(fed.kit("holder-1"))
    status, body = door.call(
        fed.port, fed.ca, "/v1/fleet/activate-node", door.activate(key), door.signed(key)
    )
    assert status == OK
    node = ActivateNodeResponse.FromString(body).node_id
    assert node == node_of(fed, "holder-1")
    status, body = door.call(
        fed.port, fed.ca, "/v1/fleet/pull-messages", door.pull(node), door.signed(key)
    )
    assert (status, len(PullMessagesResponse.FromString(body).messages_list)) == (OK, 0)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/activate-node/",
        "/v1/fleet/activate-node/../../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "//v1/control/start-run",
        "/v1/fleet/pull-messages;/../../control/start-run",
        "/V1/control/start-run",
        "/flwr.proto.Control/StartRun",
    ],
)
def test_no_other_path_leads_through_the_door(fed: Federation, path: str) -> None:
    """With a registered holder's signature, too: what it may do is the calls of a holder."""
    key = door.key_of(fed.kit("holder-1"))
    status, _ = door.call(fed.port, fed.ca, path, StartRunRequest(), door.signed(key))
    assert status in (FORBIDDEN, 400), path


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_passed_on_as_it_is_named_whatever_the_path_looked_like(
    fed: Federation, call: str
) -> None:
    """Behind the door the SuperLink would take the raw path for another call, or for none."""
    for path in (f"/v1/fleet/{call}", f"/v1/control/../fleet/{call}", f"/v1/fleet/{call}?a=b"):
        status, _ = door.call(fed.port, fed.ca, path)
        assert status == UNAUTHORIZED, "it reached that call of the SuperLink, which wants a key"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_only_posts_are_passed_on(fed: Federation, method: str) -> None:
    status, _ = door.call(fed.port, fed.ca, "/v1/fleet/activate-node", method=method)
    # nginx itself answers a TRACE; behind the door the SuperLink would say 405 to all of them.
    assert status == (405 if method == "TRACE" else FORBIDDEN)


def test_with_the_ca_certificate_alone_nobody_registers_or_takes_a_task(fed: Federation) -> None:
    stranger = door.new_key()
    key = door.public_bytes(stranger)
    attempts = [
        ("register-node", RegisterNodeFleetRequest(public_key=key), FORBIDDEN),
        ("activate-node", door.activate(stranger), None),
        ("pull-messages", door.pull(node_of(fed, "holder-1")), UNAUTHORIZED),
    ]
    for call, message, wanted in attempts:
        for headers in ({}, door.signed(stranger)):
            status, _ = door.call(fed.port, fed.ca, f"/v1/fleet/{call}", message, headers)
            assert status == wanted or (wanted is None and status >= 400), (call, status)


def test_registering_is_also_refused_behind_the_door(fed: Federation) -> None:
    stranger = door.new_key()
    message = RegisterNodeFleetRequest(public_key=door.public_bytes(stranger))
    path = "/v1/fleet/register-node"
    status, _ = door.call(fed.superlink_port, fed.ca, path, message, door.signed(stranger))
    assert status >= 400


def test_a_starter_of_apps_without_the_secret_gets_no_task(fed: Federation) -> None:
    """On the coordinator's own machine, past the door."""
    path = "/v1/runtime/acquire-task"
    status, _ = door.call(fed.superlink_port, fed.ca, path, AcquireTaskRequest())
    assert status in (UNAUTHORIZED, FORBIDDEN)


def test_the_superlink_listens_on_the_loopback_alone(fed: Federation) -> None:
    listening = {
        c.laddr.ip
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == fed.superlink_port
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(lambda key: door.signed(key, age=timedelta(minutes=6)), id="stale"),
        pytest.param(lambda key: door.signed(key, age=timedelta(minutes=-1)), id="future"),
        pytest.param(lambda key: door.signed(key, by=door.new_key()), id="other-signer"),
        pytest.param(lambda key: door.signed(door.new_key()), id="other-key"),
        pytest.param(lambda key: {**door.signed(key), "flwr-timestamp": "now"}, id="no-time"),
        pytest.param(lambda key: {}, id="none"),
    ],
)
def test_a_holder_that_cannot_prove_itself_now_is_refused(fed: Federation, headers) -> None:  # type: ignore[no-untyped-def]
    key = door.key_of(fed.kit("holder-1"))
    message = door.pull(node_of(fed, "holder-1"))
    status, _ = door.call(fed.port, fed.ca, "/v1/fleet/pull-messages", message, headers(key))
    assert status == UNAUTHORIZED


def test_a_holder_cannot_take_anothers_tasks(fed: Federation) -> None:
    key = door.key_of(fed.kit("holder-1"))
    message = door.pull(node_of(fed, "holder-2"))
    status, _ = door.call(fed.port, fed.ca, "/v1/fleet/pull-messages", message, door.signed(key))
    assert status == UNAUTHORIZED


def test_a_holder_refuses_a_coordinator_under_another_ca(fed: Federation, tmp_path: Path) -> None:
    write_ca(tmp_path / "ca.key", tmp_path / "ca.crt", fed.name)
    with pytest.raises(ssl.SSLCertVerificationError):
        door.call(fed.port, tmp_path / "ca.crt", "/v1/fleet/activate-node")


def test_the_door_speaks_no_plain_http(fed: Federation) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", fed.port, timeout=10)
    plain.request("POST", "/v1/fleet/activate-node")
    assert plain.getresponse().status == 400


def test_a_body_larger_than_a_piece_of_an_array_is_refused(fed: Federation) -> None:
    status, _ = door.call(fed.port, fed.ca, "/v1/fleet/push-object", size=17 << 20)
    assert status == 413
    status, _ = door.call(fed.port, fed.ca, "/v1/fleet/push-object", b"\0" * (6 << 20))
    assert status != 413, "5 MiB is a piece of an array, and must pass"


def test_the_log_of_the_door_holds_no_key_and_no_body(fed: Federation) -> None:
    key = door.key_of(fed.kit("holder-1"))
    headers = door.signed(key)
    door.call(fed.port, fed.ca, "/v1/fleet/activate-node", door.activate(key), headers)
    log = (fed.logs / "door.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert {"time", "path", "status", "in", "out"} <= rows[-1].keys()
    for value in headers.values():
        assert value not in log


def test_status_tells_who_is_there_and_that_all_is_well(fed: Federation) -> None:
    key = door.key_of(fed.kit("holder-1"))
    door.call(fed.port, fed.ca, "/v1/fleet/activate-node", door.activate(key), door.signed(key))
    command = [sys.executable, "-m", "confide", "server", "status", str(fed.folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert (done.returncode, said["healthy"], said["trouble"]) == (0, True, [])
    states = {holder["name"]: holder["state"] for holder in said["holders"]}
    assert (states["holder-1"], states["holder-2"]) == ("connected", "never-seen")


def test_a_second_server_for_the_same_folder_is_refused(fed: Federation) -> None:
    command = [sys.executable, "-m", "confide", "server", "start", str(fed.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "server.running" in done.stderr


def test_a_door_under_another_certificate_is_not_well(fed: Federation, tmp_path: Path) -> None:
    write_ca(tmp_path / "ca" / "ca.key", tmp_path / "ca" / "ca.crt", "other")
    with pytest.raises(ConfideError) as caught:
        check_door(replace(fed, folder=tmp_path))
    assert caught.value.code == "door.certificate"


def test_a_superlink_without_its_door_is_not_well(fed: Federation) -> None:
    """The check itself can fail: the SuperLink's own port passes control calls on."""
    with pytest.raises(ConfideError) as caught:
        check_door(replace(fed, port=fed.superlink_port))
    assert caught.value.code == "door.open"


def test_a_revoked_holder_is_shut_out_while_the_server_runs_and_an_added_one_let_in(
    fed: Federation,
) -> None:
    key = door.key_of(fed.kit("holder-3"))
    node = node_of(fed, "holder-3")
    assert may_pull(fed, "holder-3")
    changed = work.revoke(load_federation(fed.folder), "holder-3")
    wait_for(lambda: "shut-out" in said_by(fed.folder))
    assert into(fed, key) >= 400
    path, message = "/v1/fleet/pull-messages", door.pull(node)
    assert door.call(fed.port, fed.ca, path, message, door.signed(key))[0] == UNAUTHORIZED
    work.add(changed, "north")
    wait_for(lambda: said_by(fed.folder).count("registered") == 4)
    assert into(fed, door.key_of(fed.kit("north"))) == OK
    assert may_pull(fed, "holder-1"), "nobody else is touched"


def into(fed: Federation, key) -> int:  # type: ignore[no-untyped-def]
    path = "/v1/fleet/activate-node"
    return door.call(fed.port, fed.ca, path, door.activate(key), door.signed(key))[0]


def may_pull(fed: Federation, name: str) -> bool:
    key, message = door.key_of(fed.kit(name)), door.pull(node_of(fed, name))
    return (
        door.call(fed.port, fed.ca, "/v1/fleet/pull-messages", message, door.signed(key))[0] == OK
    )


def test_a_superlink_that_dies_comes_back_and_knows_who_was_let_in(fed: Federation) -> None:
    before = said_by(fed.folder).count("started")
    rows = [json.loads(line) for line in (fed.logs / "server.jsonl").read_text().splitlines()]
    superlink = next(r for r in rows if r["event"] == "started" and r["process"] == "superlink")
    psutil.Process(superlink["pid"]).kill()
    wait_for(lambda: said_by(fed.folder).count("started") >= before + 2)  # and the starter of apps

    wait_for(lambda: may_pull(fed, "holder-1"))
    assert into(fed, door.new_key()) >= 400
