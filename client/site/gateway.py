"""The gateway: the process that has the network, and no text.

Runs Flower's SuperNode with the pin (``supernode``) and the one executor of its tasks, as two
processes below it, isolated and with a secret between them that no other user of the machine has.
Certificate, key and secret are in memory only, where the bundle's process does not inherit them;
the environment that it does inherit is made from a short list. Nothing is ever installed at run
time. Where root starts it, it becomes another user than the resident first.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Thread

from ...common.errors import ConfideError
from ...common.machine.kit import Kit, check_current, in_flowers_form, read_file
from ...common.machine.processes import (
    PROXIES,
    SUPERVISED,
    at_loopback,
    end,
    end_with_parent,
    flower_environment,
    free_ports,
    keep_memory_private,
    last_words,
    loopback,
    plain,
)
from .connection import STOPPED, Teller
from .journal import Journal
from .supernode import PINS, WORDS
from .users import User, become

# What a bundle's process may know of this machine's environment.
_PASSED_ON = ("LANG", "LC_ALL", "TZ", "PYTHONPATH", *PROXIES)
_SWITCHES = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2", "OMP_NUM_THREADS": "1"}
_POLL_SECONDS = 0.2
_LONGEST_LINE = 500
_MOST_LINES = 100
_MOST_WORDS = 64 * 1024  # bytes; a pipe holds no more
_STOP_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What a gateway needs.

    Attributes:
        socket: the resident's.
        user: whom to become; only where root starts it.
    """

    kit: Kit
    socket: Path
    user: User | None = None


def run(gateway: Gateway) -> int:
    """Until a signal asks to stop (status 0), or one of the two processes ends (1).

    Raises:
        ConfideError: ``kit.*``, ``user.*`` or ``join.gone`` before anything is connected.
    """
    journal = Journal("gateway")
    teller = Teller(gateway.socket, journal)
    files, problem = _files_of(gateway.kit)
    if gateway.user is not None:
        become(gateway.user)
    if problem is not None:
        teller.tell(problem.code)
        raise problem
    keep_memory_private()
    end_with_parent()
    with tempfile.TemporaryDirectory(prefix="confide-gateway-") as home:
        return _supervise(gateway, files, Path(home), journal, teller)


def _files_of(kit: Kit) -> tuple[dict[str, int], ConfideError | None]:
    """What Flower needs of a kit, in memory; or why the kit is no good."""
    try:
        check_current(kit, date.today())  # noqa: DTZ011 - the day where the holder is
        return {
            "ca": _in_memory(read_file(kit.ca)),
            "key": _in_memory(in_flowers_form(kit.key)),
            "secret": _in_memory(secrets.token_bytes(32)),
        }, None
    except ConfideError as error:
        return {}, error


def _supervise(
    gateway: Gateway, files: Mapping[str, int], home: Path, journal: Journal, teller: Teller
) -> int:
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    (port,) = free_ports(1)
    env = environment(home)
    said, out = os.pipe()
    words, theirs = os.pipe()
    os.set_blocking(words, False)
    processes = [
        _start(
            supernode_command(gateway, files, port),
            {
                **env,
                PINS: " ".join(gateway.kit.bundles),
                WORDS: str(theirs),
                SUPERVISED: str(os.getpid()),
            },
            out,
            [*files.values(), theirs],
        ),
        _start(executor_command(files, port), env, out, [files["secret"]]),
    ]
    for end_of_theirs in (out, theirs):
        os.close(end_of_theirs)
    heard: deque[str] = deque(maxlen=_MOST_LINES)
    listener = Thread(target=_write_down, args=(said, journal, heard), daemon=True)
    listener.start()
    journal.write("start", coordinator=gateway.kit.fleet, bundles=list(gateway.kit.bundles))
    try:
        while not stopping and all(process.poll() is None for process in processes):
            _pass_on(words, teller)
            time.sleep(_POLL_SECONDS)
    finally:
        codes = [process.poll() for process in processes]
        _pass_on(words, teller)
        if stopping:
            teller.tell(STOPPED)
        else:
            teller.ended()
        end(processes, _STOP_SECONDS)
        os.close(words)
    listener.join(_POLL_SECONDS)
    told = {} if stopping else {"said": last_words("\n".join(heard))}
    journal.write("stop", asked=bool(stopping), supernode=codes[0], executor=codes[1], **told)
    return 0 if stopping else 1


def supernode_command(gateway: Gateway, files: Mapping[str, int], port: int) -> list[str]:
    """Flower's SuperNode by its public options; TLS and node authentication are never off.

    Raises:
        ConfideError: ``gateway.socket`` for a path that its configuration cannot hold.
    """
    if not str(gateway.socket).isprintable() or set(str(gateway.socket)) & set("\"'\\"):
        raise ConfideError(
            "gateway.socket",
            f"{gateway.socket} has a quotation mark or a backslash in it.",
            "Name another path with --socket.",
        )
    return [
        *(sys.executable, "-P", "-m", "confide.client.site.supernode"),
        *("--superlink", gateway.kit.fleet),
        *("--root-certificates", _path(files["ca"])),
        *("--auth-supernode-private-key", _path(files["key"])),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", _path(files["secret"])),
        *("--host", loopback(), "--port", str(port)),
        *("--node-config", f'socket="{gateway.socket}"'),
    ]


def executor_command(files: Mapping[str, int], port: int) -> list[str]:
    """Flower's executor: it alone may take the SuperNode's tasks, by the secret. Plain HTTP stays
    on the loopback."""
    return [
        *("flower-superexec", "--insecure"),
        *("--runtime-api-address", at_loopback(port)),
        *("--superexec-auth-secret-file", _path(files["secret"])),
        *("--parent-pid", str(os.getpid())),
    ]


def environment(home: Path) -> dict[str, str]:
    """All that the processes below get; what else is set here, tokens and passwords, is not."""
    known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**flower_environment(home, known), **_SWITCHES, "HOME": str(home)}


def _in_memory(content: bytes) -> int:
    """A file without a name, which only this process and those it is handed to can open."""
    number = os.memfd_create("confide")
    os.write(number, content)
    return number


def _path(number: int) -> str:
    return f"/proc/self/fd/{number}"


def _start(
    command: Sequence[str], env: Mapping[str, str], out: int, kept: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=dict(env),
        cwd=env["HOME"],
        pass_fds=kept,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def _pass_on(words: int, teller: Teller) -> None:
    """The newest of what the SuperNode's process said of the connection meanwhile."""
    with suppress(BlockingIOError):
        told = os.read(words, _MOST_WORDS).decode("ascii", errors="replace").split("\n")
        for code in told[-2:-1]:  # behind the last line's end is nothing
            teller.tell(code)


def _write_down(said: int, journal: Journal, heard: deque[str]) -> None:
    """What Flower and the bundle print, line by line; there is no private text that they could.
    The newest lines are kept in ``heard``."""
    with os.fdopen(said, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            bare = plain(line).strip()
            if bare:
                heard.append(bare[:_LONGEST_LINE])
                journal.write("flower", said=bare[:_LONGEST_LINE])
