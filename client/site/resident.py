"""The resident: the process that has the text, behind a Unix socket and without a network.

One request is the bytes of a task, one reply those of an update, a refusal or a yes; a status can
be asked for beside it, and the gateway tells how the connection is (``connection``). What comes
through the socket is not trusted: it is bounded, parsed strictly and reviewed by the policy, and
whatever is wrong with it is answered with a code. One task at a time; the next one waits unread, so
that no more than one is ever in memory. Model and tokens stay warm.
Who asks for the status is known by the kernel's word (SO_PEERCRED of unix(7)): another user, as the
gateway's, is told no more than the coordinator may know.
A stop waits for the task in hand; a crash loses nothing, since the ledger was charged first and
repeats what it released.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from ... import __version__
from ...common.errors import ConfideError
from ...common.machine.installed import code_hash
from ...common.models.loading import models_in_memory
from ...common.wire.messages import (
    Opening,
    Ready,
    Refusal,
    Reply,
    Update,
    reply_to_bytes,
    request_from_bytes,
)
from ..guard.policy_file import load_policy
from ..guard.scrub import code_of, quiet
from ..holder import Holder, Site
from ..text.taken import check_taken
from . import unix_socket
from .budget import left_of, read_spending
from .connection import LONGEST_WORD, Connection
from .journal import Journal
from .unix_socket import MOST_CALLERS

IDLE_SECONDS = 30.0  # for a caller to say the next thing
STOP_SECONDS = 60.0  # for the task in hand, when asked to stop
_POLL_SECONDS = 0.2
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_UNKNOWN_USER = 65534  # what the kernel shows of a user whom the own namespace does not know


@dataclass
class _Counts:
    """What was done since the start, for the status."""

    started: float = field(default_factory=time.monotonic)
    updates: int = 0
    refusals: int = 0
    last_refusal: str = ""
    last_task: int | None = None


class Resident:
    """Serves one listener until it is told to stop.

    Args:
        answer: the bytes of a task -> the holder's reply; lets no exception out.
        report: figures for the status besides those of this class, for whoever may connect.
        own_report: more of them, for root and this process's own user alone.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[bytes], Reply],
        report: Callable[[], dict[str, Any]],
        journal: Journal,
        own_report: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._report = report
        self._own_report = own_report
        self._journal = journal
        self._turn = Lock()  # of the task in hand; what waits for it has not been read
        self._callers = BoundedSemaphore(MOST_CALLERS)
        self._stopping = False
        self._counts = _Counts()
        self._connection = Connection()

    def stop(self, *_: object) -> None:
        """Take no further callers; fit for a signal's handler."""
        self._stopping = True

    def serve(self) -> bool:
        """Until ``stop``. Returns whether the task in hand could be finished."""
        self._listener.settimeout(_POLL_SECONDS)
        while not self._stopping:
            try:
                caller, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self._callers.acquire(blocking=False):
                Thread(target=self._meet, args=(caller,), daemon=True).start()
            else:
                caller.close()
        self._listener.close()
        return self._turn.acquire(timeout=STOP_SECONDS)

    def _meet(self, caller: socket.socket) -> None:
        """One caller, one request; nothing that goes wrong with it gets any further."""
        try:
            with caller:
                caller.settimeout(IDLE_SECONDS)
                self._hear(caller)
        except OSError as error:
            self._journal.write("caller", problem=type(error).__name__)
        except BaseException as error:  # noqa: BLE001 - a thread's last words would be its text
            self._journal.write("caller", problem=f"internal {type(error).__name__}")
        finally:
            self._callers.release()

    def _hear(self, caller: socket.socket) -> None:
        try:
            kind, size = unix_socket.receive_head(caller)
            if kind == unix_socket.STATUS and size == 0:
                # Who asked while the libraries were imported may not have waited for it.
                with suppress(BrokenPipeError, ConnectionResetError):
                    report = self.status(own=_is_own(caller))
                    unix_socket.send(caller, unix_socket.REPORT, json.dumps(report).encode())
                return
            if kind == unix_socket.WORD and size <= LONGEST_WORD:
                self._connection.hear(unix_socket.receive_body(caller, size))
                return
            if kind != unix_socket.TASK:
                raise ConfideError("socket.malformed", "A caller asks for a task or the status.")
            with self._turn:
                if self._stopping:
                    raise ConfideError("resident.stopping", "It was asked to stop meanwhile.")
                self._work(caller, size)
        except ConfideError as error:
            self._journal.write("caller", problem=error.code)
            if error.code == "socket.closed":
                return
            refusal = Refusal(holder="", task_hash="", code=error.code)
            unix_socket.send(caller, unix_socket.REPLY, reply_to_bytes(refusal))

    def _work(self, caller: socket.socket, size: int) -> None:
        request = unix_socket.receive_body(caller, size)
        began = time.monotonic()
        reply = self._answer(request)
        self._note(reply, time.monotonic() - began)
        unix_socket.send(caller, unix_socket.REPLY, reply_to_bytes(reply))

    def _note(self, reply: Reply, seconds: float) -> None:
        counts = self._counts
        counts.last_task = round(time.time())
        if isinstance(reply, Update):
            counts.updates += 1
            said = {"outcome": "update", "run": reply.run, "round": reply.round}
        elif isinstance(reply, Ready):
            said = {"outcome": "ready"}
        elif isinstance(reply, Opening):
            said = {"outcome": "opening"}
        else:
            counts.refusals += 1
            counts.last_refusal = reply.code
            said = {"outcome": reply.code}
        self._journal.write("task", task=reply.task_hash, seconds=round(seconds, 3), **said)

    def status(self, *, own: bool) -> dict[str, Any]:
        """Health: what runs, whether the gateway is connected, what was done, what was spent; for
        this machine's own eyes also what is left, and of how many records nothing could be used."""
        counts = self._counts
        return {
            "alive": not self._stopping,
            "busy": self._turn.locked(),
            "seconds": round(time.monotonic() - counts.started),
            "updates": counts.updates,
            "refusals": counts.refusals,
            "last_refusal": counts.last_refusal,
            "last_task": counts.last_task,
            "connection": self._connection.report(),
            **self._report(),
            **(self._own_report() if own else {}),
        }


def _is_own(caller: socket.socket) -> bool:
    """Whether root or this process's own user asks."""
    raw = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(raw)[1]
    return user == 0 or user == os.geteuid() != _UNKNOWN_USER


class Handler:
    """Answers the requests of one holder, one at a time, under today's policy: it is read anew for
    each, so that what an administrator changes counts from the next one on."""

    def __init__(self, *, name: str, data: Path, policy: Path, ledger: Path) -> None:
        self._name, self._data, self._policy, self._ledger = name, data, policy, ledger
        self._holder = Holder(self._site())

    def answer(self, data: bytes) -> Reply:
        """The reply to a task's bytes; whatever is wrong with them is a refusal's code."""
        try:
            with quiet():
                request = request_from_bytes(data)
                site = self._site()
                if site != self._holder.site:
                    self._holder = Holder(site)
        except BaseException as error:  # noqa: BLE001 - its text must not leave, whatever it is
            return Refusal(holder=self._name, task_hash="", code=code_of(error))
        return self._holder.handle(request)

    def report(self) -> dict[str, Any]:
        """What the status says of this holder, by what the coordinator may know of it, too (it gets
        a receipt with each update), and what is for this machine's eyes alone."""
        return {
            "version": __version__,
            "name": self._name,
            "model_loaded": models_in_memory() > 0,
            "ledger": _spent(self._ledger),
        }

    def own_report(self) -> dict[str, Any]:
        """For root and the resident's own user: what is left, where the files lie, whether the text
        was changed, and how many records the newest task could not use."""
        return {
            "code": code_hash(),
            "left": _left(self._policy, self._ledger),
            "text": _text(self._data, self._ledger),
            "unused_records": self._holder.unused,
            "ledger_file": str(self._ledger.resolve()),
            "policy_file": str(self._policy.resolve()),
            "data_file": str(self._data.resolve()),
        }

    def _site(self) -> Site:
        policy = load_policy(self._policy)
        return Site(
            name=self._name,
            data=self._data,
            ledger=self._ledger,
            policy=policy,
            bundle=code_hash(),
        )


def _spent(path: Path) -> dict[str, Any]:
    """Rounds and epsilon that the ledger has booked; epsilon is None where it is infinite."""
    try:
        spending = read_spending(path)
        delta = spending.newest_delta
        epsilon = spending.epsilon(delta) if delta else 0.0
    except ConfideError as error:
        return {"problem": error.code}
    return {
        "charged": spending.count("reserved"),
        "released": spending.count("released"),
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": delta,
    }


def _text(data: Path, ledger: Path) -> str:
    """Whether the text is as it was taken in."""
    try:
        check_taken(data, ledger)
    except ConfideError as error:
        return error.code
    return "as it was taken in"


def _left(policy: Path, ledger: Path) -> list[str]:
    """What is left of the budget, in words."""
    try:
        limits = load_policy(policy)
        return [left.in_words() for left in left_of(read_spending(ledger), limits)]
    except ConfideError as error:
        return [error.code]
