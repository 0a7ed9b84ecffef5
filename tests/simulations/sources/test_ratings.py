"""Rated sentences become labelled records."""

from __future__ import annotations

from confide.common.text.readers import Record
from confide.simulations.sources.ratings import parse_ratings

CONTENT = (
    "1_1\t1.5\tIt's \u201cgood\u201d.\r\n1_2\t0.5\tSo so.\r\n12_1\t-0.6\tBad\there.\r\n7\t-0.5\tX\n"
)


def test_the_sign_is_the_label_and_the_unclear_are_left_out() -> None:
    assert parse_ratings(CONTENT) == [
        Record("It's \u201cgood\u201d.", "positive", "1"),
        Record("Bad\there.", "negative", "12"),
    ]


def test_an_id_without_an_underscore_is_a_person_of_its_own() -> None:
    assert parse_ratings("7\t2\tGood.") == [Record("Good.", "positive", "7")]
