"""Papers of computational linguistics: summaries of one aspect each, and questions on them.

Each paper has a written summary of its challenge, its approach and its outcome, and its sentences
are marked by what they speak of. Two sources are made of that:

- summaries: the abstract to the summary of one aspect (a part of the original task, which gives
  introduction and conclusion as well, about a thousand words);
- answers, a *derived* set of questions: a question for each aspect over the abstract or the
  conclusion; the answer is the sentences that people marked for it there, word for word. Only
  where they stand in one piece and are not the whole section, so that the answer is one span.

The authors' test split is held out; training and validation are trained on. The person is the
paper.

Source: Takeshita et al., "ACLSum", NAACL 2024.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...common.text.readers import Record
from .source import Split

QUESTIONS: Mapping[str, str] = {
    "challenge": "Which problem does the paper address?",
    "approach": "What do the authors do about it?",
    "outcome": "What do they find?",
}
_SECTIONS = ("abstract", "conclusion")

Derive = Callable[[Mapping[str, Any]], Iterator[Record]]


def read_papers(folder: Path, *, derive: Derive) -> Split:
    """What ``derive`` makes of each paper of the three files."""

    def records(*parts: str) -> list[Record]:
        contents = [(folder / f"{part}.jsonl").read_text(encoding="utf-8") for part in parts]
        lines = [line for content in contents for line in content.split("\n") if line.strip()]
        return [record for line in lines for record in derive(json.loads(line))]

    return Split(records("train", "val"), records("test"))


def summaries(paper: Mapping[str, Any]) -> Iterator[Record]:
    """One record an aspect: its name and the abstract to the summary."""
    abstract = " ".join(paper["sentences"]["abstract"])
    for aspect in QUESTIONS:
        yield Record(f"{aspect}: {abstract}", paper["summary"][aspect].strip(), paper["id"])


def answers(paper: Mapping[str, Any]) -> Iterator[Record]:
    """A record for each question that has one answer in one piece of a section."""
    for section in _SECTIONS:
        sentences = paper["sentences"][section]
        for aspect, question in QUESTIONS.items():
            marked = [i for i, mark in enumerate(paper["highlights"][aspect][section]) if mark]
            whole = len(marked) == len(sentences)
            if marked and not whole and marked[-1] - marked[0] == len(marked) - 1:
                answer = " ".join(sentences[i] for i in marked)
                text = f"question: {question} context: {' '.join(sentences)}"
                yield Record(text, answer, paper["id"])
