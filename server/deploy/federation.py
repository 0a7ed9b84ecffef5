"""The folder of a federation: what is where, who its holders are, and federation.toml.

``federation.toml`` is the one place that says who may connect; the running server follows it.
Private keys lie in files of their own and are never read here.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import tomli_w

from ...common.errors import ConfideError, nearest
from ...common.machine.kit import ROSTER_FILE
from ...common.machine.paths import write_public
from ...common.machine.processes import at_loopback
from ...common.masking.enrolment import roster_text
from ...common.masking.keys import Member, Roster
from ..senders import NAMELESS

FILE_NAME = "federation.toml"
_SERVICE = "/var/lib/confide-server"  # of deploy/systemd/confide-coordinator.service
# A holder's name goes into file names and the report; NAMELESS is the coordinator's word for a
# holder without one, "server" and "bundle" are what else can be renewed.
_HOLDER = re.compile(rf"(?!{NAMELESS}|server$|bundle$)[a-z0-9][a-z0-9._-]{{0,31}}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

_HEAD = """# The federation {name}, written by `confide server provision`. The ports may be changed
# by hand while `confide server start` is not running (kits name the first one). Holders come in at
# `port`; `superlink-port` is on the loopback alone.
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A holder by its public keys.

    Attributes:
        key: SHA-256 of the public half of what it connects by.
        expires: the last day (UTC) on which the door knows it.
        made_here: whether that key was made in this folder, whose owner may have a copy.
        signing: what its signatures in secure sums are checked by, in hex; empty where the holder
            made none, and takes part in no secure sum.
    """

    name: str
    key: str
    expires: date
    revoked: bool = False
    made_here: bool = True
    signing: str = ""

    def may_connect(self, today: date) -> bool:
        """Whether the key counts on this day."""
        return not self.revoked and today <= self.expires


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A federation's folder. ``bundle`` is the SHA-256 of the one app that it runs."""

    folder: Path
    host: str
    port: int
    superlink_port: int
    bundle: str
    holders: Mapping[str, Holder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """By which ``flwr`` knows it."""
        return re.sub(r"[^a-z0-9-]+", "-", self.folder.name.lower()).strip("-") or "federation"

    @property
    def ca(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    @property
    def app(self) -> Path:
        return self.folder / "bundle"

    @property
    def roster(self) -> Roster:
        """Who takes part in secure sums: all that sent a signing key and were not shut out."""
        return Roster(
            Member(holder.name, bytes.fromhex(holder.signing))
            for holder in self.holders.values()
            if holder.signing and not holder.revoked
        )

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def superlink(self) -> str:
        """The address behind the door."""
        return at_loopback(self.superlink_port)

    def public_key(self, holder: str) -> Path:
        """The public half of a holder's key."""
        return self.folder / "holders" / f"{holder}.pub"

    def kit(self, holder: str) -> Path:
        """What the holder's administrator is given."""
        return self.folder / "kits" / holder

    def active(self) -> list[Holder]:
        """Who may connect now."""
        today = datetime.now(UTC).date()
        return [holder for holder in self.holders.values() if holder.may_connect(today)]

    def with_holder(self, holder: Holder) -> Federation:
        """The same federation with this holder in it."""
        return replace(self, holders={**self.holders, holder.name: holder})

    def save(self) -> None:
        """Write federation.toml, whole or not at all, and roster.toml from it."""
        holders = {
            holder.name: {
                "key": holder.key,
                "expires": holder.expires,
                "revoked": holder.revoked,
                "made-here": holder.made_here,
                "signing": holder.signing,
            }
            for holder in self.holders.values()
        }
        table = {
            "schema": "confide-federation/1",
            "host": self.host,
            "port": self.port,
            "superlink-port": self.superlink_port,
            "bundle": self.bundle,
            "holders": holders,
        }
        text = _HEAD.format(name=self.name) + tomli_w.dumps(table)
        write_public(self.folder / FILE_NAME, text.encode())
        kits = (self.kit(name) for name in self.holders)
        for place in (self.folder, *(kit for kit in kits if kit.is_dir())):
            if len(self.roster):
                write_public(place / ROSTER_FILE, roster_text(self.roster).encode())
            else:
                (place / ROSTER_FILE).unlink(missing_ok=True)


def load_federation(folder: Path) -> Federation:
    """Read a federation's folder.

    Raises:
        ConfideError: ``federation.missing``, ``federation.owner`` or ``federation.format``.
    """
    folder = folder.expanduser().resolve()
    path = folder / FILE_NAME
    _check_owner(folder)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfideError(
            "federation.missing",
            f"{folder} is not a federation: {path.name} cannot be read ({error.strerror}).",
            "Make one: `confide server provision DIR --host NAME`.",
        ) from None
    except ValueError as error:
        raise _malformed(path, f"is not TOML: {error}") from None
    try:
        found = Federation(
            folder=folder,
            host=check_host(table["host"]),
            port=check_port(table["port"]),
            superlink_port=check_port(table["superlink-port"]),
            bundle=_hash(table["bundle"]),
            holders={name: _holder(name, row) for name, row in table.get("holders", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _malformed(path, f"lacks or misspells {error}") from None
    try:
        found.roster  # noqa: B018 - two holders of one signing key
    except ConfideError as error:
        raise _malformed(path, f"has no sound roster: {error.message}") from None
    return found


def _check_owner(folder: Path) -> None:
    """Root works in no folder of another's, who could turn what it writes to any file by a link."""
    if os.geteuid() != 0 or not folder.is_dir() or folder.stat().st_uid == 0:
        return
    raise ConfideError(
        "federation.owner",
        f"{folder} belongs to another user, in whose folder root writes nothing.",
        f"Run this as that user: runuser -u $(stat -c %U {folder}) -- confide server ...",
    )


def find_federation(given: Path) -> Federation:
    """The federation in a folder, or the one of that name: its folder's, here or where this machine
    keeps its federations, which is ``CONFIDE_FEDERATIONS`` or the service's own folder.

    Raises:
        ConfideError: ``federation.unknown`` for a name that none has, else as ``load_federation``.
    """
    if str(given) != given.name or (given / FILE_NAME).is_file():
        return load_federation(given)
    place = Path(os.environ.get("CONFIDE_FEDERATIONS") or _SERVICE).expanduser()
    manifests = [path for folder in (place, Path()) for path in folder.glob(f"*/{FILE_NAME}")]
    found = {path.parent.name: path.parent for path in manifests}
    if given.name not in found:
        raise ConfideError(
            "federation.unknown",
            f"No federation is called {given.name!r:.80}, neither here nor in {place}.",
            nearest(given.name, found)
            if found
            else "Name its folder, or make one: `confide server provision DIR`.",
        )
    return load_federation(found[given.name])


def check_holder(name: str) -> str:
    """A holder's name that is one.

    Raises:
        ConfideError: ``provision.name``.
    """
    if not isinstance(name, str) or not _HOLDER.fullmatch(name):
        raise ConfideError(
            "provision.name",
            f"{name!r:.80} cannot be a holder's name.",
            "Use 1 to 32 of a-z 0-9 . _ - and no name like node-1, server or bundle.",
        )
    return name


def check_host(host: Any) -> str:
    """The name or address that holders reach the door under.

    Raises:
        ConfideError: ``provision.host``.
    """
    if not isinstance(host, str) or not _HOST.fullmatch(host) or "://" in host:
        raise ConfideError(
            "provision.host",
            f"{host!r:.80} is not a host name or an address.",
            "Write --host fleet.example.org, without https:// and without a port.",
        )
    return host


def check_port(port: Any) -> int:
    """A port.

    Raises:
        ConfideError: ``provision.port``.
    """
    if type(port) is not int or not 1 <= port <= 65535:
        raise ConfideError("provision.port", f"{port!r:.40} is not a port in [1, 65535].")
    return port


def _holder(name: str, row: Mapping[str, Any]) -> Holder:
    expires, revoked = row["expires"], row["revoked"]
    # What an older confide wrote knows of no key that a holder made itself.
    made_here, signing = row.get("made-here", True), row.get("signing", "")
    if type(expires) is not date or type(revoked) is not bool or type(made_here) is not bool:
        raise TypeError(f"holders.{name}")
    return Holder(
        name=check_holder(name),
        key=_hash(row["key"]),
        expires=expires,
        revoked=revoked,
        made_here=made_here,
        signing=_hash(signing) if signing else "",
    )


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _FINGERPRINT.fullmatch(value):
        raise TypeError("64 hexadecimal digits")
    return value


def _malformed(path: Path, what: str) -> ConfideError:
    return ConfideError("federation.format", f"{path} {what}.", "Restore it from a backup.")
