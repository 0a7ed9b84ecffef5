"""Who is in a secure sum, by keys that the holders made themselves.

An ``Identity`` is a holder's signing key (Ed25519, RFC 8032). It stays on the holder's machine; its
public half and the holder's name make a ``Member``, and all members make the ``Roster``. The
coordinator hands the roster round and nobody trusts it for that: the administrators compare its
digest once, by telephone or on paper, and each writes it into its policy.

A ``SealingKey`` is what seeds of masks are sealed to (HPKE, RFC 9180, in base mode with the hybrid
of ML-KEM-768 and X25519, HKDF-SHA256 and ChaCha20-Poly1305: what is recorded today stays closed to
a later quantum computer as well). It is made for one run, signed by the identity, and destroyed
when the run can open nothing any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from ..errors import ConfideError
from .ring import SEED_BYTES

SIGNING_BYTES, SIGNATURE_BYTES = 32, 64
_KEM_BYTES, _CURVE_BYTES = 1184, 32
SEALING_BYTES = _KEM_BYTES + _CURVE_BYTES  # of a public key
_SECRET_BYTES = 64 + _CURVE_BYTES  # ML-KEM's seed and X25519's scalar
SEALED_BYTES = 1088 + _CURVE_BYTES + SEED_BYTES + 16  # encapsulations, seed, tag
MOST_NAME = 64
MOST_MEMBERS = 4096  # of a sum that does not wrap (``common.privacy.shares``)

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
# Words that are said easily on the telephone: consonant, vowel, consonant, vowel, consonant, of 16
# bits each (the scheme of Wilkerson 2009, "A Proposal for Proquints", arXiv:0901.4016).
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"
_WORDS = 12


class Identity:
    """A holder's signing key, with the name that it is known by."""

    def __init__(self, name: str, secret: bytes) -> None:
        """``secret`` is the 32 bytes that ``new_secret`` made."""
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    @staticmethod
    def new_secret() -> bytes:
        return Ed25519PrivateKey.generate().private_bytes_raw()

    @property
    def member(self) -> Member:
        return Member(self.name, self._key.public_key().public_bytes_raw())

    def sign(self, what: bytes) -> bytes:
        return self._key.sign(what)


@dataclass(frozen=True)
class Member:
    """A holder as the others know it: its name, and the key that checks its signatures."""

    name: str
    signing: bytes

    def check(self, signature: bytes, what: bytes) -> None:
        """Refuse what this member did not sign.

        Raises:
            ConfideError: ``sum.signature``.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.signing).verify(signature, what)
        except (InvalidSignature, ValueError):
            raise ConfideError("sum.signature", f"{self.name} did not sign this.") from None


class Roster:
    """All members, in the order of their names; equal members make an equal roster.

    Raises:
        ConfideError: ``sum.roster`` where a name or a key is there twice, or is none, or where
            there are more than ``MOST_MEMBERS``.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(sorted(members, key=lambda one: one.name))
        if len(self.members) > MOST_MEMBERS:
            raise _no_roster(f"no sum takes more than {MOST_MEMBERS} members")
        self._by_name = {one.name: one for one in self.members}
        if len(self._by_name) != len(self.members) or len(
            {one.signing for one in self.members}
        ) != len(self.members):
            raise _no_roster("a name or a key is there twice")
        for one in self.members:
            if not 0 < len(one.name.encode()) <= MOST_NAME or len(one.signing) != SIGNING_BYTES:
                raise _no_roster("a member has no name, or no key")

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def member(self, name: str) -> Member:
        """The member of that name.

        Raises:
            ConfideError: ``sum.stranger``.
        """
        if name not in self._by_name:
            raise ConfideError("sum.stranger", f"{name!r:.80} is not in the roster.")
        return self._by_name[name]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all members, in hex: what the administrators compare."""
        rows = [[one.name, one.signing.hex()] for one in self.members]
        return hashed("confide-roster/1", rows)

    def to_bytes(self) -> bytes:
        """As a message carries it."""
        return b"".join(named(one.name) + one.signing for one in self.members)

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """Undo ``to_bytes``.

        Raises:
            ConfideError: ``sum.roster`` or ``sum.malformed``.
        """
        reader = Reader(data)
        members = list[Member]()
        while not reader.ended and len(members) <= MOST_MEMBERS:
            members.append(Member(reader.name(), reader.take(SIGNING_BYTES)))
        return cls(members)


class SealingKey:
    """The key of one run that seeds are sealed to."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` is what ``new_secret`` made.

        Raises:
            ConfideError: ``sum.no-key`` for other bytes.
        """
        if len(secret) != _SECRET_BYTES:
            raise ConfideError("sum.no-key", "The run's key is damaged.")
        kem = MLKEM768PrivateKey.from_seed_bytes(secret[:-_CURVE_BYTES])
        curve = X25519PrivateKey.from_private_bytes(secret[-_CURVE_BYTES:])
        self.public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        self._key = MLKEM768X25519PrivateKey(kem, curve)

    @staticmethod
    def new_secret() -> bytes:
        kem = MLKEM768PrivateKey.generate().private_bytes_raw()
        return kem + X25519PrivateKey.generate().private_bytes_raw()

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """The seed that ``seal`` sealed to this key for ``info``.

        Raises:
            ConfideError: ``sum.sealed``.
        """
        try:
            seed = _SUITE.decrypt(sealed, self._key, info=info)
        except (InvalidTag, ValueError):
            seed = b""
        if len(seed) != SEED_BYTES:
            raise ConfideError("sum.sealed", "A seed was not sealed to this key for this sum.")
        return seed


def seal(seed: bytes, public: bytes, info: bytes) -> bytes:
    """``SEALED_BYTES`` that only the owner of ``public`` opens, and only for ``info``.

    Raises:
        ConfideError: ``sum.opener`` for a public key that is none.
    """
    try:
        kem = MLKEM768PublicKey.from_public_bytes(public[:_KEM_BYTES])
        curve = X25519PublicKey.from_public_bytes(public[_KEM_BYTES:])
        return _SUITE.encrypt(seed, MLKEM768X25519PublicKey(kem, curve), info=info)
    except ValueError:
        raise ConfideError("sum.opener", "An opener's sealing key is none.") from None


def spoken(digest: str) -> str:
    """A digest (hex) as twelve words for the telephone: its first 192 bits."""
    number = int(digest[: 4 * _WORDS], 16)
    return " ".join(_word(number >> 16 * place & 0xFFFF) for place in reversed(range(_WORDS)))


def _word(bits: int) -> str:
    places = ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS))
    return "".join(letters[bits >> shift & len(letters) - 1] for shift, letters in places)


def hashed(kind: str, *facts: object) -> str:
    """SHA-256 (hex) of a kind and plain facts, each kind in a space of its own."""
    return sha256(json.dumps([kind, *facts], sort_keys=True).encode()).hexdigest()


class Reader:
    """Takes bytes apart from front to end.

    Raises:
        ConfideError: ``sum.malformed`` where they end too early, or hold no name.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise ConfideError("sum.malformed", "A message about a secure sum ends too early.")
        self._at += count
        return piece

    def name(self) -> str:
        """A name, behind its length."""
        raw = self.take(self.take(1)[0])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ConfideError("sum.malformed", "A name is not UTF-8.") from None


def named(name: str) -> bytes:
    """A name behind its length, as ``Reader.name`` takes it."""
    raw = name.encode()
    return bytes([len(raw)]) + raw


def _no_roster(why: str) -> ConfideError:
    return ConfideError("sum.roster", f"This is no roster: {why}.")
