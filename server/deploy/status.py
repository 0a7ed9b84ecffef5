"""How a federation is: who is connected, what runs, and whether the door opens for holders alone.

Asked anew each time; nothing is remembered. The same numbers go to a file for Prometheus's
textfile collector (the exposition format, version 0.0.4).
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.paths import write_public
from ...common.machine.processes import loopback
from . import flower
from .federation import Federation
from .keys import expiry_of
from .members import members
from .receipts import Known, read_known

METRICS = "metrics.prom"
_DOOR_SECONDS = 5.0
_FORBIDDEN = 403


@dataclass(frozen=True, kw_only=True)
class HolderState:
    """A holder: ``connected``, ``away``, ``never-seen``, ``revoked`` or ``expired``; ``ledger`` is
    the newest fault of its ledger with the run that found it, or empty; ``made_here``, whether the
    coordinator made its key; ``signs``, whether it takes part in secure sums."""

    name: str
    state: str
    node: int | None
    days_left: int
    ledger: str = ""
    made_here: bool = False
    signs: bool = False


@dataclass(frozen=True, kw_only=True)
class Status:
    """What ``confide server status`` shows. ``trouble`` is empty when all is well."""

    holders: tuple[HolderState, ...]
    runs: tuple[flower.FlowerRun, ...]
    certificate_days_left: int
    trouble: tuple[str, ...]

    @property
    def connected(self) -> int:
        return sum(holder.state == "connected" for holder in self.holders)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "connected": self.connected, "healthy": not self.trouble}


def collect(federation: Federation) -> Status:
    """Ask the SuperLink and the door."""
    trouble = []
    nodes: Mapping[int, flower.Node] = {}
    runs: tuple[flower.FlowerRun, ...] = ()
    try:
        nodes = {node.id: node for node in flower.nodes(federation)}
        runs = tuple(flower.runs(federation))
    except ConfideError as error:
        trouble.append(error.code)
    try:
        check_door(federation)
    except ConfideError as error:
        trouble.append(error.code)
    left = (expiry_of(federation.folder / "door" / "server.crt") - datetime.now(UTC)).days
    if left < 0:
        trouble.append("door.expired")
    return Status(
        holders=tuple(_holders(federation, nodes)),
        runs=runs,
        certificate_days_left=left,
        trouble=tuple(trouble),
    )


def check_door(federation: Federation) -> None:
    """The door answers under the federation's certificate, and opens for nothing but its calls.

    Raises:
        ConfideError: ``door.closed``, ``door.certificate`` or ``door.open``.
    """
    context = ssl.create_default_context(cafile=str(federation.ca))
    door = _Local(federation.host, federation.port, context=context, timeout=_DOOR_SECONDS)
    try:
        door.request("POST", "/v1/control/list-runs")
        status = door.getresponse().status
    except ssl.SSLCertVerificationError as error:
        raise ConfideError(
            "door.certificate",
            f"The door's certificate is not good for {federation.host} ({error.verify_message}).",
            f"`confide server provision {federation.folder} --renew server`, and start again.",
        ) from None
    except (OSError, http.client.HTTPException):
        raise ConfideError(
            "door.closed",
            f"Nothing answers at port {federation.port}.",
            f"Read {federation.logs / 'door.log'}.",
        ) from None
    finally:
        door.close()
    if status != _FORBIDDEN:
        raise ConfideError(
            "door.open", f"The door passed a control call on (status {status}): close it at once."
        )


class _Local(http.client.HTTPSConnection):
    """To the door on this machine, under the name that holders use."""

    def connect(self) -> None:
        plain = socket.create_connection((loopback(), self.port), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)  # type: ignore[attr-defined]


def write_metrics(federation: Federation, status: Status) -> Path:
    """Replace ``metrics.prom`` as a whole, as the textfile collector asks for."""
    path = federation.folder / METRICS
    write_public(path, exposition(status, time.time()).encode())
    return path


def exposition(status: Status, moment: float) -> str:
    """The metrics as text; a holder's name cannot contain what would have to be escaped."""
    running = sum(not run.over for run in status.runs)
    failed = sum(run.over and run.status != "finished:completed" for run in status.runs)
    rows: list[tuple[str, str, list[tuple[str, int]]]] = [
        ("confide_up", "1 when the SuperLink and the door are well.", [("", not status.trouble)]),
        ("confide_checked_seconds", "When this was measured (Unix time).", [("", round(moment))]),
        (
            "confide_holder_connected",
            "1 for each holder that is connected.",
            [(_label(h), h.state == "connected") for h in status.holders],
        ),
        (
            "confide_holder_days_left",
            "Days until a holder's key stops to count.",
            [(_label(h), h.days_left) for h in status.holders],
        ),
        (
            "confide_certificate_days_left",
            "Days until the door's certificate ends.",
            [("", status.certificate_days_left)],
        ),
        ("confide_runs_running", "Runs that have not ended.", [("", running)]),
        ("confide_runs_failed", "Runs that Flower calls failed or stopped.", [("", failed)]),
    ]
    lines = []
    for name, says, samples in rows:
        lines += [f"# HELP {name} {says}", f"# TYPE {name} gauge"]
        lines += [f"{name}{label} {int(value)}" for label, value in samples]
    return "\n".join(lines) + "\n"


def _label(holder: HolderState) -> str:
    return f'{{holder="{holder.name}"}}'


def _holders(federation: Federation, nodes: Mapping[int, flower.Node]) -> list[HolderState]:
    today = datetime.now(UTC).date()
    by_key = {member.key: member.node for member in members(federation)}
    known = read_known(federation)
    found = []
    for holder in federation.holders.values():
        number = by_key.get(holder.key)
        node = nodes.get(number) if number is not None else None
        if holder.revoked:
            state = "revoked"
        elif holder.expires < today:
            state = "expired"
        elif node is None or node.status == "registered":
            state = "never-seen"
        else:
            state = "connected" if node.online else "away"
        left = (holder.expires - today).days
        one = known.get(holder.name, Known())
        told = f"{one.fault} in {one.run}" if one.fault else ""
        found.append(
            HolderState(
                name=holder.name,
                state=state,
                node=number,
                days_left=left,
                ledger=told,
                made_here=holder.made_here,
                signs=bool(holder.signing) and not holder.revoked,
            )
        )
    return found
