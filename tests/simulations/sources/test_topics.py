"""Tables of topics become labelled records, and the test split stays apart."""

from __future__ import annotations

from pathlib import Path

from confide.common.text.readers import Record
from confide.simulations.sources.topics import parse_topics, read_topics

HEADER = "Category\tText\nd\tstring\nclass\t\n"


def test_class_and_text_are_read_below_the_header() -> None:
    content = HEADER + "\nships\t the harbour was full \nwheat\tit rained\n"
    assert parse_topics(content, "test") == [
        Record("the harbour was full", "ships", "test-5"),
        Record("it rained", "wheat", "test-6"),
    ]


def test_what_is_tested_on_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "mine-train.tab").write_text(HEADER + "a\tone\nb\ttwo\na\tthree\n")
    (tmp_path / "mine-test.tab").write_text(HEADER + "b\ttwo\na\tfour\n")
    training, test = read_topics(tmp_path, name="mine")
    assert [record.text for record in training] == ["one", "three"]
    assert [record.text for record in test] == ["two", "four"]
