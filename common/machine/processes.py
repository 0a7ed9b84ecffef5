"""Our child processes: restarted, ended with all their own children, and their last output.

A process that is ``Kept`` is started again whenever it ends, after a pause that doubles up to a
minute. Whatever way this process ends, what it keeps ends, too: ``end`` asks and then kills, and
the kernel ends what is left (prctl(2)). Logs are those of one's own machine, for whoever runs it;
what could command a terminal is left out. No library is imported before one is needed, since a
resident gives its network away first.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfideError

if TYPE_CHECKING:
    import psutil

SUPERVISED = "CONFIDE_SUPERVISED"  # the process id of the parent, for children that change user
# Of every Flower that is started here: nothing is installed at run time, nobody is told of it.
SWITCHES = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is started again
STEADY_SECONDS = 60.0  # after so long a life the next pause is the first again
_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

_MOST_LETTERS = 300
_MOST_BYTES = 64 * 1024  # of a log's end
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FRAMES = re.compile(r"[\u2500-\u259f]+ ?")
_TELLING = re.compile(r"error|exception|fail|killed|denied|refused|cannot|no such|not found", re.I)


def flower_environment(home: Path, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a program of Flower's, whose own folder is ``home``: what is ``inherited``
    (all of this process's, unless told), the switches, this Python's programs first, and this
    machine reached without a proxy, since Flower's programs meet on the loopback."""
    known = os.environ if inherited is None else inherited
    tools = str(Path(sys.executable).parent)
    return {
        **known,
        **past_proxies(os.environ),
        **SWITCHES,
        "FLWR_HOME": str(home),
        "PATH": f"{tools}{os.pathsep}{known.get('PATH', os.defpath)}",
    }


class Kept:
    """A process that is started again when it ends, after a pause.

    Args:
        env, cwd: its variables and folder; this process's own, unless told.
        log: where what it says goes; None: where what this process says goes.
        clock: seconds; for tests.

    Attributes:
        process: the one that was started last.
        pause: seconds between its last end and the next start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.log = name, log
        self.process: subprocess.Popen[bytes] | None = None
        self.pause = FIRST_PAUSE / 2  # doubled at the first end
        self._command, self._env, self._cwd, self._clock = command, env, cwd, clock
        self._began, self._said = 0.0, 0
        self._again: float | None = None

    def start(self) -> None:
        """Start it, as the leader of a session, so that a Ctrl-C reaches this process alone."""
        self._said = length_of(self.log) if self.log else 0
        log = self.log.open("ab") if self.log else None
        try:
            self.process = subprocess.Popen(
                self._command,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_starter,
            )
        finally:
            if log:
                log.close()
        self._began, self._again = self._clock(), None

    def ended(self) -> bool:
        """Whether it is not running."""
        return self.process is None or self.process.poll() is not None

    def look(self) -> str:
        """``ended`` when that is seen first, with the pause until the next start; ``started`` when
        it was started again; otherwise nothing."""
        if not self.ended():
            return ""
        now = self._clock()
        if self._again is None:
            short = now - self._began < STEADY_SECONDS
            self.pause = min(2 * self.pause, LONGEST_PAUSE) if short else FIRST_PAUSE
            self._again = now + self.pause
            return "ended"
        if now < self._again:
            return ""
        self.start()
        return "started"

    def how_it_ended(self) -> str:
        """How it ended, in words; empty while it runs. Names the signal, which no log line does."""
        code = self.process.poll() if self.process else None
        if code is None:
            return ""
        return f": signal {-code} ended it" if code < 0 else f": it ended with status {code}"

    def last_words(self) -> str:
        """The last output since its last start, from its log."""
        return last_words_in(self.log, self._said) if self.log else last_words("")

    def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Stop it; returns whether it was running."""
        running = not self.ended()
        if self.process is not None:
            end([self.process], seconds)
        return running


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float = _STOP_SECONDS) -> None:
    """Ask each to stop with all below it, in order and at once; kill what is left of them after
    ``seconds``, and wait until all of it is gone.

    Flower's simulation and Ray start sessions of their own and would linger, so the trees are
    listed while they still hang together. Each leads a session of its own.
    """
    import psutil

    below = [member for process in processes for member in _below(process)]
    for ask in ("terminate", "kill"):
        for member in (*processes, *below):
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                getattr(member, ask)()
        deadline = time.monotonic() + seconds
        for process in processes:  # not by psutil, which keeps how they ended to itself
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        _, below = psutil.wait_procs(below, timeout=max(0.0, deadline - time.monotonic()))
        if not below and all(process.returncode is not None for process in processes):
            break
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whoever came meanwhile
        process.wait()


def _below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    import psutil

    if process.returncode is None:  # else its number may be another's by now
        with suppress(psutil.NoSuchProcess):
            below: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
            return below
    return []


def end_with_parent() -> None:
    """Under a supervisor, have the kernel send SIGTERM when that ends. To be called after a change
    of user, which forgets it.

    Raises:
        ConfideError: ``join.gone`` if it has ended already.
    """
    parent = os.environ.get(SUPERVISED)
    if parent is None:
        return
    _end_with_starter()
    if str(os.getppid()) != parent:
        raise ConfideError("join.gone", "The parent process has exited.")


def _end_with_starter() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def keep_memory_private() -> None:
    """No other process of the same user may look into this one's memory or open files."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def plain(log: str) -> str:
    """A log without colours and without the frames around its messages."""
    return _FRAMES.sub("", _COLOURS.sub("", log))


def last_words(log: str) -> str:
    """The last line that reports a failure, else the last line that is not blank."""
    lines = [line.strip() for line in plain(log).splitlines() if any(map(str.isalpha, line))]
    telling = [line for line in lines if _TELLING.search(line)]
    said = (telling or lines or ["It said nothing."])[-1][:_MOST_LETTERS]
    return "".join(letter if letter.isprintable() else " " for letter in said)


def length_of(log: Path) -> int:
    """Where in a log, which may not be there yet, the next line will stand; in bytes."""
    return log.stat().st_size if log.is_file() else 0


def last_words_in(log: Path, start: int = 0) -> str:
    """The last words of a log from a byte on; of a long one its end is read alone. One that was
    made shorter meanwhile, as by logrotate, is read from its beginning."""
    size = length_of(log)
    if size == 0:
        return last_words("")
    with log.open("rb") as file:
        file.seek(max(start if start <= size else 0, size - _MOST_BYTES), os.SEEK_SET)
        return last_words(file.read(_MOST_BYTES).decode(errors="replace"))


# --- what this process may use ---
#
# What this machine lets a process have: processors, and its own programs at the loopback, past
# every proxy.


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
