"""``confide server start``: the SuperLink, what starts ServerApps, and the door, kept running.

The door opens last, when only the keys of federation.toml are known, and what ends is started
again, ever more slowly. Whatever way this process ends, its children end, too: on a signal in
order, and when it is killed by the kernel's word to them. Events go to ``log/server.jsonl``, one
object a line; names, counts, codes, and of a program that ended its last words, are all that they
say.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.processes import Kept, answers, end
from ..run_folder import now
from . import flower
from .door import door_command, write_door
from .federation import FILE_NAME, Federation, load_federation
from .members import follow
from .status import collect, write_metrics

_START_SECONDS = 240.0  # a busy machine takes ten times as long as a quiet one
_TICK_SECONDS = 1.0
_FOLLOW_SECONDS = 3600.0  # also when nothing changed: a key may have expired
_METRICS_SECONDS = 30.0


@dataclass
class Supervisor:
    """The processes of one federation. ``say`` hears every event."""

    federation: Federation
    say: Callable[[dict[str, Any]], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _children: list[Kept] = field(default_factory=list)

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
        here, log = self.federation.folder, self.federation.logs / f"{name}.log"
        env = flower.environment(self.federation)
        child = Kept(name, command, env=env, log=log, cwd=here)
        self._children.append(child)
        child.start()
        self._started(child)

    def _started(self, child: Kept) -> None:
        self._event("started", process=child.name, pid=child.process.pid if child.process else 0)

    def _revive(self) -> None:
        for child in self._children:
            change = child.look()
            if change == "started":
                self._started(child)
            if change == "ended":
                status = child.process.returncode if child.process else None
                said = child.last_words()
                self._event("ended", process=child.name, status=status, said=said)
                if child.name == "superlink":
                    self._end_runs()

    def _end_runs(self) -> None:
        """Flower gives its runs up with the SuperLink; no ServerApp may write on beside the one
        that goes on from the checkpoint."""
        for child in self._children:
            if child.name == "superexec" and child.process is not None:
                end([child.process])

    def _await(self, port: int) -> None:
        child, deadline = self._children[-1], time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not self._stop.is_set():
            if child.ended():
                break
            if answers(port):
                return
            time.sleep(0.2)
        raise ConfideError(
            "server.start",
            f"{child.name} did not start. Its last words: {child.last_words()}",
            f"Read {child.log}.",
        )

    def _end(self) -> None:
        for child in reversed(self._children):
            if child.stop():
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
    if answers(port):
        raise ConfideError(
            "server.port",
            f"Port {port} is taken on this machine.",
            f"End what listens there, or change the port in {FILE_NAME}.",
        )
