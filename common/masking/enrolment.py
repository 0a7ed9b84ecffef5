"""The files by which holders come into secure sums: a request each, and the roster of all.

An ``Enrolment`` is what a holder made on its own machine gives away of it: its name, and the public
halves of the key that it connects by and of the key that it signs sums with. It is signed by the
latter, so that nobody else's name or node can be put to that key. ``confide client enrol`` writes
it, the coordinator reads it.

The roster's file has names and keys alone. Its digest and words are no part of it: whoever reads
them reads what is computed from the members that are shown, never what somebody wrote beside them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from ..errors import ConfideError, nearest
from .keys import SIGNATURE_BYTES, SIGNING_BYTES, Identity, Member, Roster, hashed, spoken

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_REQUEST, _ROSTER = "confide-request/1", "confide-roster/1"
_MOST_BYTES = 1024 * 1024

_REQUEST_HEAD = """\
# The request of {name}, made by `confide client enrol`: public halves of keys, no secret.
# The coordinator takes it: `confide server provision DIR --add {name} --request FILE`.
"""
_ROSTER_HEAD = """\
# Who takes part in the secure sums of this federation: names and public keys, no secret.
# `confide client roster FILE` shows its twelve words, which all administrators compare by
# telephone, and the line for policy.toml.
"""


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a holder says of its own keys, signed.

    Attributes:
        node: the public key that it connects by (P-384), as one line of OpenSSH's form.
        signing: the public key of its signatures (Ed25519, 32 bytes).
        signature: over all of this, by that key.
    """

    name: str
    node: str
    signing: bytes
    signature: bytes

    @classmethod
    def of(cls, identity: Identity, node: str) -> Enrolment:
        member = identity.member
        signature = identity.sign(_about(member, node))
        return cls(name=member.name, node=node, signing=member.signing, signature=signature)

    def to_text(self) -> str:
        """As a file has it."""
        keys = {"signing": self.signing.hex(), "signature": self.signature.hex()}
        table = {"schema": _REQUEST, "name": self.name, "node": self.node, **keys}
        return _REQUEST_HEAD.format(name=self.name) + tomli_w.dumps(table)


def read_request(path: Path) -> Enrolment:
    """Read and check a request; nothing is repaired.

    Raises:
        ConfideError: ``request.missing``, ``request.format``, ``request.unknown-key``, or
            ``request.signature`` for one that the owner of the signing key did not make.
    """
    table = _table(path, "request", _REQUEST, ("name", "node", "signing", "signature"))
    request = Enrolment(
        name=_name(path, "request", table["name"]),
        node=_node(path, table["node"]),
        signing=_bytes(path, "request", "signing", table["signing"], SIGNING_BYTES),
        signature=_bytes(path, "request", "signature", table["signature"], SIGNATURE_BYTES),
    )
    member = Member(request.name, request.signing)
    try:
        member.check(request.signature, _about(member, request.node))
    except ConfideError:
        raise ConfideError(
            "request.signature",
            f"{path} was changed, or the owner of its signing key did not make it.",
            "Ask the holder for its request again, by another way.",
        ) from None
    return request


def roster_text(roster: Roster) -> str:
    """The roster as a file that people can read, in the order of names."""
    rows = [{"name": one.name, "signing": one.signing.hex()} for one in roster.members]
    return _ROSTER_HEAD + tomli_w.dumps({"schema": _ROSTER, "members": rows})


def read_roster(path: Path) -> Roster:
    """Read a roster's file; members may stand in any order.

    Raises:
        ConfideError: ``roster.missing``, ``roster.format``, ``roster.unknown-key``, or
            ``roster.twice`` for a name or a key that two members have.
    """
    rows = _table(path, "roster", _ROSTER, ("members",))["members"]
    if not isinstance(rows, list) or not rows:
        raise _wrong(path, "roster", "members", rows, "a list of [[members]]")
    members = [_member(path, row) for row in rows]
    for what, values in (
        ("name", [one.name for one in members]),
        ("key", [one.signing.hex() for one in members]),
    ):
        again = sorted({value for value in values if values.count(value) > 1})
        if again:
            who = [one.name for one in members if again[0] in (one.name, one.signing.hex())]
            raise ConfideError(
                "roster.twice",
                f"{path}: the {what} {again[0]} is there {len(who)} times, for {', '.join(who)}.",
                "Ask the coordinator for the roster again; sign nothing with this one.",
            )
    return Roster(members)


def in_words(roster: Roster) -> list[str]:
    """What people need of a roster, a line each: members, digest, twelve words, policy's line."""
    width = max((len(one.name) for one in roster.members), default=0)
    return [
        *(f"{one.name:<{width}}  {one.signing.hex()}" for one in roster.members),
        f"{len(roster)} members, sha256:{roster.digest}",
        f"words: {spoken(roster.digest)}",
        f'policy.toml: roster = "sha256:{roster.digest}"',
    ]


def roster_table(roster: Roster) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "members": {one.name: one.signing.hex() for one in roster.members},
        "digest": f"sha256:{roster.digest}",
        "words": spoken(roster.digest),
    }


def _member(path: Path, row: Any) -> Member:
    if not isinstance(row, dict) or row.keys() != {"name", "signing"}:
        raise _wrong(path, "roster", "members", row, "a table of name and signing")
    name = _name(path, "roster", row["name"])
    return Member(name, _bytes(path, "roster", "signing", row["signing"], SIGNING_BYTES))


def _about(member: Member, node: str) -> bytes:
    return hashed(_REQUEST, member.name, member.signing.hex(), node).encode()


def _table(path: Path, kind: str, schema: str, wanted: tuple[str, ...]) -> Mapping[str, Any]:
    """The file's table, which has these keys and no other; ``kind`` is what complaints begin
    with."""
    try:
        if path.exists() and not path.is_file():
            raise OSError(EINVAL, "no file")
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfideError(
            f"{kind}.missing", f"{path} cannot be read: {error.strerror}.", "Check its path."
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfideError(f"{kind}.format", f"{path} is not TOML: {error}.") from None
    if len(raw) > _MOST_BYTES:
        raise ConfideError(f"{kind}.format", f"{path} is larger than {_MOST_BYTES} bytes.")
    if table.get("schema") != schema:
        raise _wrong(path, kind, "schema", table.get("schema"), repr(schema))
    for key in table:
        if key not in ("schema", *wanted):
            raise ConfideError(
                f"{kind}.unknown-key", f"{path}: unknown key {key!r:.80}.", nearest(key, wanted)
            )
    for key in wanted:
        if key not in table:
            raise ConfideError(f"{kind}.format", f"{path} has no {key}.", "Ask for it again.")
    return table


def check_name(name: Any, code: str, where: str = "") -> str:
    """A member's name that is one: ASCII, so that no two look the same.

    Raises:
        ConfideError: ``code``.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfideError(
            code, f"{where}{name!r:.80} cannot be a holder's name.", "Use 1 to 32 of a-z 0-9 . _ -"
        )
    return name


def _name(path: Path, kind: str, value: Any) -> str:
    return check_name(value, f"{kind}.format", f"{path}: ")


def _bytes(path: Path, kind: str, key: str, value: Any, count: int) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * count}}}", value):
        raise _wrong(path, kind, key, value, f"{2 * count} hexadecimal digits in lower case")
    return bytes.fromhex(value)


def _node(path: Path, value: Any) -> str:
    """A public key of P-384, written in the one way that there is."""
    try:
        key = load_ssh_public_key(str(value).encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        if line == value:
            return line
    raise _wrong(path, "request", "node", value, "a public key of P-384 in OpenSSH's form")


def _wrong(path: Path, kind: str, key: str, value: object, wanted: str) -> ConfideError:
    return ConfideError(
        f"{kind}.format",
        f"{path}: {key} = {value!r:.100} is not {wanted}.",
        "Ask for the file again; write nothing into it by hand.",
    )
