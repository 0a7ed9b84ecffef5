"""Compiled catalogues become translation pairs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from confide.common.text.readers import Record
from confide.simulations.sources.translations import read_translations

HEADER = "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"


def write_catalogue(path: Path, entries: dict[str, str]) -> None:
    """A .mo file as msgfmt writes it: magic, revision, count, two tables of (length, offset)."""
    items = sorted({"": HEADER, **entries}.items())
    strings = [side.encode() + b"\0" for column in zip(*items, strict=True) for side in column]
    place = 28 + 8 * len(strings)
    table = b""
    for string in strings:
        table += struct.pack("<2I", len(string) - 1, place)
        place += len(string)
    head = struct.pack("<7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + table + b"".join(strings))


def catalogue(folder: Path, app: str, language: str, **entries: str) -> None:
    write_catalogue(folder / app / "locale" / language / "LC_MESSAGES" / "app.mo", entries)


def read(*folders: Path) -> list[Record]:
    training, test = read_translations(*folders, language="de")
    assert test == []
    return training


def test_the_person_is_the_catalogue_and_what_came_before_is_left_out(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    catalogue(one, "shop", "de", bread="Brot", flour="Mehl")
    catalogue(one, "shop", "fr", bread="pain")
    catalogue(two, "mill", "de", flour="Weizenmehl", stone="Stein")
    assert read(one, two) == [
        Record("bread", "Brot", "one/shop/app"),
        Record("flour", "Mehl", "one/shop/app"),
        Record("stone", "Stein", "two/mill/app"),
    ]


@pytest.mark.parametrize(
    ("english", "other"),
    [
        ("%(count)s loaves", "%(count)s Laibe"),
        ("{count} loaves", "{count} Laibe"),
        ("a loaf", "ein {Laib}"),
        ("a <b>loaf</b>", "ein Laib"),
        ("bread &amp; butter", "Brot"),
        ("two\nlines", "zwei"),
        ("Brot", "Brot"),
        ("N j", "j. N"),
        ("a loaf\0loaves", "ein Laib\0Laibe"),
        ("nothing", ""),
    ],
)
def test_what_is_no_plain_pair_is_left_out(english: str, other: str, tmp_path: Path) -> None:
    catalogue(tmp_path / "one", "", "de", **{english: other, "oven": "Ofen"})
    assert [record.text for record in read(tmp_path / "one")] == ["oven"]


def test_the_context_of_an_entry_is_no_part_of_it(tmp_path: Path) -> None:
    catalogue(tmp_path / "one", "", "de", **{"of an oven\x04door ": "Klappe"})
    assert read(tmp_path / "one") == [Record("door", "Klappe", "one/app")]
