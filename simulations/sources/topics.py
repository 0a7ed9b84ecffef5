"""Topics of newswires and newsgroup posts, with the split that everybody reports on.

The files are tables of Orange: three lines of header, then class and text, divided by a tab. The
text was made lower case and stripped of all but letters by whoever made the collection. Nobody is
named, so each record is a person of its own. A text of the training split that stands in the test
split too is left out of training.

Source: Cardoso-Cachopo, "Improving Methods for Single-label Text Categorization", 2007.
"""

from __future__ import annotations

from pathlib import Path

from ...common.text.readers import Record
from .source import Split

_HEADER_LINES = 3


def read_topics(folder: Path, *, name: str) -> Split:
    """The two files of a collection."""
    training, test = (
        parse_topics((folder / f"{name}-{part}.tab").read_text(encoding="utf-8"), part)
        for part in ("train", "test")
    )
    tested = {record.text for record in test}
    return Split([record for record in training if record.text not in tested], test)


def parse_topics(content: str, part: str) -> list[Record]:
    """The records of one file; their persons are called by the part and the line."""
    records = []
    for number, line in enumerate(content.split("\n")[_HEADER_LINES:], start=_HEADER_LINES + 1):
        if line.strip():
            label, text = line.split("\t")
            records.append(Record(text.strip(), label, f"{part}-{number}"))
    return records
