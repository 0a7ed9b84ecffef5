"""A server that is killed leaves nothing behind, and the next one takes up where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from confide.common.errors import ConfideError
from confide.server.deploy import provision as work
from confide.server.deploy.federation import Federation, load_federation
from confide.server.deploy.status import collect
from confide.server.deploy.supervisor import Supervisor
from tests.deployment.running import free_ports, needs_nginx, said_by, server, wait_for

pytestmark = pytest.mark.timeout(600)
ONLY_IPV6 = [
    *("unshare", "-n", "sh", "-c"),
    'ip link set lo up && ip addr del 127.0.0.1/8 dev lo && exec "$@"',
    "sh",
]


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    port, inner = free_ports(2)
    return work.provision(
        tmp_path / "fed", holders=1, host="localhost", port=port, superlink_port=inner
    )


def test_the_last_words_of_what_ended_are_told_and_none_of_an_earlier_life(
    fed: Federation,
) -> None:
    told: list[dict[str, object]] = []
    supervisor = Supervisor(fed, told.append)
    (fed.logs / "door.log").write_text("error of last year\n")
    words = "echo '\u2502 bind() failed: in use \u2502'; echo '\u2570\u2500\u2500\u256f'; exit 3"
    supervisor._begin("door", ["sh", "-c", words])
    process = supervisor._children[0].process
    assert process is not None
    process.wait()
    supervisor._revive()
    ended = [row for row in told if row["event"] == "ended"]
    assert [(row["status"], row["said"]) for row in ended] == [(3, "bind() failed: in use")]
    with pytest.raises(ConfideError) as caught:
        supervisor._await(fed.port)
    assert caught.value.message == "door did not start. Its last words: bind() failed: in use"


@needs_nginx
@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run([*ONLY_IPV6, "true"], check=False).returncode != 0,
    reason="only root makes a network without IPv4",
)
def test_a_coordinator_without_ipv4_is_well(fed: Federation) -> None:
    """docker-nginx-unprivileged#35's kind, the other way round."""
    with server(fed.folder, ONLY_IPV6) as process:
        inside = ["nsenter", "-n", "-t", str(process.pid)]
        words = [sys.executable, "-m", "confide", "server", "status", str(fed.folder)]
        done = subprocess.run([*inside, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "never-seen" in done.stdout


@needs_nginx
@pytest.mark.slow
def test_after_kill_9_no_child_is_left_and_a_new_server_knows_the_same_nodes(
    fed: Federation,
) -> None:
    with server(fed.folder) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4  # SuperLink, SuperExec, the door and its worker
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
        assert collect(fed).trouble == ("server.down", "door.closed")
    registered = rows(fed, "registered")
    with server(fed.folder):
        wait_for(lambda: said_by(fed.folder).count("open") == 2)
        assert rows(fed, "registered") == registered, "no key was registered anew"
        assert rows(fed, "shut-out") == []
        # Flower takes a key once: to undo a revocation by hand is told, and ends nothing.
        changed = work.revoke(load_federation(fed.folder), "holder-1")
        wait_for(lambda: "shut-out" in said_by(fed.folder))
        changed.with_holder(fed.holders["holder-1"]).save()
        wait_for(lambda: "not-registered" in said_by(fed.folder))
    (told,) = rows(fed, "not-registered")
    assert (told["holder"], told["code"]) == ("holder-1", "federation.key-used")


def rows(fed: Federation, event: str) -> list[dict[str, object]]:
    lines = (fed.logs / "server.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["event"] == event]
