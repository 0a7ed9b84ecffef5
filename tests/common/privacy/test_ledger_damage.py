"""Tampering and damage: found when a ledger is opened, or without any effect on what it says."""

# ruff: noqa: S608 - the values in these statements are the tests' own

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy import chain
from confide.common.privacy.ledger import Charge, Ledger, verify
from confide.common.privacy.plan import Plan

PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=10.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=1000,
    delta=1e-5,
)
ROUNDS, ENTRIES = 4, 9  # made, and two of each round
REPLY = b"update" * 10
NUMBERS = range(ENTRIES)
SOME_BYTES = 37  # every so many of the file's bytes


def task(number: int) -> Charge:
    return Charge(run="run", round=number, task_hash=f"task-{number}", plan=PLAN)


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(ConfideError) as caught:
        yield
    assert caught.value.code == code


@pytest.fixture
def path(in_memory: Path) -> Path:
    return in_memory / "ledger.sqlite"


@pytest.fixture
def booked(path: Path) -> Path:
    with Ledger.open(path) as ledger:
        for k in range(ROUNDS):
            ledger.charge(task(k), limit=None)
            ledger.release(f"task-{k}", REPLY, "keyed-hash")
    return path


def edit(path: Path, *statements: str) -> None:
    """What someone with a database editor can do; the triggers are no obstacle to them."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.executescript("DROP TRIGGER entries_stay; DROP TRIGGER entries_last;")
    edit_again(path, *statements)


def edit_again(path: Path, *statements: str) -> None:
    """The triggers are gone."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        for statement in statements:
            sql.execute(statement)
        sql.commit()


SWAP = (
    "UPDATE entries SET number = 1000 WHERE number = 2",
    "UPDATE entries SET number = 2 WHERE number = 4",
    "UPDATE entries SET number = 4 WHERE number = 1000",
)
TAMPERING = {
    "less noise was used": ("UPDATE entries SET payload = replace(payload, '10.0', '99.0')",),
    "a middle entry removed": ("DELETE FROM entries WHERE number = 3",),
    "the tail removed": ("DELETE FROM entries WHERE number > 4", "DELETE FROM replies"),
    "the tail removed, the count mended": (
        "DELETE FROM entries WHERE number > 4",
        "DELETE FROM replies",
        "UPDATE head SET entries = 5",
    ),
    "everything removed": ("DELETE FROM entries",),
    "two entries swapped": SWAP,
    "an entry repeated at the end": (
        "INSERT INTO entries SELECT 9, payload, hash FROM entries WHERE number = 8",
        "UPDATE head SET entries = 11",
    ),
    "another hash": ("UPDATE entries SET hash = lower(hex(randomblob(32))) WHERE number = 5",),
    "an entry moved to another row": ("UPDATE entries SET number = 1000 WHERE number = 8",),
    "the head row gone": ("DELETE FROM head",),
    "the head row of another type": ("UPDATE head SET entries = 'ten'",),
    "a payload of another type": ("UPDATE entries SET payload = x'00' WHERE number = 5",),
    "a kept reply exchanged": ("UPDATE replies SET body = x'00'",),
    "a kept reply of another type": ("UPDATE replies SET body = 5",),
    "a kept reply gone": ("DELETE FROM replies WHERE number = 4",),
    "a reply that nobody released": ("INSERT INTO replies VALUES (99, 'task-9', x'00')",),
    "a table gone": ("DROP TABLE head",),
}


def test_an_untouched_ledger_is_sound(booked: Path) -> None:
    edit(booked)
    assert verify(booked).ok


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_noticed_when_opened(booked: Path, how: str) -> None:
    edit(booked, *TAMPERING[how])
    with refused("ledger.corrupt"):
        Ledger.open(booked)
    verdict = verify(booked)
    assert not verdict.ok
    assert verdict.problem


def forge(path: Path, number: int) -> str:
    """Rewrite one charge with a hash that fits it; returns that hash."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        query = "SELECT payload FROM entries WHERE number = ?"
        text = sql.execute(query, (number,)).fetchone()[0].replace("10.0", "99.0")
        digest = sha256(text.encode()).hexdigest()
        sql.execute("DROP TRIGGER entries_stay")
        change = "UPDATE entries SET payload = ?, hash = ? WHERE number = ?"
        sql.execute(change, (text, digest, number))
        sql.commit()
    return digest


def test_a_forged_entry_with_a_hash_of_its_own_breaks_the_chain(booked: Path) -> None:
    forge(booked, 3)
    with refused("ledger.corrupt"):
        Ledger.open(booked)


def test_an_entry_is_written_in_one_way_only() -> None:
    """So that the bytes of an entry follow from what it says, for whoever checks an export."""
    payload = {"format": chain.FORMAT, "key": "k", "ledger": "x", "number": 0, "state": "created"}
    payload["previous"] = chain.NO_HASH
    text = chain.canonical(payload)
    for other in (text.replace(":", ": "), text.replace("created", "\\u0063reated")):
        with refused("ledger.corrupt"):
            chain.Book().take(0, other, sha256(other.encode()).hexdigest())
    assert chain.Book().take(0, text, sha256(text.encode()).hexdigest()).payload == payload


def test_an_entry_forged_under_an_open_ledger_is_noticed(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.charge(task(0), limit=None)
        assert len(ledger.steps()) == 1
        digest = forge(path, 1)
        ledger._sql.execute("UPDATE head SET hash = ?", (digest,))
        with refused("ledger.corrupt"):
            ledger.charge(task(1), limit=None)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_flipped_bit_anywhere_in_an_entry_or_its_hash_is_noticed(
    booked: Path, number: int
) -> None:
    with Ledger.open(booked) as ledger:
        entry = ledger.entries()[number]
    whole, chance = booked.read_bytes(), random.Random(number)
    for text in (chain.canonical(entry.payload).encode() + entry.hash.encode(),):
        start = whole.index(text)
        for place in range(start, start + len(text)):
            flip(booked, whole, place, 1 << chance.randrange(8))
            with refused("ledger.corrupt"):
                Ledger.open(booked)


@pytest.mark.parametrize("number", NUMBERS)
def test_no_entry_can_be_removed(booked: Path, number: int) -> None:
    edit(booked, f"DELETE FROM entries WHERE number = {number}")
    with refused("ledger.corrupt"):
        Ledger.open(booked)
    with refused("ledger.corrupt"):  # the gap closed and the count mended
        edit_again(
            booked,
            f"UPDATE entries SET number = number - 1 WHERE number > {number}",
            f"UPDATE head SET entries = {ENTRIES - 1},"
            f" hash = (SELECT hash FROM entries WHERE number = {ENTRIES - 2})",
        )
        Ledger.open(booked)


@pytest.mark.parametrize("first", NUMBERS)
def test_no_two_entries_can_change_places(booked: Path, first: int) -> None:
    whole = booked.read_bytes()
    for second in range(first + 1, ENTRIES):
        booked.write_bytes(whole)
        edit(
            booked,
            f"UPDATE entries SET number = 1000 WHERE number = {first}",
            f"UPDATE entries SET number = {first} WHERE number = {second}",
            f"UPDATE entries SET number = {second} WHERE number = 1000",
            f"UPDATE head SET hash = (SELECT hash FROM entries WHERE number = {ENTRIES - 1})",
        )
        with refused("ledger.corrupt"):
            Ledger.open(booked)


@pytest.mark.parametrize("kept", NUMBERS)
def test_a_cut_end_is_noticed_or_lacks_a_receipts_head(booked: Path, kept: int) -> None:
    """With a head row and replies made to match, no file can show it: the receipt does."""
    with Ledger.open(booked) as ledger:
        heads = [entry.hash for entry in ledger.entries()]
    edit(booked, f"DELETE FROM entries WHERE number >= {kept}")
    with refused("ledger.corrupt"):
        Ledger.open(booked)
    edit_again(
        booked,
        f"DELETE FROM replies WHERE number >= {kept}",
        f"UPDATE head SET entries = {kept}, hash = '{heads[kept - 1] if kept else chain.NO_HASH}'",
    )
    for number, head in enumerate(heads):
        assert verify(booked, known_head=head).ok == (number < kept)


def test_a_whole_older_copy_lacks_the_head_of_every_later_receipt(
    path: Path, in_memory: Path
) -> None:
    copies, heads = [], []
    for k in range(ROUNDS):
        with Ledger.open(path) as ledger:
            ledger.charge(task(k), limit=None)
            heads.append(ledger.receipt(PLAN.delta, "run").head)
            ledger.release(f"task-{k}", REPLY)
        copies.append(shutil.copy(path, in_memory / f"copy-{k}.sqlite"))
    for k, copy in enumerate(copies):
        sound = [verify(copy, known_head=head).ok for head in heads]
        assert sound == [number <= k for number in range(ROUNDS)]


def flip(path: Path, whole: bytes, place: int, bit: int) -> None:
    damaged = bytearray(whole)
    damaged[place] ^= bit
    path.write_bytes(damaged)


def told(path: Path) -> object:
    """All that a ledger says, or the code with which it is refused."""
    try:
        with Ledger.open(path, create=False) as opened:
            replies = [opened.replay(f"task-{k}") for k in range(ROUNDS)]
            return opened.entries(), opened.steps(), opened.identity, opened.identity_key, replies
    except ConfideError as error:
        return error.code


def flips(path: Path, places: range) -> None:
    """One bit of each of these bytes: refused when opened, or without any effect."""
    sound, whole, chance = told(path), path.read_bytes(), random.Random(1)
    noticed = 0
    for place in places:
        flip(path, whole, place % len(whole), 1 << chance.randrange(8))
        outcome = told(path)
        assert outcome in ("ledger.corrupt", "ledger.write", sound), place
        noticed += outcome != sound
    assert noticed > 0.02 * len(places)  # most of a small file is unused


def test_a_flipped_bit_anywhere_is_noticed_or_without_effect(booked: Path) -> None:
    flips(booked, range(random.randrange(SOME_BYTES), booked.stat().st_size, SOME_BYTES))


def test_a_damaged_schema_that_is_no_text_is_named_as_damage(booked: Path) -> None:
    whole = booked.read_bytes()
    booked.write_bytes(whole.replace(b"TABLE entries", b"TABLE ent\xe5ies"))
    with refused("ledger.corrupt"):
        Ledger.open(booked)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_flipped_bit_in_every_byte_is_noticed_or_without_effect(booked: Path) -> None:
    flips(booked, range(3 * booked.stat().st_size))


@pytest.mark.parametrize("length", [0, 1, 100, 4096, -4096, -1])
def test_a_file_cut_short_is_never_a_fresh_start(booked: Path, length: int) -> None:
    booked.write_bytes(booked.read_bytes()[:length])
    with refused("ledger.corrupt"):
        Ledger.open(booked)


def test_a_removed_tail_is_noticed_by_a_ledger_that_is_open(booked: Path) -> None:
    with Ledger.open(booked) as ledger:
        edit(
            booked,
            "DELETE FROM entries WHERE number > 4",
            "UPDATE head SET entries = 5, hash = (SELECT hash FROM entries WHERE number = 4)",
        )
        with refused("ledger.corrupt"):
            ledger.charge(task(9), limit=None)


def test_an_older_copy_looks_sound_but_lacks_the_head_of_a_receipt(
    booked: Path, in_memory: Path
) -> None:
    backup = in_memory / "backup.sqlite"
    shutil.copy(booked, backup)
    with Ledger.open(booked) as ledger:
        old = ledger.head
        ledger.charge(task(9), limit=None)
        new = ledger.head
    assert verify(backup).ok
    assert verify(booked, known_head=old).ok
    verdict = verify(backup, known_head=new)
    assert not verdict.ok
    assert new in verdict.problem
