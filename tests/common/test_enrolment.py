"""Requests and rosters as files: what was changed, or is odd, is refused by name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from confide.common.errors import ConfideError
from confide.common.machine.kit import public_line
from confide.common.masking.enrolment import (
    Enrolment,
    in_words,
    read_request,
    read_roster,
    roster_text,
)
from confide.common.masking.keys import Identity, Roster, spoken

NODE = public_line(ec.generate_private_key(ec.SECP384R1())).decode()
OTHER = public_line(ec.generate_private_key(ec.SECP384R1())).decode()
OF_P256 = public_line(ec.generate_private_key(ec.SECP256R1())).decode()


def identity(name: str) -> Identity:
    return Identity(name, Identity.new_secret())


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return put(tmp_path / "request.toml", Enrolment.of(identity("north"), NODE).to_text())


def test_a_request_is_read_as_it_was_made(tmp_path: Path) -> None:
    made = Enrolment.of(identity("north"), NODE)
    assert read_request(put(tmp_path / "r", made.to_text())) == made


CHANGES: list[tuple[str, Callable[[str], str], str]] = [
    ("another's name", lambda t: t.replace('name = "north"', 'name = "south"'), "signature"),
    ("another's node", lambda t: t.replace(NODE, OTHER), "signature"),
    ("another's signing key", lambda t: with_key(t, identity("x").member.signing), "signature"),
    ("no point of the curve", lambda t: with_key(t, b"\xff" * 32), "signature"),
    ("an odd name", lambda t: t.replace('"north"', '"nоrth"'), "format"),  # noqa: RUF001 - Cyrillic
    ("a long name", lambda t: t.replace('"north"', f'"{"n" * 33}"'), "format"),
    ("a path", lambda t: t.replace('"north"', '"../up"'), "format"),
    ("no name", lambda t: t.replace('name = "north"\n', ""), "format"),
    ("another curve", lambda t: t.replace(NODE, OF_P256), "format"),
    ("a comment behind the key", lambda t: t.replace(NODE, f"{NODE} me"), "format"),
    ("no key", lambda t: t.replace(NODE, "ssh"), "format"),
    ("a number", lambda t: t.replace(f'"{NODE}"', "3"), "format"),
    ("upper case", lambda t: t.replace('signing = "', 'signing = "A'), "format"),
    ("a short signature", lambda t: t.replace('signature = "', 'signature = "" # '), "format"),
    ("another schema", lambda t: t.replace("request/1", "request/2"), "format"),
    ("a key more", lambda t: t + 'secret = "x"\n', "unknown-key"),
    ("no TOML", lambda t: t + "=", "format"),
    ("too large", lambda t: t + "#" * 2**20, "format"),
]


def with_key(text: str, key: bytes) -> str:
    return text.replace(tomllib.loads(text)["signing"], key.hex())


@pytest.mark.parametrize(("change", "code"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_request_that_its_owner_did_not_sign_is_refused(
    request_file: Path, change: Callable[[str], str], code: str
) -> None:
    before = request_file.read_text()
    assert change(before) != before
    request_file.write_text(change(before))
    with pytest.raises(ConfideError) as caught:
        read_request(request_file)
    assert caught.value.code == f"request.{code}"
    assert str(request_file) in caught.value.message


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for read, kind in ((read_request, "request"), (read_roster, "roster")):
        for path in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(ConfideError) as caught:
                read(path)
            assert caught.value.code == f"{kind}.missing"


@pytest.fixture
def roster() -> Roster:
    return Roster(identity(name).member for name in ("south", "north", "east"))


def test_a_roster_is_read_back_in_any_order_and_shown_by_digest_and_words(
    roster: Roster, tmp_path: Path
) -> None:
    text = roster_text(roster)
    assert read_roster(put(tmp_path / "r", text)) == roster
    head, *members = text.split("[[members]]\n")
    assert len(members) == 3, "each member stands in lines of its own"
    turned = "[[members]]\n".join([head, *(f"{m.strip()}\n\n" for m in reversed(members))])
    assert read_roster(put(tmp_path / "t", turned)).digest == roster.digest
    said = in_words(roster)
    assert [line.split()[0] for line in said[:3]] == ["east", "north", "south"]
    assert said[-1] == f'policy.toml: roster = "sha256:{roster.digest}"'
    assert spoken(roster.digest) in said[-2]
    assert len(spoken(roster.digest).split()) == 12


def test_the_file_has_no_digest_that_somebody_could_read_in_place_of_the_computed_one(
    roster: Roster,
) -> None:
    text = roster_text(roster)
    assert roster.digest not in text
    assert spoken(roster.digest).split()[0] not in text


def of_row(name: str, key: str) -> str:
    return f'[[members]]\nname = "{name}"\nsigning = "{key}"\n'


SCHEMA = 'schema = "confide-roster/1"\n'
A, B = "aa" * 32, "bb" * 32
WRONG = [
    (of_row("north", A) + of_row("north", B), "roster.twice", "name north"),
    (of_row("north", A) + of_row("south", A), "roster.twice", "north, south"),
    (of_row("North", A), "roster.format", "'North'"),
    (of_row("n" * 33, A), "roster.format", "nnn"),
    (of_row("", A), "roster.format", "''"),
    (of_row("north", A.upper()), "roster.format", "signing"),
    (of_row("north", A[1:]), "roster.format", "signing"),
    (of_row("north", A) + "more = 1\n", "roster.format", "members"),
    ('[[members]]\nname = "north"\n', "roster.format", "members"),
    ("members = []\n", "roster.format", "members"),
    ("members = [3]\n", "roster.format", "members"),
    ("[members]\nnorth = 1\n", "roster.format", "members"),
    ("", "roster.format", "members"),
    (f'digest = "{A}"\n' + of_row("north", A), "roster.unknown-key", "'digest'"),
]


@pytest.mark.parametrize(("rows", "code", "named"), WRONG, ids=[w[0][:30] + w[1] for w in WRONG])
def test_a_roster_that_is_odd_is_refused_by_name(
    tmp_path: Path, rows: str, code: str, named: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        read_roster(put(tmp_path / "roster.toml", SCHEMA + rows))
    assert caught.value.code == code
    assert named in caught.value.message


def test_another_schema_is_refused(tmp_path: Path) -> None:
    for text in (of_row("north", A), SCHEMA.replace("1", "2") + of_row("north", A)):
        with pytest.raises(ConfideError, match=r"roster\.format.*schema"):
            read_roster(put(tmp_path / "roster.toml", text))


def test_a_pipe_or_a_device_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfideError, match=r"roster\.missing"):
        read_roster(tmp_path / "pipe")
