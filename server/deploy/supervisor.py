"""``confide server start``: the SuperLink, what starts ServerApps, and the door, kept running.

The door opens last, when only the keys of federation.toml are known, and what ends is started
again, ever more slowly. Whatever way this process ends, its children end, too: on a signal in
order, and when it is killed by the kernel's word to them. Events go to ``log/server.jsonl``, one
object a line; names, counts, codes, and of a program that ended its last words, are all that they
say.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ...common.errors import ConfideError
from ...common.last_words import last_words_in, size_of
from ...common.machine import loopback
from ..run_folder import now
from . import flower
from .door import door_command, write_door
from .federation import FILE_NAME, Federation, load_federation
from .members import follow
from .status import collect, write_metrics

_START_SECONDS = 240.0  # a busy machine takes ten times as long as a quiet one
_STOP_SECONDS = 10.0
_TICK_SECONDS = 1.0
_FOLLOW_SECONDS = 3600.0  # also when nothing changed: a key may have expired
_METRICS_SECONDS = 30.0
_MOST_DELAY = 30.0
_STEADY_SECONDS = 60.0  # who ran so long is started again at once
_SET_PDEATHSIG = 1


@dataclass
class _Child:
    """A program that is to run, and how often it has ended in a row; ``log`` is where what it says
    goes, and ``said`` how much of it was there before."""

    name: str
    command: Sequence[str]
    log: Path
    said: int = 0
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    ended: int = 0
    again_at: float = 0.0


@dataclass
class Supervisor:
    """The processes of one federation. ``say`` hears every event."""

    federation: Federation
    say: Callable[[dict[str, Any]], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _children: list[_Child] = field(default_factory=list)

    def run(self) -> None:
        """Start everything, keep it running, and end it on SIGTERM or SIGINT.

        Raises:
            ConfideError: ``server.running``, ``server.port``, ``server.program`` or
                ``server.start``.
        """
        with _alone(self.federation):
            old = {s: signal.signal(s, self._signalled) for s in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._start()
                self._watch()
            finally:
                self._end()
                for number, handler in old.items():
                    signal.signal(number, handler)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        self._stop.set()

    def _start(self) -> None:
        federation = self.federation
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if nginx is None:
            raise ConfideError(
                "server.program",
                "nginx is not installed.",
                "On Debian: apt-get install nginx-light",
            )
        for port in (federation.superlink_port, federation.port):
            _check_free(port)
        flower.write_home(federation)
        write_door(federation)
        self._begin("superlink", flower.superlink_command(federation))
        self._await(federation.superlink_port)
        self._follow()
        self._begin("superexec", flower.superexec_command(federation))
        self._begin("door", door_command(federation, nginx))
        self._await(federation.port)
        self._event("open", host=federation.host, port=federation.port)

    def _watch(self) -> None:
        path = self.federation.folder / FILE_NAME
        seen, followed, measured = path.stat().st_mtime_ns, time.monotonic(), 0.0
        while not self._stop.wait(_TICK_SECONDS):
            self._revive()
            moment = time.monotonic()
            changed = path.stat().st_mtime_ns
            if changed != seen or moment - followed > _FOLLOW_SECONDS:
                with self._told():
                    self.federation = load_federation(self.federation.folder)
                    self._follow()
                    seen, followed = changed, moment
            if moment - measured > _METRICS_SECONDS:
                measured = moment
                with self._told():
                    write_metrics(self.federation, collect(self.federation))

    def _follow(self) -> None:
        for change in follow(self.federation):
            told = {"code": change.code} if change.code else {"node": change.node}
            self._event(change.what, holder=change.name, **told)

    def _begin(self, name: str, command: Sequence[str]) -> None:
        child = _Child(name, command, self.federation.logs / f"{name}.log")
        self._children.append(child)
        self._launch(child)

    def _launch(self, child: _Child) -> None:
        child.said = size_of(child.log)
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                env=flower.environment(self.federation),
                cwd=self.federation.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        child.since = time.monotonic()
        self._event("started", process=child.name, pid=child.process.pid)

    def _revive(self) -> None:
        moment = time.monotonic()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                status, child.process = child.process.returncode, None
                child.ended = 0 if moment - child.since > _STEADY_SECONDS else child.ended + 1
                child.again_at = moment + min(2.0**child.ended - 1, _MOST_DELAY)
                said = last_words_in(child.log, child.said)
                self._event("ended", process=child.name, status=status, said=said)
                if child.name == "superlink":
                    self._end_runs()
            if child.process is None and moment >= child.again_at:
                self._launch(child)

    def _end_runs(self) -> None:
        """Flower gives its runs up with the SuperLink; no ServerApp may write on beside the one
        that goes on from the checkpoint."""
        for child in self._children:
            if child.name == "superexec" and child.process is not None:
                end_tree(child.process)

    def _await(self, port: int) -> None:
        child, deadline = self._children[-1], time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not self._stop.is_set():
            if child.process is None or child.process.poll() is not None:
                break
            if _answers(port):
                return
            time.sleep(0.2)
        raise ConfideError(
            "server.start",
            f"{child.name} did not start. Its last words: {last_words_in(child.log, child.said)}",
            f"Read {child.log}.",
        )

    def _end(self) -> None:
        for child in reversed(self._children):
            if child.process is not None:
                end_tree(child.process)
                self._event("stopped", process=child.name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What fails while the server runs is told and tried again, and ends nothing."""
        try:
            yield
        except ConfideError as error:
            self._event("trouble", code=error.code, message=error.message)

    def _event(self, event: str, **fields: Any) -> None:
        row = {"time": now(), "event": event, **fields}
        with (self.federation.logs / "server.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.say(row)


@contextmanager
def _alone(federation: Federation) -> Iterator[None]:
    """At most one server for a folder; the lock goes with the process, however it ends."""
    with (federation.folder / "flower" / "server.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfideError(
                "server.running",
                f"A server runs for {federation.folder} already.",
                f"See `confide server status {federation.folder}`.",
            ) from None
        yield


def _check_free(port: int) -> None:
    if _answers(port):
        raise ConfideError(
            "server.port",
            f"Port {port} is taken on this machine.",
            f"End what listens there, or change the port in {FILE_NAME}.",
        )


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((loopback(), port), 1.0):
        return True
    return False


def _end_with_parent() -> None:
    """In the child: the kernel ends it when this process is gone (prctl(2))."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a child that we started and everything below it, and wait until it is gone."""
    try:
        top = psutil.Process(process.pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for member in tree:
            with suppress(psutil.NoSuchProcess):
                stop(member)
        _, tree = psutil.wait_procs(tree, timeout=_STOP_SECONDS)
        if not tree:
            break
    process.wait()
