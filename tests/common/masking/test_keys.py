"""Members, rosters and sealing keys: whoever is not who it says is refused by name."""

from __future__ import annotations

import random
import re

import pytest

from confide.common.errors import ConfideError
from confide.common.masking.keys import (
    MOST_MEMBERS,
    SEALED_BYTES,
    SEALING_BYTES,
    Identity,
    Member,
    Roster,
    SealingKey,
    named,
    seal,
    spoken,
)
from confide.common.masking.openers import Card, Opener
from confide.common.masking.ring import SEED_BYTES
from confide.common.privacy import shares


def identity(name: str) -> Identity:
    return Identity(name, Identity.new_secret())


def roster(*names: str) -> Roster:
    return Roster([identity(name).member for name in names])


def test_a_roster_has_one_digest_whatever_the_order_of_its_members() -> None:
    members = list(roster("a", "b", "c", "d").members)
    digest = Roster(members).digest
    random.Random(1).shuffle(members)
    assert Roster(members).digest == digest == Roster.from_bytes(Roster(members).to_bytes()).digest


def test_another_member_name_or_key_makes_another_digest() -> None:
    members = roster("a", "b").members
    first, second = members
    others = [
        (first,),
        (first, second, identity("c").member),
        (first, Member("B", second.signing)),
        (first, identity("b").member),
        (Member("a", second.signing), Member("b", first.signing)),
    ]
    digests = {Roster(members).digest, *(Roster(other).digest for other in others)}
    assert len(digests) == 1 + len(others)


def test_where_one_name_ends_and_the_next_begins_is_in_the_digest() -> None:
    one, other = identity("x").member.signing, identity("x").member.signing
    assert (
        Roster([Member("ab", one), Member("c", other)]).digest
        != Roster([Member("a", one), Member("bc", other)]).digest
    )


@pytest.mark.parametrize("wrong", ["name", "key", "empty", "long", "short key"])
def test_what_is_no_roster_is_refused(wrong: str) -> None:
    first, second = roster("a", "b").members
    members = {
        "name": [first, Member("a", second.signing)],
        "key": [first, Member("b", first.signing)],
        "empty": [first, Member("", second.signing)],
        "long": [first, Member("b" * 65, second.signing)],
        "short key": [first, Member("b", second.signing[:31])],
    }[wrong]
    with pytest.raises(ConfideError, match=r"sum\.roster"):
        Roster(members)


def test_no_roster_has_more_members_than_a_sum_that_does_not_wrap() -> None:
    assert shares.MOST_MEMBERS == MOST_MEMBERS
    key = identity("a").member.signing
    many = [Member(f"h{i}", i.to_bytes(4, "big") + key[4:]) for i in range(MOST_MEMBERS + 1)]
    assert len(Roster(many[:-1])) == MOST_MEMBERS
    data = b"".join(named(one.name) + one.signing for one in many)
    for made in (lambda: Roster(many), lambda: Roster.from_bytes(data + data)):
        with pytest.raises(ConfideError, match=r"sum\.roster"):
            made()


def test_twelve_words_are_said_easily_and_differ_where_digests_do() -> None:
    digest = roster("a", "b").digest
    words = spoken(digest).split()
    assert len(words) == 12
    assert all(re.fullmatch("([bdfghjklmnprstvz][aiou]){2}[bdfghjklmnprstvz]", w) for w in words)
    assert spoken("0" * 64).split() == ["babab"] * 12
    assert spoken("f" * 64).split() == ["zuzuz"] * 12
    # The published example of the scheme: 127.0.0.1.
    assert spoken("7f000001" + "0" * 56).split()[:2] == ["lusab", "babad"]
    for place in range(48):
        changed = digest[:place] + f"{int(digest[place], 16) ^ 1:x}" + digest[place + 1 :]
        assert spoken(changed) != spoken(digest)


def test_a_seed_opens_for_its_key_and_its_sum_alone() -> None:
    key, other = (SealingKey(SealingKey.new_secret()) for _ in range(2))
    seed = bytes(range(SEED_BYTES))
    sealed = seal(seed, key.public, b"this sum")
    assert (len(sealed), len(key.public)) == (SEALED_BYTES, SEALING_BYTES)
    assert key.unseal(sealed, b"this sum") == seed
    assert seal(seed, key.public, b"this sum") != sealed, "each sealing has a key of its own"
    for wrong in (
        lambda: key.unseal(sealed, b"another sum"),
        lambda: other.unseal(sealed, b"this sum"),
        lambda: key.unseal(sealed[:-1], b"this sum"),
        lambda: key.unseal(b"", b"this sum"),
        lambda: key.unseal(bytes(len(sealed)), b"this sum"),
        lambda: key.unseal(seal(b"short", key.public, b"this sum"), b"this sum"),
    ):
        with pytest.raises(ConfideError, match=r"sum\.sealed"):
            wrong()


@pytest.mark.parametrize("length", [0, 32, SEALING_BYTES - 1, SEALING_BYTES + 1])
def test_a_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ConfideError, match=r"sum\.opener"):
        seal(bytes(SEED_BYTES), bytes(length), b"")


def test_a_card_is_for_one_run_and_one_holder() -> None:
    me, key = identity("me"), SealingKey(SealingKey.new_secret())
    data = Card.of(me, "run-1", key).to_bytes()
    assert Card.from_bytes(data, "run-1") == Card.of(me, "run-1", key)
    with pytest.raises(ConfideError, match=r"sum\.signature"):
        Card.from_bytes(data, "run-2")
    with pytest.raises(ConfideError, match=r"sum\.malformed"):
        Card.from_bytes(data + b"x", "run-1")
    with pytest.raises(ConfideError, match=r"sum\.signature"):
        Opener.of(me, "run-1", key).check(identity("me").member, "run-1")


def test_no_cut_or_altered_card_is_taken_and_nothing_else_is_raised() -> None:
    data = Card.of(identity("me"), "run", SealingKey(SealingKey.new_secret())).to_bytes()
    chance = random.Random(7)
    for _ in range(300):
        spoilt = bytearray(data[: chance.randrange(len(data) + 1)] or b"\0")
        if len(spoilt) == len(data):
            continue
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        with pytest.raises(ConfideError, match=r"sum\."):
            Card.from_bytes(bytes(spoilt), "run")
    for place in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        with pytest.raises(ConfideError, match=r"sum\."):
            Card.from_bytes(bytes(spoilt), "run")


def test_no_secret_is_in_what_is_printed() -> None:
    secret = Identity.new_secret()
    mine, key = Identity("me", secret), SealingKey(SealingKey.new_secret())
    told = f"{mine!r} {mine.member!r} {key!r} {Card.of(mine, 'r', key)!r}"
    assert secret.hex() not in told
    assert repr(secret) not in told
