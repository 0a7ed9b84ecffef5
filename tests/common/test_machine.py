"""What a process may use (ray#8983), and a loopback past every proxy (slime#757, verl#1120), of
whichever protocol there is (docker-nginx-unprivileged#35)."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from confide.common.machine import processes as machine
from confide.common.machine.processes import LOOPBACK, past_proxies


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"no_proxy": "intranet.example, 10.0.0.1"},
        {"NO_PROXY": "intranet.example,10.0.0.1"},
        {"no_proxy": "", "NO_PROXY": "intranet.example,,10.0.0.1,"},
    ],
)
def test_whoever_was_reached_without_a_proxy_still_is_and_this_machine_too(
    env: dict[str, str],
) -> None:
    found = past_proxies(env)
    assert found["no_proxy"] == found["NO_PROXY"]
    hosts = found["no_proxy"].split(",")
    assert hosts[-len(LOOPBACK) :] == list(LOOPBACK)
    assert hosts[: -len(LOOPBACK)] == (
        ["intranet.example", "10.0.0.1"] if any(env.values()) else []
    )
    assert "no_grpc_proxy" not in found


@pytest.mark.parametrize(
    ("there", "host"),
    [
        ({"127.0.0.1", "::1"}, "127.0.0.1"),
        ({"127.0.0.1"}, "127.0.0.1"),
        ({"::1"}, "::1"),
        (set(), "127.0.0.1"),
    ],
)
def test_programs_meet_on_the_loopback_that_there_is(
    monkeypatch: pytest.MonkeyPatch, there: set[str], host: str
) -> None:
    monkeypatch.setattr(machine, "can_bind", lambda _, address: address in there)
    assert machine.loopback() == host
    assert machine.at_loopback(99) == {"::1": "[::1]:99"}.get(host, "127.0.0.1:99")


def test_a_free_port_can_be_bound_and_is_none_of_another_machines() -> None:
    with socket.create_server((machine.loopback(), machine.free_ports(1)[0])):
        pass
    assert not machine.can_bind(socket.AF_INET, "203.0.113.7")


def test_grpcs_own_variable_keeps_what_it_says() -> None:
    assert past_proxies({"no_grpc_proxy": "a"})["no_grpc_proxy"] == f"a,{','.join(LOOPBACK)}"


def test_the_processors_that_count_are_those_of_this_process() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    code += "from confide.common.machine.processes import processors; print(processors())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize(
    ("told", "most"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1),
     ("", 64), ("5 0", 64), ("nonsense here", 64)],
)  # fmt: skip
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, most: int
) -> None:
    (tmp_path / "cpu.max").write_text(told)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)))
    assert machine.processors() == most
