"""How the resident starts: everything that root or the network is needed for, then neither.

Order: the socket is made and given away; the network is taken away; root is given up; the policy is
read; what is printed from then on goes nowhere; only then are torch and the models' libraries
imported, so that no line of theirs ever runs with a network or as root, and no thread of theirs
is there when the kernel isolates one.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from ...common.machine.processes import end_with_parent
from .enrol import check_keys
from .isolation import isolate
from .journal import Journal, silence
from .unix_socket import listen
from .users import User, become

EXIT_CUT_SHORT = 75  # EX_TEMPFAIL of sysexits.h
_FOR_OTHERS = 0o077  # nothing that a resident writes


@dataclass(frozen=True, kw_only=True)
class Residence:
    """Where a resident lives.

    Attributes:
        name: of the holder; its updates carry it.
        user: whom to become, and
        group: whose members may come to the socket; both only where root starts it.
    """

    name: str
    data: Path
    policy: Path
    socket: Path
    ledger: Path
    user: User | None = None
    group: int = -1
    allow_network: bool = False


def run(residence: Residence) -> None:
    """Serve until a signal asks to stop, and end the process.

    Raises:
        ConfideError: ``resident.*``, ``user.*``, ``policy.*``, ``ledger.*``, ``join.keys-open`` or
            ``data.missing-file``, before anything is served: without its ledger what was spent on
            the text is unknown.
    """
    listener, locks = _settle(residence)
    check_keys(residence.ledger, None, None)  # of whoever this is now
    from ...common.privacy.ledger import Ledger  # brings numpy, and with it threads
    from ..guard.policy_file import load_policy
    from ..text.taken import take_in, was_taken_in

    load_policy(residence.policy)  # a mistake is said now, while there is somebody to read it
    Ledger.open(residence.ledger, create=False).close()
    if not was_taken_in(residence.ledger):
        take_in(residence.data, residence.ledger)
    journal = Journal("resident")
    journal.write("start", name=residence.name, network_taken_by=locks or "NOTHING")
    silence()
    status = 1
    try:
        status = _serve(residence, listener, locks, journal)
    except Exception as error:  # noqa: BLE001 - silenced: the journal is the only one to tell
        missing = error.name if isinstance(error, ImportError) else None
        journal.write("failed", problem=type(error).__name__, module=missing)
    finally:
        # Not by the interpreter's own end: a thread may still be in torch.
        os._exit(status)


def _settle(residence: Residence) -> tuple[socket.socket, tuple[str, ...]]:
    user = residence.user
    listener = listen(residence.socket, uid=user.uid if user else -1, gid=residence.group)
    locks = isolate(allow_network=residence.allow_network)
    if user is not None:
        become(user)
    os.umask(_FOR_OTHERS)
    end_with_parent()
    return listener, locks


def _serve(
    residence: Residence, listener: socket.socket, locks: tuple[str, ...], journal: Journal
) -> int:
    from .resident import Handler, Resident

    journal.take_logging("confide")
    handler = Handler(
        name=residence.name,
        data=residence.data,
        policy=residence.policy,
        ledger=residence.ledger,
    )
    resident = Resident(
        listener,
        handler.answer,
        lambda: {**handler.report(), "network_taken_by": list(locks)},
        journal,
        handler.own_report,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, resident.stop)
    journal.write("ready", socket=str(residence.socket))
    finished = resident.serve()
    journal.write("stop", task_in_hand="finished" if finished else "cut short, charged")
    return 0 if finished else EXIT_CUT_SHORT
