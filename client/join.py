"""A holder joins: what will leave the machine in plain words, then two processes, kept alive.

The resident comes first and must say that it is well; then the gateway connects. Either is started
again when it ends, after a pause that doubles up to a minute; both are stopped together, the
gateway first, so that the task in hand is finished and its ledger entry with it. This process
itself reads no text beyond the count of ``check_data`` and takes nothing from the network.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError
from ..common.installed import code_hash
from ..common.kit import Kit
from . import frames
from .check_data import Findings
from .family import SUPERVISED, end
from .journal import Journal
from .policy import Policy
from .users import User, may_read, may_write

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is started again
STEADY_SECONDS = 60.0  # after so long a life the next pause is the first again
_READY_SECONDS = 120.0  # for the resident to import what it needs
_STATUS_SECONDS = 10.0
_STOP_SECONDS = 75.0  # more than the resident takes to finish the task in hand
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What a holder's administrator decided.

    Attributes:
        resident, gateway: the users that the two become; None where root did not start this.
    """

    kit: Kit
    data: Path
    policy: Path
    ledger: Path
    socket: Path
    resident: User | None = None
    gateway: User | None = None
    allow_network: bool = False


def socket_of(kit: Kit) -> Path:
    """Where the resident of a kit listens unless told otherwise: where root's services do, where a
    user's do, or in the kit."""
    if os.geteuid() == 0:
        return Path("/run/confide") / kit.name / "socket"
    own = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(own) / "confide" / kit.name if own else kit.folder.resolve() / "run") / "socket"


def status(path: Path, seconds: float = _STATUS_SECONDS) -> dict[str, Any]:
    """What the resident says of itself.

    Raises:
        ConfideError: ``resident.unreachable``, ``resident.silent`` or ``socket.malformed``.
    """
    raw = frames.ask(path, frames.STATUS, b"", frames.REPORT, seconds)
    try:
        report = json.loads(raw)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        raise ConfideError("socket.malformed", f"What {path} says is no status.")
    return report


def plain_words(joining: Joining, found: Findings, policy: Policy) -> list[str]:
    """What an administrator says yes to, a line each."""
    unit, bare = policy.data.unit if policy.data else "record", policy.allow_unprotected
    kit = joining.kit
    people = "" if found.persons is None else f" of {found.persons} persons"
    return [
        f"{kit.name} joins the coordinator at {kit.fleet} (kit good until {kit.expires}).",
        f"Text: {found.file}, {found.records} records{people}. This count is shown here alone.",
        "",
        "What will leave this machine, in a round that the policy allows:",
        "  - how the numbers of a small adapter should change. Each"
        f" {unit}'s part in it is cut to a length and hidden in noise on this machine"
        + (", EXCEPT in runs without noise, which this policy ALLOWS." if bare else "."),
        "  - a receipt of the ledger: its id, its last hash and length, the epsilon spent, and for"
        " each step the noise and the sampling rate, which the run sets alike for everybody.",
        "  - or else a refusal: a code of one or two words, such as policy.max-epsilon.",
        "  - your name in the kit, your public key and address, when you are connected, and how"
        " long an answer took.",
        "Never: a text, a label, a person, a count or a measure made from them.",
        "",
        "What the policy allows on this text, over all runs together:",
        f"  - epsilon up to {policy.max_epsilon:g}, a run up to {policy.max_epsilon_per_run:g},"
        f" delta up to {policy.max_delta:g}, protecting each {unit}.",
        f"  - up to {policy.max_rounds} rounds a run and {policy.max_steps_per_round} steps a"
        f" round; tasks: {', '.join(policy.data.tasks if policy.data else ())}.",
        f"  - base models: {', '.join(policy.base_models) or 'those in the cache of this machine'};"
        f" coordinators: {', '.join(policy.coordinators) or 'any name'}.",
        "",
        "Code of the coordinator's that may run here (in the process without text), by SHA-256:",
        *(f"  - {digest}" for digest in kit.bundles),
        "It holds names and settings. What trains is the confide installed here, by SHA-256, which"
        " each charge books:",
        f"  - {code_hash()}",
        *_about_users(joining),
    ]


def _about_users(joining: Joining) -> list[str]:
    if joining.resident and joining.gateway:
        return [
            "",
            f"The text is read by the user {joining.resident.name}, without a network; the network"
            f" is used by {joining.gateway.name}, without the text.",
        ]
    return [
        "",
        "WARNING: both processes run as the same user, since root did not start this. If the"
        " coordinator's code were hostile, nothing but its pinned SHA-256 would keep it from the"
        " text. Start as root with two users to keep them apart.",
    ]


def check_access(joining: Joining) -> None:
    """The resident can read what it needs, and the gateway cannot read the text.

    Raises:
        ConfideError: ``join.python``, ``join.unreadable``, ``join.unwritable`` or
            ``join.text-open``.
    """
    if joining.resident is None or joining.gateway is None:
        return
    for user in (joining.resident, joining.gateway):
        for path in (Path(sys.executable).resolve(), Path(__file__)):
            if not may_read(user, path):
                raise ConfideError(
                    "join.python",
                    f"{user.name} cannot read {path}, and so cannot run confide.",
                    "Install Python and confide where every user can read them, as in /opt.",
                )
    for path in (joining.data, joining.policy):
        if not path.exists():
            raise ConfideError("join.unreadable", f"There is no file {path}.", "Check its path.")
        if not may_read(joining.resident, path):
            raise ConfideError(
                "join.unreadable",
                f"{joining.resident.name} cannot read {path}.",
                f"Run: chown {joining.resident.name} {path}, and let it into the folders above.",
            )
    if not may_write(joining.resident, joining.ledger.parent):
        raise ConfideError(
            "join.unwritable",
            f"{joining.resident.name} cannot write the ledger into {joining.ledger.parent}.",
            "Name a place of its own with --ledger.",
        )
    for path in (joining.data, joining.ledger):
        if may_read(joining.gateway, path):
            raise ConfideError(
                "join.text-open",
                f"{joining.gateway.name}, which has the network, could read {path}.",
                f"Run: chmod o-rwx {path}, and take {joining.gateway.name} out of its group.",
            )


def run(joining: Joining, journal: Journal) -> int:
    """Start both, keep both alive, stop both on SIGTERM or SIGINT. Returns the exit status.

    Raises:
        ConfideError: ``resident.running`` when another one answers at the socket, and
            ``join.resident`` when ours does not become ready the first time.
    """
    if _answers(joining.socket):
        raise ConfideError(
            "resident.running",
            f"A resident answers at {joining.socket} already.",
            "Stop that one first, or name another place with --socket.",
        )
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    resident = Kept("resident", resident_command(joining), journal)
    gateway = Kept("gateway", gateway_command(joining), journal)
    try:
        resident.start()
        if not _wait_ready(joining.socket, resident, stopping):
            return 0
        gateway.start()
        while not stopping:
            resident.look()
            gateway.look()
            time.sleep(_POLL_SECONDS)
    finally:
        gateway.stop()
        resident.stop()
        journal.write("stop")
    return 0


def _answers(path: Path) -> bool:
    try:
        frames.connect(path, 1.0).close()
    except ConfideError:
        return False
    return True


def _wait_ready(path: Path, resident: Kept, stopping: Sequence[int]) -> bool:
    """Whether the resident became well, and not asked to stop before."""
    deadline = time.monotonic() + _READY_SECONDS
    while not stopping:
        try:
            return bool(status(path)["alive"])
        except ConfideError:
            time.sleep(_POLL_SECONDS)
        if resident.ended() or time.monotonic() > deadline:
            raise ConfideError(
                "join.resident",
                "The resident did not become ready.",
                "Its own lines above say why.",
            )
    return False


class Kept:
    """A process that is started again when it ends, after a pause.

    Args:
        clock: seconds; for tests.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._command = command
        self._journal = journal
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._pause = FIRST_PAUSE
        self._again: float | None = None

    def start(self) -> None:
        """Start it, as the leader of a session, so that a Ctrl-C reaches this process alone."""
        env = {**os.environ, SUPERVISED: str(os.getpid())}
        self._process = subprocess.Popen(
            self._command, env=env, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._began, self._again = self._clock(), None

    def ended(self) -> bool:
        """Whether it is not running."""
        return self._process is None or self._process.poll() is not None

    def look(self) -> None:
        """Note that it ended, or start it again once the pause is over."""
        if not self.ended():
            return
        now = self._clock()
        if self._again is None:
            if now - self._began >= STEADY_SECONDS:
                self._pause = FIRST_PAUSE
            self._again = now + self._pause
            code = self._process.returncode if self._process else None
            self._journal.write("ended", which=self._name, status=code, again_in=self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif now >= self._again:
            self.start()

    def stop(self) -> None:
        """Ask it to stop, and see to it."""
        if self._process is not None:
            end([self._process], _STOP_SECONDS)


def resident_command(joining: Joining) -> list[str]:
    """The resident as a command of its own."""
    words: Mapping[str, object] = {
        "--name": joining.kit.name,
        "--data": joining.data.resolve(),
        "--policy": joining.policy.resolve(),
        "--ledger": joining.ledger.resolve(),
        "--socket": joining.socket,
    }
    options = [str(word) for pair in words.items() for word in pair]
    if joining.resident and joining.gateway:
        options += ["--user", joining.resident.name, "--for", joining.gateway.name]
    if joining.allow_network:
        options.append("--allow-network")
    return [*_CONFIDE, "resident", *options]


def gateway_command(joining: Joining) -> list[str]:
    """The gateway as a command of its own."""
    options = ["--socket", str(joining.socket)]
    if joining.gateway:
        options += ["--user", joining.gateway.name]
    return [*_CONFIDE, "gateway", str(joining.kit.folder.resolve()), *options]


_CONFIDE = (sys.executable, "-P", "-m", "confide", "client")
