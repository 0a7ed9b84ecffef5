"""Papers become summaries and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.text.readers import Record
from confide.simulations.sources.papers import answers, read_papers, summaries

PAPER: dict[str, Any] = {
    "id": "P1",
    "summary": {"challenge": "Bread burns. ", "approach": "They watch.", "outcome": "It rose."},
    "sentences": {
        "abstract": ["Bread burns .", "We watch it .", "With care .", "It rises ."],
        "introduction": ["Long ago ."],
        "conclusion": ["It rose ."],
    },
    "highlights": {
        "challenge": {"abstract": [1, 0, 0, 1], "introduction": [1], "conclusion": [0]},
        "approach": {"abstract": [0, 1, 1, 0], "introduction": [0], "conclusion": [0]},
        "outcome": {"abstract": [0, 0, 0, 0], "introduction": [0], "conclusion": [1]},
    },
}
ABSTRACT = "Bread burns . We watch it . With care . It rises ."


def test_each_aspect_has_its_summary_of_the_abstract() -> None:
    assert list(summaries(PAPER)) == [
        Record(f"challenge: {ABSTRACT}", "Bread burns.", "P1"),
        Record(f"approach: {ABSTRACT}", "They watch.", "P1"),
        Record(f"outcome: {ABSTRACT}", "It rose.", "P1"),
    ]


def test_an_answer_is_one_piece_of_its_section_and_not_the_whole_of_it() -> None:
    (record,) = answers(PAPER)
    assert record.target == "We watch it . With care ."
    assert record.text == f"question: What do the authors do about it? context: {ABSTRACT}"
    assert record.target in record.text


@pytest.mark.parametrize("derive", [summaries, answers])
def test_the_authors_test_split_is_held_out(derive: Any, tmp_path: Path) -> None:
    for part, ids in {"train": "ab", "val": "c", "test": "de"}.items():
        lines = [json.dumps({**PAPER, "id": name}) for name in ids]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    training, test = read_papers(tmp_path, derive=derive)
    assert {record.person for record in training} == {"a", "b", "c"}
    assert {record.person for record in test} == {"d", "e"}
