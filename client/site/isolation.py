"""No network for the process that has the text: taken away by the kernel, then tried.

Two locks, each where the system allows it. A network namespace of the process's own, which has no
interface but a dead loopback (network_namespaces(7), user_namespaces(7) where the process is not
root's). And a filter of system calls under which no socket but a Unix one can be made
(seccomp(2)); it also holds against address families that namespaces leave alone, such as vsock,
and against io_uring. Both last until the process ends and pass on to its children.

Neither hinders a process from connecting to a Unix socket that it can reach by its path. Imports
no torch, and must run before anything starts a thread: the kernel isolates the calling one alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from ...common.errors import ConfideError

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# From linux/bpf_common.h: load a word; jump if equal, if greater or equal; return.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # the bit of a second numbering of system calls on x86-64
_IO_URING_SETUP = 425
_PROCESS = Path("/proc/self")
# Machine -> (its number in linux/audit.h, the number of socket(2))
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}

# Nothing answers at these (RFC 5737, RFC 3849); the loopback would at least refuse.
_PROBES = (
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "2001:db8::1"),
)
_PROBE_SECONDS = 0.5
_NO_WAY_OUT = {
    errno.EPERM,
    errno.EACCES,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
}

# Libraries then do not even try, and fail at once with a message instead of after a timeout.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def isolate(*, allow_network: bool = False) -> tuple[str, ...]:
    """Cut this process off, and try to get out.

    Returns the locks that hold, of ``namespace`` and ``seccomp``; none only with ``allow_network``.

    Raises:
        ConfideError: ``resident.network`` when a connection still gets out, or might.
    """
    os.environ.update(OFFLINE)
    locks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("namespace", _own_namespace),
        ("seccomp", _filter_calls),
    )
    held = tuple(name for name, close in locks if _is_alone() and close())
    way_out = _way_out()
    if held and way_out is None:
        return held
    if allow_network:
        return ()
    raise ConfideError(
        "resident.network",
        "The network could not be taken away from this process"
        f" ({way_out or 'no lock holds'}{'' if _is_alone() else ', it has threads'}).",
        "Allow user namespaces or seccomp on this machine, or start as root; --allow-network goes"
        " without, and then the pin of the bundle alone keeps the text in.",
    )


def _is_alone() -> bool:
    """Whether this process is one thread, as far as the system says."""
    tasks = Path("/proc/self/task")
    return not tasks.is_dir() or len(list(tasks.iterdir())) == 1


def _way_out() -> str | None:
    """The address that a connection could get to, or None if the system refuses all of them."""
    for family, host in _PROBES:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(_PROBE_SECONDS)
                probe.connect((host, 9))
        except OSError as error:
            if error.errno in _NO_WAY_OUT:
                continue
        return host
    return None


def _own_namespace() -> bool:
    """A network namespace of its own; for anybody but root by way of a user namespace, in which
    the process keeps its user and group.

    A system may allow the namespace and not its maps, as a container's does: the process would be
    nobody in it, with no way back. So a child tries first, and ``seccomp`` is left where it fails.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        return _call("unshare", _CLONE_NEWNET)
    return _as_child(lambda: _enter(user, group)) and _enter(user, group)


def _enter(user: int, group: int) -> bool:
    if not _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET):
        return False
    try:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            (_PROCESS / name).write_bytes(line.encode())
    except OSError:
        return False
    return True


def _as_child(does: Callable[[], bool]) -> bool:
    """Whether a child can do it, from which this process takes nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(not does())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _filter_calls() -> bool:
    """Refuse every socket(2) that is no Unix socket, and io_uring, which could make one too."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    architecture, socket_call = machine
    lines = (
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 5, 0, _X32),
        (_EQUAL, 4, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, 16),  # the first argument: the family
        (_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(program)
    return _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) and _call(
        "prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(pointer), 0, 0
    )


def _call(name: str, *arguments: int) -> bool:
    """Whether a function of the C library succeeds; one that is not there does not."""
    function = getattr(ctypes.CDLL(None), name, None)
    return function is not None and function(*map(ctypes.c_ulong, arguments)) == 0
