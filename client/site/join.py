"""A holder joins: what it needs is there and lies where it should, then two processes, kept alive.

The resident comes first and must say that it is well; then the gateway connects. Either is started
again when it ends, after a pause that doubles up to a minute; both are stopped together, the
gateway first, so that the task in hand is finished and its ledger entry with it. This process
itself reads no text beyond the count of ``check_data`` and takes nothing from the network.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.kit import Kit, read_kit
from ...common.machine.processes import SUPERVISED, Kept
from . import unix_socket
from .enrol import check_keys
from .journal import Journal
from .users import User, as_user, may_read, may_write

_READY_SECONDS = 120.0  # for the resident to import what it needs
_STATUS_SECONDS = 10.0
_STOP_SECONDS = 75.0  # more than the resident takes to finish the task in hand
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What a holder's administrator decided.

    Attributes:
        resident, gateway: the users that the two become; None where root did not start this.
        new_ledger: whether the text gets one that knows of nothing, by the administrator's word.
    """

    kit: Kit
    data: Path
    policy: Path
    ledger: Path
    socket: Path
    resident: User | None = None
    gateway: User | None = None
    allow_network: bool = False
    new_ledger: bool = False


def socket_of(kit: Kit) -> Path:
    """Where the resident of a kit listens unless told otherwise: where root's services do, where a
    user's do, or in the kit."""
    if os.geteuid() == 0:
        return Path("/run/confide") / kit.name / "socket"
    own = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(own) / "confide" / kit.name if own else kit.folder.resolve() / "run") / "socket"


def socket_at(where: Path) -> Path:
    """The socket of a kit, or the one that is named itself."""
    return socket_of(read_kit(where)) if where.is_dir() else where


def status(path: Path, seconds: float = _STATUS_SECONDS) -> dict[str, Any]:
    """What the resident says of itself.

    Raises:
        ConfideError: ``resident.unreachable``, ``resident.silent`` or ``socket.malformed``.
    """
    raw = unix_socket.ask(path, unix_socket.STATUS, b"", unix_socket.REPORT, seconds)
    try:
        report = json.loads(raw)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        raise ConfideError("socket.malformed", f"What {path} says is no status.")
    return report


def lacks_ledger(joining: Joining) -> bool:
    """Whether there is no ledger where it should lie, as the resident's user sees it."""
    return not as_user(joining.resident, lambda: os.path.lexists(joining.ledger))


def on_new_ledger(joining: Joining) -> list[str]:
    """What to think about before a text gets a ledger that knows of nothing, a line each."""
    folder = joining.ledger.parent
    others = as_user(
        joining.resident, lambda: sorted(path.name for path in folder.glob("*.sqlite"))
    )
    beside = [f"Beside it lie: {', '.join(others)}"] if others else []
    return [
        f"There is no ledger {joining.ledger}.",
        "If this text took part in anything before, under whatever file name, then a ledger knows"
        " what was spent on it: name that one with --ledger, or put it back.",
        *beside,
        "A new ledger starts at nothing, and what was spent before would be spent again.",
    ]


def new_ledger_unasked(joining: Joining) -> ConfideError:
    """The error of a join that nobody can be asked about."""
    return ConfideError(
        "join.new-ledger",
        f"There is no ledger {joining.ledger}; a new one would forget what was spent on the text.",
        "Name the right one with --ledger; for text that never took part, add --new-ledger.",
    )


def check_access(joining: Joining) -> None:
    """The resident can read what it needs, and the gateway cannot read the text, nor anybody else
    the signing key.

    Raises:
        ConfideError: ``join.python``, ``join.unreadable``, ``join.unwritable``, ``join.text-open``
            or ``join.keys-open``.
    """
    check_keys(joining.ledger, joining.resident, joining.gateway)
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
    env = {**os.environ, SUPERVISED: str(os.getpid())}
    resident = Kept("resident", resident_command(joining), env=env)
    gateway = Kept("gateway", gateway_command(joining), env=env)
    try:
        resident.start()
        if not _wait_ready(joining.socket, resident, stopping):
            return 0
        gateway.start()
        while not stopping:
            _look(resident, journal)
            _look(gateway, journal)
            time.sleep(_POLL_SECONDS)
    finally:
        gateway.stop(_STOP_SECONDS)
        resident.stop(_STOP_SECONDS)
        journal.write("stop")
    return 0


def _look(kept: Kept, journal: Journal) -> None:
    """Start it again once its pause is over; its end is written down."""
    if kept.look() == "ended" and kept.process:
        status = kept.process.returncode
        journal.write("ended", which=kept.name, status=status, again_in=kept.pause)


def _answers(path: Path) -> bool:
    try:
        unix_socket.connect(path, 1.0).close()
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
                f"The resident did not become ready{resident.how_it_ended()}.",
                "The lines that it printed above say why.",
            )
    return False


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
