"""A server that is killed leaves nothing behind, and the next one takes up where it was."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from confide.server.deploy import provision as work
from confide.server.deploy.federation import Federation, load_federation
from confide.server.deploy.status import collect
from tests.deployment.running import free_ports, needs_nginx, said_by, server, wait_for

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(600)]


def test_after_kill_9_no_child_is_left_and_a_new_server_knows_the_same_nodes(
    tmp_path: Path,
) -> None:
    port, inner = free_ports(2)
    fed = work.provision(
        tmp_path / "fed", holders=1, host="localhost", port=port, superlink_port=inner
    )
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
