"""A server that is killed leaves nothing behind, and the next one takes up where it was."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from confide.server.deploy import provision as work
from confide.server.deploy.federation import Federation
from tests.deployment.running import free_ports, needs_nginx, said_by, server, wait_for

pytestmark = [needs_nginx, pytest.mark.timeout(240)]


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
    registered = rows(fed, "registered")
    with server(fed.folder):
        wait_for(lambda: said_by(fed.folder).count("open") == 2)
    assert rows(fed, "registered") == registered, "no key was registered anew"
    assert rows(fed, "shut-out") == []


def rows(fed: Federation, event: str) -> list[dict[str, object]]:
    lines = (fed.logs / "server.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["event"] == event]
