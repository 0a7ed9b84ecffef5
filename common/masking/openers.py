"""A secure sum in two messages: contribute, open.

Each contributor hides its vector by one keystream for each opener, and seals each keystream's seed
to its opener. An opener, itself one of the holders, is then shown who contributed, and answers once
with the sum of its keystreams over exactly these. The coordinator subtracts. All openers must
answer, for the very same contributors, or nothing comes out.

Guarantee: let one opener be honest. Whatever the coordinator, all other openers and any other
contributors do, all that they learn of the honest vectors is their sum over the one set that this
opener answered for, which has ``least`` members of the roster or more, all of whom signed this very
call. Every other combination keeps a keystream of that opener, which is uniform to everybody else
(computationally: HPKE, ChaCha20 and Ed25519). With ``colluding`` + 1 openers, one is honest if at
most ``colluding`` holders collude. docs/secure-sum.md has the argument.

What it does not do: say who sent a wrong vector. Sources: DisAgg (MLSys 2026) and e-SeaFL (Behnia
et al., ACSAC 2024), whose assisting nodes are the openers; helper shares as seeds from Prio
(Corrigan-Gibbs and Boneh 2017; the VDAF of the IETF); one set for each call as in Willow and OPA
(both CRYPTO 2025).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np

from ..errors import ConfideError
from .keys import (
    SEALED_BYTES,
    SEALING_BYTES,
    SIGNATURE_BYTES,
    SIGNING_BYTES,
    Identity,
    Member,
    Reader,
    Roster,
    SealingKey,
    hashed,
    named,
    seal,
)
from .ring import CHECKS, MOST_WORDS, SEED_BYTES, Words, add_mask, from_bytes, to_bytes

MOST_OPENERS = 64
FEWEST = 2  # contributions: a sum of one is no sum


@dataclass(frozen=True)
class Opener:
    """A holder that helps to open the sums of a run: its sealing key, signed by itself."""

    name: str
    sealing: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @classmethod
    def of(cls, identity: Identity, run: str, key: SealingKey) -> Opener:
        signature = identity.sign(_about_key(run, identity.name, key.public))
        return cls(identity.name, key.public, signature)

    def check(self, member: Member, run: str) -> None:
        """Refuse a sealing key that the member did not sign for this run.

        Raises:
            ConfideError: ``sum.signature``.
        """
        member.check(self.signature, _about_key(run, self.name, self.sealing))

    def to_bytes(self) -> bytes:
        return named(self.name) + self.sealing + self.signature


@dataclass(frozen=True)
class Card:
    """What a holder says of itself before a run: who it is, and its sealing key for the run. In a
    simulation, where nobody compares a roster, the cards make it."""

    member: Member
    opener: Opener

    @classmethod
    def of(cls, identity: Identity, run: str, key: SealingKey) -> Card:
        return cls(identity.member, Opener.of(identity, run, key))

    def to_bytes(self) -> bytes:
        return self.member.signing + self.opener.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, run: str) -> Card:
        """Undo ``to_bytes``, and check that the card was made for the run.

        Raises:
            ConfideError: ``sum.malformed`` or ``sum.signature``.
        """
        reader = Reader(data)
        signing = reader.take(SIGNING_BYTES)
        opener = _opener(reader)
        if not reader.ended:
            raise ConfideError("sum.malformed", "A card has more than a card.")
        member = Member(opener.name, signing)
        opener.check(member, run)
        return cls(member, opener)


@dataclass(frozen=True)
class Call:
    """What a request says of its sum; a contributor signs it, an opener answers for it.

    Attributes:
        request: hash of the whole request: adapter, settings, round, roster and openers.
        roster: who may contribute and open.
        openers: all of them must answer.
        least: the fewest contributions that are opened.
        colluding: how many holders may collude with the coordinator; one opener more than that.
        size: words of a vector, check words included.
    """

    run: str
    request: str
    roster: Roster
    openers: tuple[Opener, ...]
    least: int
    colluding: int
    size: int

    @cached_property
    def digest(self) -> str:
        openers = [[one.name, one.sealing.hex()] for one in self.openers]
        facts = (self.run, self.request, self.roster.digest, openers)
        return hashed("confide-call/1", *facts, self.least, self.colluding, self.size)

    def check(self) -> None:
        """Refuse a call that no holder takes part in.

        Raises:
            ConfideError: ``sum.call``, ``sum.stranger`` or ``sum.signature``.
        """
        names = {one.name for one in self.openers}
        sound = (
            0 <= self.colluding < MOST_OPENERS
            and len(names) == len(self.openers) == self.colluding + 1
            and max(FEWEST, self.colluding + 1) <= self.least <= len(self.roster)
            and CHECKS < self.size <= MOST_WORDS
        )
        if not sound:
            raise ConfideError(
                "sum.call",
                f"No sum has {len(names)} openers against {self.colluding} who may collude, at"
                f" least {self.least} contributions of {len(self.roster)}, and {self.size} words.",
                "There is one opener more than holders that may collude, and no more contributions"
                " are needed than there are members.",
            )
        for one in self.openers:
            one.check(self.roster.member(one.name), self.run)

    def info(self, contributor: str, opener: str) -> bytes:
        """What a seed is sealed for: it opens in no other place."""
        return hashed("confide-seed/1", self.digest, contributor, opener).encode()


@dataclass(frozen=True)
class Statement:
    """What a contributor signs, and all that openers see of a contribution: who, of which call, of
    which masked vector (SHA-256), and the seeds sealed to the openers, in their order."""

    name: str
    masked: bytes
    sealed: tuple[bytes, ...] = field(repr=False)
    signature: bytes = field(default=b"", repr=False)

    def body(self, call: Call) -> bytes:
        sealed = [sha256(one).hexdigest() for one in self.sealed]
        return hashed(
            "confide-statement/1", self.name, call.digest, self.masked.hex(), sealed
        ).encode()

    def check(self, call: Call) -> None:
        """Refuse a statement that a member of the roster did not sign for this call.

        Raises:
            ConfideError: ``sum.stranger``, ``sum.call`` or ``sum.signature``.
        """
        if len(self.sealed) != len(call.openers):
            raise ConfideError("sum.call", f"{self.name} sealed seeds to others than the openers.")
        call.roster.member(self.name).check(self.signature, self.body(call))

    def to_bytes(self) -> bytes:
        return named(self.name) + self.masked + self.signature + b"".join(self.sealed)


def contribute(identity: Identity, call: Call, vector: Words) -> tuple[Statement, bytes]:
    """Hide a vector (``call.size``,): the statement, and the masked bytes that leave.

    The ledger was charged before the vector was made, and the call was checked. Seeds are drawn
    afresh each time, so that not even a ledger put back from a backup uses a keystream twice.
    """
    if vector.dtype != np.uint32 or len(vector) != call.size:
        raise ConfideError("sum.size", f"The vector has {len(vector)} words, the sum {call.size}.")
    masked, sealed = vector.copy(), []
    for opener in call.openers:
        seed = secrets.token_bytes(SEED_BYTES)
        add_mask(masked, seed)
        sealed.append(seal(seed, opener.sealing, call.info(identity.name, opener.name)))
    payload = to_bytes(masked)
    bare = Statement(identity.name, sha256(payload).digest(), tuple(sealed))
    signature = identity.sign(bare.body(call))
    return Statement(bare.name, bare.masked, bare.sealed, signature), payload


@dataclass(frozen=True)
class Openable:
    """A set of contributions that an opener may answer for, checked. ``digest`` names the set;
    it must be durably booked under the call before ``answer`` leaves."""

    call: Call
    digest: str
    _seeds: tuple[bytes, ...] = field(repr=False)

    def answer(self) -> bytes:
        """The sum of this opener's keystreams over the set."""
        total = np.zeros(self.call.size, dtype=np.uint32)
        for seed in self._seeds:
            add_mask(total, seed)
        return to_bytes(total)


def openable(name: str, key: SealingKey, call: Call, statements: Sequence[Statement]) -> Openable:
    """Check everything that an opener insists on; nothing is answered yet. The call was checked.

    Raises:
        ConfideError: ``sum.no-opener``, ``sum.twice``, ``sum.too-few``, and what
            ``Statement.check`` raises; ``sum.sealed`` where a contributor's seed does not open.
            It names nobody, since an opener might name whom it likes.
    """
    place = next((i for i, one in enumerate(call.openers) if one.name == name), None)
    if place is None or call.openers[place].sealing != key.public:
        raise ConfideError("sum.no-opener", f"{name} is no opener of this sum.")
    names = [one.name for one in statements]
    if len(set(names)) != len(names):
        raise ConfideError("sum.twice", "A contributor is named twice.")
    if len(names) < call.least:
        raise ConfideError(
            "sum.too-few", f"{len(names)} contributed; fewer than {call.least} are never opened."
        )
    seeds = []
    for one in statements:
        one.check(call)
        seeds.append(key.unseal(one.sealed[place], call.info(one.name, name)))
    bodies = sorted(one.body(call).decode() for one in statements)
    return Openable(call, hashed("confide-set/1", call.digest, bodies), tuple(seeds))


def combine(call: Call, masked: Iterable[bytes], opened: Mapping[str, bytes]) -> Words:
    """The coordinator's part: the sum (``call.size``,) of what was contributed, less what was
    opened.

    Raises:
        ConfideError: ``sum.opener-silent`` unless every opener answered; ``wire.size``.
    """
    if set(opened) != {one.name for one in call.openers}:
        raise ConfideError("sum.opener-silent", "Not every opener answered.")
    total = np.zeros(call.size, dtype=np.uint32)
    for payload in masked:
        total += from_bytes(payload, call.size)
    for payload in opened.values():
        total -= from_bytes(payload, call.size)
    return total


def openers_from_bytes(data: bytes) -> tuple[Opener, ...]:
    """Undo the joined ``Opener.to_bytes``.

    Raises:
        ConfideError: ``sum.malformed``.
    """
    reader, found = Reader(data), list[Opener]()
    while not reader.ended and len(found) <= MOST_OPENERS:
        found.append(_opener(reader))
    return tuple(found)


def statement_from_bytes(data: bytes, openers: int) -> Statement:
    """The one statement that an update carries.

    Raises:
        ConfideError: ``sum.malformed``.
    """
    found = statements_from_bytes(data, openers)
    if len(found) != 1:
        raise ConfideError("sum.malformed", "The update has no statement, or several.")
    return found[0]


def statements_from_bytes(data: bytes, openers: int) -> tuple[Statement, ...]:
    """Undo the joined ``Statement.to_bytes`` of a call with so many openers.

    Raises:
        ConfideError: ``sum.malformed``.
    """
    reader, found = Reader(data), list[Statement]()
    while not reader.ended:
        name, masked = reader.name(), reader.take(sha256().digest_size)
        signature = reader.take(SIGNATURE_BYTES)
        sealed = tuple(reader.take(SEALED_BYTES) for _ in range(openers))
        found.append(Statement(name, masked, sealed, signature))
    return tuple(found)


def _opener(reader: Reader) -> Opener:
    return Opener(reader.name(), reader.take(SEALING_BYTES), reader.take(SIGNATURE_BYTES))


def _about_key(run: str, name: str, public: bytes) -> bytes:
    return hashed("confide-sealing/1", run, name, public.hex()).encode()
