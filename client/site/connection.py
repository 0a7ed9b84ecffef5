"""How a holder stands with its coordinator: what the gateway tells the resident, for the status.

The gateway alone knows it, and it is the process that may be hostile. So a word of it is one of a
list of codes, and nothing else of it is kept, shown or acted upon: the status is all that it
changes. The resident counts the time itself; where the gateway ends, or is started again and again,
the newest word stays.

| what the gateway sees | the code |
|---|---|
| an answer of the coordinator's | ``connected`` |
| its certificate is not the kit's | ``connection.certificate`` |
| the kit's key is not taken | ``connection.key`` |
| nor is it where the clocks differ by minutes | ``connection.clock`` |
| no address for its name | ``connection.name`` |
| no answer at it; none by way of a proxy | ``connection.no-answer``; ``connection.proxy`` |
| an answer that is an error | ``connection.coordinator`` |
| itself ending | ``gateway.stopped``, ``gateway.ended`` |
| a kit that is no good | ``kit.expired`` and others |
| (nothing is heard of it) | ``gateway.silent`` |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from ...common.errors import ConfideError
from . import unix_socket
from .journal import Journal

CONNECTED, SILENT = "connected", "gateway.silent"
STOPPED, ENDED = "gateway.stopped", "gateway.ended"
LONGEST_WORD = 32  # bytes
SILENT_SECONDS = 120.0  # a gateway that is connected is heard every few seconds, at worst every 50
_AGAIN_SECONDS = 15.0  # the same word is repeated, for a resident that was started meanwhile
_TELL_SECONDS = 2.0

# A code -> what it means, and what to do. No word of anybody else's is ever shown.
MEANINGS = {
    CONNECTED: ("The coordinator answers.", ""),
    "connection.key": (
        "The coordinator does not take this kit's key: it was revoked, replaced, or has expired.",
        "Enrol again in a new folder (`confide client enrol`), and have the kit renewed with that"
        " request.",
    ),
    "connection.clock": (
        "The coordinator's clock and this machine's differ by minutes, and so no key is taken.",
        "Set the clock (`timedatectl`).",
    ),
    "connection.certificate": (
        "What answers does not show the certificate that the kit's ca.crt has signed.",
        "Let the coordinator look at its door (`confide server status`); if all is well there,"
        " somebody is in between: a proxy that opens TLS has to let this host pass.",
    ),
    "connection.name": (
        "The coordinator's name has no address here.",
        "Check the name in kit.toml (`fleet`) and this machine's DNS.",
    ),
    "connection.no-answer": (
        "Nobody answers at the coordinator's address.",
        "Ask whether its server runs, and whether a firewall lets you out to its port.",
    ),
    "connection.proxy": (
        "The proxy that this machine's environment names does not lead to the coordinator.",
        "Check https_proxy, or name the coordinator's host in no_proxy, where join is started.",
    ),
    "connection.coordinator": (
        "The coordinator answers with an error; for a minute after a restart this is normal.",
        "Else ask the coordinator: its SuperLink may be down, or its Flower of another version.",
    ),
    STOPPED: ("The gateway was stopped.", "Start it: `confide client join`, or its service."),
    ENDED: ("The gateway ended by itself.", "Its log says why; `join` starts it again."),
    SILENT: (
        "Nothing is heard of a gateway, which has the network.",
        "Start it: `confide client join`, or its service; its log says more.",
    ),
    "kit.expired": (
        "The kit's last day is over.",
        "Enrol again in a new folder (`confide client enrol`), and have the kit renewed with that"
        " request.",
    ),
    "kit.missing": ("A file of the kit cannot be read.", "The gateway's log says which."),
    "kit.owner": ("A file of the kit is not its owner's.", "The gateway's log says which."),
    "kit.format": ("A file of the kit is not as it was written.", "Unpack the kit again."),
    "kit.key": ("The kit's key is none.", "Enrol again in a new folder."),
}


class Connection:
    """What the resident heard of it. Safe to be used by several threads.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._code = SILENT
        self._since = self._heard = clock()

    def hear(self, word: bytes) -> None:
        """The gateway's newest word.

        Raises:
            ConfideError: ``socket.malformed`` for what is not on the list; nothing is kept of it.
        """
        code = word.decode("ascii", errors="replace")
        if code not in MEANINGS:
            raise ConfideError("socket.malformed", "What a gateway tells is a code of the list.")
        with self._lock:
            now = self._clock()
            if (self._now()[0] == CONNECTED) != (code == CONNECTED):
                self._since = now
            self._code, self._heard = code, now

    def report(self) -> dict[str, Any]:
        """``connected``, the ``code``, and the Unix time ``since`` when it is, or is not."""
        with self._lock:
            code, since = self._now()
            ago = self._clock() - since
        return {
            "connected": code == CONNECTED,
            "code": code,
            "since": round(time.time() - ago),
        }

    def _now(self) -> tuple[str, float]:
        """The code and since when; who said that all is well, and then nothing more, is silent."""
        if self._code == CONNECTED and self._clock() - self._heard > SILENT_SECONDS:
            return SILENT, self._heard
        return self._code, self._since


class Teller:
    """Tells the resident at ``socket``, in the gateway: what is new at once, else now and then."""

    def __init__(
        self, socket: Path, journal: Journal, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket, self._journal, self._clock = socket, journal, clock
        self._code = ""
        self._told = float("-inf")

    def tell(self, code: str) -> None:
        """One of ``MEANINGS``; a resident that is not there is told the next time."""
        now = self._clock()
        if code != self._code:
            self._journal.write("connection", code=code)
        elif now - self._told < _AGAIN_SECONDS:
            return
        self._code = code
        with suppress(ConfideError, OSError):
            with unix_socket.connect(self._socket, _TELL_SECONDS) as sock:
                unix_socket.send(sock, unix_socket.WORD, code.encode("ascii"))
                sock.recv(1)  # until it was heard, and hung up on
            self._told = now

    def ended(self) -> None:
        """The gateway ends and nobody asked it to: the reason, if it told one, stays."""
        self.tell(ENDED if self._code in ("", CONNECTED) else self._code)


def in_words(report: Any) -> tuple[bool, list[str]]:
    """Whether a resident's ``connection`` says that it is connected, and lines that say it."""
    found = report if isinstance(report, dict) else {}
    code, since = str(found.get("code")), found.get("since")
    connected = found.get("connected") is True
    means, hint = MEANINGS.get(code, ("The resident does not say it.", "Start it anew."))
    when = ""
    if isinstance(since, int):
        when = time.strftime(", since %Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
    said = f"{'yes' if connected else 'NO'}{when}: {means}"
    if connected:
        return True, [said]
    return False, [f"{said} [{code if code in MEANINGS else 'unknown'}]", hint]
