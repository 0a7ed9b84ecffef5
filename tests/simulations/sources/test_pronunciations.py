"""Words and phonemes, in three parts that share no word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from confide.common.text.readers import Record
from confide.simulations.sources.pronunciations import (
    PARTS,
    parse_pronunciations,
    part_of,
    read_central,
    read_pronunciations,
)

CONTENT = """bo B OW1
bo(2) B AO1
bo B UW1
bo's B OW1 Z
x EH1 K S
bobo B OW1 B OW0 # name, made up
bo.b B AA1 B
"""


def test_plain_words_keep_their_first_pronunciation_without_stress() -> None:
    assert parse_pronunciations(CONTENT) == [
        Record("bo", "B OW", "bo"),
        Record("bobo", "B OW B OW", "bobo"),
    ]


def test_every_word_lies_in_one_part_in_the_stated_shares(tmp_path: Path) -> None:
    words = [a + b + c for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    lines = [f"{word} AA1\n" for word in words]
    (tmp_path / "cmudict.dict").write_text("".join(lines), encoding="utf-8")
    parts = [read_central(tmp_path), *read_pronunciations(tmp_path)]
    assert sorted(record.text for part in parts for record in part) == words
    sizes = Counter(part_of(word) for word in words)
    assert [len(part) for part in parts] == [sizes[name] for name in PARTS]
    for name, share in zip(PARTS, (0.25, 0.65, 0.1), strict=True):
        assert sizes[name] / len(words) == pytest.approx(share, abs=0.04)


def test_a_words_part_never_changes() -> None:
    expected = {
        "bo": "private",
        "bobo": "private",
        "anna": "private",
        "miller": "central",
        "street": "private",
    }
    assert {word: part_of(word) for word in expected} == expected
