"""Spelling to phonemes: the words of the CMU pronouncing dictionary.

Kept are words of two or more plain letters with their first pronunciation, without stress marks.
A keyed hash of the word puts each into one of three parts: the central part is public, for
pre-training without privacy; the private part is for the holders; the test part is held out of
both. Each word is a person of its own.

Source: the CMU pronouncing dictionary, http://www.speech.cs.cmu.edu/cgi-bin/cmudict.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ...common.text.readers import Record
from .source import Split

PARTS = ("central", "private", "test")
# Of 100 words: to the central part those below the first number, to the test part those above
# the second.
_CENTRAL_BELOW, _TEST_FROM = 25, 90
_WORD = re.compile(r"[a-z]{2,}")


def read_pronunciations(folder: Path) -> Split:
    """The private and the test part."""
    records = _all(folder)
    return Split(*([r for r in records if part_of(r.text) == part] for part in PARTS[1:]))


def read_central(folder: Path) -> list[Record]:
    """The part for pre-training, which shares no word with the others."""
    return [record for record in _all(folder) if part_of(record.text) == "central"]


def part_of(word: str) -> str:
    """Which of PARTS a word belongs to; it depends on nothing but its letters."""
    place = int.from_bytes(hashlib.sha256(f"cmudict:{word}".encode()).digest()[:8]) % 100
    central, private, test = PARTS
    return central if place < _CENTRAL_BELOW else test if place >= _TEST_FROM else private


def parse_pronunciations(content: str) -> list[Record]:
    """Lines of a word, its phonemes and perhaps a comment; further pronunciations are left out."""
    records: dict[str, Record] = {}
    for line in content.splitlines():
        word, *phonemes = line.split("#")[0].split() or [""]
        if _WORD.fullmatch(word) and word not in records:
            target = " ".join(phoneme.rstrip("012") for phoneme in phonemes)
            records[word] = Record(word, target, word)
    return list(records.values())


def _all(folder: Path) -> list[Record]:
    return parse_pronunciations((folder / "cmudict.dict").read_text(encoding="utf-8"))
