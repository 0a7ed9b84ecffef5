"""What this machine lets a process have: processors, and its own programs at the loopback, past
every proxy."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Programs disagree on the case of these names, and gRPC has one of its own.
PROXIES = (
    "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY",
    "grpc_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy",
)  # fmt: skip


_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "max 100000", or microseconds of a period


def processors() -> int:
    """How many processors this process may use, which may be fewer than the machine has: by its
    affinity (sched_setaffinity(2)) and the quota of its cgroup (cgroups(7)); at least one."""
    usable = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(usable, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return usable  # no quota, or another kind of group


def loopback() -> str:
    """The address at which programs of this machine meet: 127.0.0.1, or ::1 where that alone is. No
    name is used, since a name's address is what the machine's files say."""
    only_six = can_bind(socket.AF_INET6, "::1") and not can_bind(socket.AF_INET, "127.0.0.1")
    return "::1" if only_six else "127.0.0.1"


def at_loopback(port: int) -> str:
    """``host:port`` there, as it is written in an address."""
    host = loopback()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_ports(count: int, host: str = "") -> list[int]:
    """Different ports that nobody has, at the loopback unless a host is named."""
    at = host or loopback()
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    sockets = [socket.create_server((at, 0), family=family) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def answers(port: int, host: str = "") -> bool:
    """Whether somebody listens there, at the loopback unless a host is named."""
    with suppress(OSError), socket.create_connection((host or loopback(), port), 1.0):
        return True
    return False


def can_bind(family: socket.AddressFamily, address: str) -> bool:
    """Whether one may listen at an address: a machine may have either protocol switched off."""
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def past_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that say who is reached without a proxy: whoever was, in either case of their
    name, and this machine."""
    named = [env.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    known = [host.strip() for text in named for host in text.split(",")]
    reached = ",".join(dict.fromkeys([*filter(None, known), *LOOPBACK]))
    found = {"no_proxy": reached, "NO_PROXY": reached}
    if "no_grpc_proxy" in env:  # which gRPC looks at first
        found["no_grpc_proxy"] = ",".join(filter(None, [env["no_grpc_proxy"], reached]))
    return found
