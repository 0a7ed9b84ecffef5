"""The network is taken away by the kernel: each lock alone, both, and neither. In processes of
their own, since none of it can be undone."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TRY = """
import json, socket, sys
from confide.client.site import isolation
from confide.common.errors import ConfideError
for name in sys.argv[2:]:
    setattr(isolation, name, lambda: False)

def outcome(family, kind, address):
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(2)
            sock.connect(address)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"x")
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
    return "connected"

def everywhere():
    port = int(sys.argv[1])
    return [
        outcome(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)),
        outcome(socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
        outcome(socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 443)),
    ]

before, locks, code = everywhere(), [], ""
try:
    locks = isolation.isolate()
except ConfideError as error:
    code = error.code
socket.socketpair()[0].close()
print(json.dumps({"before": before[0], "after": everywhere(), "locks": locks, "code": code}))
"""
NAMESPACE, SECCOMP = "_own_namespace", "_filter_calls"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def tried(listener: socket.socket, *without: str, code: str = TRY) -> dict[str, Any]:
    command = [sys.executable, "-c", code, str(listener.getsockname()[1]), *without]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def locks_of_this_machine() -> set[str]:
    """What it allows, by other people's programs and by what the kernel says."""
    user = () if os.geteuid() == 0 else ("--user",)
    spaces = subprocess.run(["unshare", *user, "--net", "true"], capture_output=True, check=False)
    filters = "Seccomp_filters" in Path("/proc/self/status").read_text()
    known = platform.machine() in ("x86_64", "aarch64")
    allowed = {"namespace": spaces.returncode == 0, "seccomp": filters and known}
    return {name for name, found in allowed.items() if found}


@pytest.mark.parametrize(
    ("without", "locks"),
    [((), ["namespace", "seccomp"]), ((NAMESPACE,), ["seccomp"]), ((SECCOMP,), ["namespace"])],
)
def test_no_connection_gets_out_and_the_system_is_who_refuses(
    listener: socket.socket, without: tuple[str, ...], locks: list[str]
) -> None:
    missing = set(locks) - locks_of_this_machine()
    if missing:
        pytest.skip(f"this machine does not allow {missing}")
    outcome = tried(listener, *without)
    assert outcome["locks"] == locks
    assert outcome["before"] == "connected"
    assert set(outcome["after"]) <= {"PermissionError 1", "OSError 101", "OSError 99"}
    listener.settimeout(0.2)
    listener.accept()[0].close()  # the one from before
    with pytest.raises(TimeoutError):
        listener.accept()


def test_where_neither_lock_holds_the_start_is_refused(listener: socket.socket) -> None:
    outcome = tried(listener, NAMESPACE, SECCOMP)
    assert (outcome["code"], outcome["locks"]) == ("resident.network", [])
    assert outcome["after"][0] == "connected"


def test_a_lock_that_only_says_that_it_holds_is_found_out(listener: socket.socket) -> None:
    lying = TRY.replace("lambda: False", "lambda: True")
    assert tried(listener, NAMESPACE, SECCOMP, code=lying)["code"] == "resident.network"


def test_libraries_are_told_not_to_try(root: Path) -> None:
    code = (
        "import os\nfrom confide.client.site.isolation import isolate\n"
        "isolate(allow_network=True)\n"
        "print(os.environ['HF_HUB_OFFLINE'], os.environ['TRANSFORMERS_OFFLINE'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without privilege")
def test_where_the_maps_of_a_namespace_cannot_be_written_seccomp_is_tried_alone(
    listener: socket.socket, tmp_path: Path
) -> None:
    """As in a container whose /proc is read-only: nothing of the namespace is entered."""
    if "seccomp" not in locks_of_this_machine():
        pytest.skip("this machine has no seccomp")
    code = TRY.replace(
        "before, locks",
        "import os, pathlib\n"
        f"isolation._PROCESS = pathlib.Path({str(tmp_path / 'none')!r})\n"
        "os.setgroups([]); os.setresgid(1, 1, 1); os.setresuid(1, 1, 1)\n"
        "before, locks",
    )
    outcome = tried(listener, code=code + "assert os.geteuid() == 1\n")
    assert (outcome["code"], outcome["locks"]) == ("", ["seccomp"])
    outcome = tried(listener, SECCOMP, code=code)
    assert (outcome["code"], outcome["locks"]) == ("resident.network", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without privilege")
def test_a_user_without_privilege_gets_a_namespace_and_stays_who_it_is(
    listener: socket.socket,
) -> None:
    spaces = subprocess.run(
        ["setpriv", "--reuid=1", "--regid=1", "--clear-groups", "unshare", "-Un", "true"],
        capture_output=True,
        check=False,
    )
    if spaces.returncode:
        pytest.skip("this machine has no user namespaces")
    code = TRY.replace(
        "before, locks",
        "import ctypes, os\nos.setgroups([]); os.setresgid(1, 1, 1); os.setresuid(1, 1, 1)\n"
        "ctypes.CDLL(None).prctl(4, 1)  # dumpable, as after its own start\nbefore, locks",
    )
    outcome = tried(listener, SECCOMP, code=code + "assert os.getresuid() == (1, 1, 1)\n")
    assert (outcome["code"], outcome["locks"]) == ("", ["namespace"])
