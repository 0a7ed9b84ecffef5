"""A holder's kit: a folder with what a coordinator hands to a holder, beside the holder's own key.

``server/deploy/provision.py`` writes it, ``client/site/join.py`` reads it. It holds where the
coordinator is, by which certificate it is known, and the bundles that the holder runs; never text,
and no path. The holder made its key there before (``client/site/enrol.py``); in a trial it came
with the kit. What is read here came from somebody else: every key is known, of one type and
bounded, and a private key that others can read is refused. Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from ..errors import ConfideError, nearest
from .paths import write_public, write_secret

SCHEMA = "confide-kit/1"
KIT_FILE = "kit.toml"
CA_FILE = "ca.crt"
KEY_FILE = "node.key"
PUBLIC_FILE = "node.pub"
POLICY_FILE = "policy.toml"
README_FILE = "README.md"
REQUEST_FILE = "request.toml"
ROSTER_FILE = "roster.toml"

_KEYS = ("schema", "name", "coordinator", "fleet", "bundles", "expires")
_MOST_BYTES = 64 * 1024
_MOST_BUNDLES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
_FLEET = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OTHERS = 0o077  # the permission bits of everybody but the owner


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What ``kit.toml`` says.

    Attributes:
        folder: where the kit lies.
        name: of the holder; its updates carry it.
        coordinator: the host whose certificate is expected.
        fleet: ``host:port`` of the one door that holders use.
        bundles: SHA-256 (64 lower-case digits) of each bundle that may run; empty allows none.
        expires: the last day on which the kit is good.
    """

    folder: Path
    name: str
    coordinator: str
    fleet: str
    bundles: tuple[str, ...]
    expires: date

    @property
    def ca(self) -> Path:
        """The certificate (PEM) that signs the coordinator's."""
        return self.folder / CA_FILE

    @property
    def key(self) -> Path:
        """The holder's own private key (PEM, elliptic curve)."""
        return self.folder / KEY_FILE

    @property
    def policy(self) -> Path:
        """The holder's own limits, where it keeps them with the kit; no kit comes with any."""
        return self.folder / POLICY_FILE


def read_kit(folder: Path) -> Kit:
    """Read and check a kit; nothing is repaired.

    Raises:
        ConfideError: ``kit.missing``, ``kit.owner``, ``kit.format``, ``kit.unknown-key`` or
            ``kit.key-mode``.
    """
    table = _table(folder / KIT_FILE)
    for key in table:
        if key not in _KEYS:
            raise ConfideError(
                "kit.unknown-key", f"{folder / KIT_FILE}: unknown key {key!r}.", nearest(key, _KEYS)
            )
    schema = table.get("schema")
    if schema != SCHEMA:
        raise _wrong(folder, "schema", schema, repr(SCHEMA))
    kit = Kit(
        folder=folder,
        name=_matching(folder, table, "name", _NAME, "up to 64 letters, digits, dots, dashes"),
        coordinator=_matching(folder, table, "coordinator", _HOST, "a host's name or address"),
        fleet=_fleet(folder, table),
        bundles=_bundles(folder, table),
        expires=_day(folder, table),
    )
    _check_files(kit)
    return kit


def check_current(kit: Kit, today: date) -> None:
    """Refuse a kit whose last day is over.

    Raises:
        ConfideError: ``kit.expired``.
    """
    if today > kit.expires:
        raise ConfideError(
            "kit.expired",
            f"The kit of {kit.name} was valid until {kit.expires}; today is {today}.",
            "Enrol in a new folder (`confide client enrol`), and have it renewed by that request.",
        )


def read_file(path: Path) -> bytes:
    """A file of a kit, of at most 64 KiB.

    What root reads it hands to the gateway, which has the network. So in a folder that is not
    root's it reads no link, and nothing that belongs to anybody but the folder's owner.

    Raises:
        ConfideError: ``kit.missing``, ``kit.owner`` or ``kit.format``.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            owner = os.fstat(folder).st_uid
            bound = os.O_NOFOLLOW if owner != 0 and os.geteuid() == 0 else 0
            number = os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | bound, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(number, "rb") as file:
            found = os.fstat(number)
            if bound and not (stat.S_ISREG(found.st_mode) and found.st_uid == owner):
                raise _not_the_owners(path)
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_the_owners(path) from None
        raise ConfideError(
            "kit.missing",
            f"{path} cannot be read: {error.strerror}.",
            "Name the folder that the coordinator gave you, unpacked.",
        ) from None
    if len(raw) > _MOST_BYTES:
        raise ConfideError("kit.format", f"{path} is larger than {_MOST_BYTES} bytes.")
    return raw


def write_holder_key(key: Path, public: Path) -> None:
    """Make a holder's pair in the form that Flower's SuperNode and ``flwr supernode`` read."""
    private = ec.generate_private_key(ec.SECP384R1())
    write_secret(key, _in_openssh(private))
    write_public(public, public_line(private) + b"\n")


def read_holder_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A kit's private key, as PEM of either kind.

    Raises:
        ConfideError: ``kit.key``, or as ``read_file``.
    """
    raw = read_file(path)
    load = load_ssh_private_key if b"OPENSSH" in raw[:64] else load_pem_private_key
    try:
        key = load(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfideError(
            "kit.key",
            f"{path} is not an unencrypted private key of an elliptic curve.",
            "Move it away, make another by `confide client enrol`, and let the coordinator renew"
            " the kit with its request.",
        )
    return key


def public_line(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half, as one line without its end."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def in_flowers_form(path: Path) -> bytes:
    """The kit's private key in the one form that Flower reads.

    Raises:
        ConfideError: as ``read_holder_key``.
    """
    return _in_openssh(read_holder_key(path))


def _in_openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def fingerprint(public: Path) -> str:
    """SHA-256 of a public key file: what two people can compare on the telephone."""
    return hashlib.sha256(public.read_bytes().strip()).hexdigest()


def _not_the_owners(path: Path) -> ConfideError:
    return ConfideError(
        "kit.owner",
        f"{path} is no file of the user whose the kit's folder is; root does not read it.",
        f"Look at what it is, then run: chown -R root {path.parent}",
    )


def _table(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(read_file(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfideError(
            "kit.format", f"{path} is not TOML: {error}.", "Unpack the kit again."
        ) from None


def _matching(
    folder: Path, table: Mapping[str, Any], key: str, pattern: re.Pattern[str], wanted: str
) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _wrong(folder, key, value, wanted)
    return value


def _fleet(folder: Path, table: Mapping[str, Any]) -> str:
    wanted = "host:port, with a port from 1 to 65535"
    value = _matching(folder, table, "fleet", _FLEET, wanted)
    if not 1 <= int(value.rpartition(":")[2]) <= 65535:
        raise _wrong(folder, "fleet", value, wanted)
    return value


def _bundles(folder: Path, table: Mapping[str, Any]) -> tuple[str, ...]:
    value = table.get("bundles")
    if (
        not isinstance(value, list)
        or len(value) > _MOST_BUNDLES
        or not all(isinstance(entry, str) and _DIGEST.fullmatch(entry) for entry in value)
    ):
        wanted = f"a list of at most {_MOST_BUNDLES} SHA-256 sums, 64 lower-case digits each"
        raise _wrong(folder, "bundles", value, wanted)
    return tuple(value)


def _day(folder: Path, table: Mapping[str, Any]) -> date:
    value = table.get("expires")
    with suppress(ValueError):
        if isinstance(value, str):
            return date.fromisoformat(value)
    raise _wrong(folder, "expires", value, 'a day such as "2027-01-31"')


def _check_files(kit: Kit) -> None:
    """The files that a holder cannot do without are there, and the key is the owner's alone."""
    for path in (kit.ca, kit.key):
        if not path.is_file():
            raise ConfideError(
                "kit.missing",
                f"The kit has no {path.name}.",
                "Copy the coordinator's files into the folder where `confide client enrol` made"
                f" {KEY_FILE}; without that, ask the coordinator again.",
            )
    mode = kit.key.stat().st_mode & 0o777
    if mode & _OTHERS:
        raise ConfideError(
            "kit.key-mode",
            f"{kit.key} has mode {mode:04o}: others can read the private key.",
            f"Run: chmod 600 {kit.key}; enrol in a new folder if others may have read it.",
        )


def _wrong(folder: Path, key: str, value: object, wanted: str) -> ConfideError:
    return ConfideError(
        "kit.format",
        f"{folder / KIT_FILE}: {key} = {value!r:.100} is not {wanted}.",
        "Unpack the kit again, or ask the coordinator for a new one.",
    )
