"""The rated sentences of VADER as labelled records.

Each sentence has the mean rating of 15 to 20 people, from -4 to 4. Sentences rated between
-0.5 and 0.5 say nothing clear and are left out; the sign of the rating is the label. The person
is the article (the part of the id before the underscore); a movie review is a person of its own.

Source: Hutto and Gilbert, "VADER", ICWSM 2014.
"""

from __future__ import annotations

from pathlib import Path

from ...common.text.readers import Record
from .source import Split

# Below this, in either direction, a mean rating shows no clear sentiment.
CLEAR_RATING = 0.5


def read_ratings(folder: Path, *, file: str) -> Split:
    """One file of ratings; it has no test split."""
    return Split(parse_ratings((folder / file).read_text(encoding="utf-8")), [])


def parse_ratings(content: str) -> list[Record]:
    """Lines of id, rating and sentence, divided by tabs, to the records that are clear."""
    records = []
    for line in content.split("\n"):
        if not line.strip():
            continue
        key, rating, text = line.split("\t", 2)
        if abs(float(rating)) > CLEAR_RATING:
            label = "positive" if float(rating) > 0 else "negative"
            records.append(Record(text.strip(), label, key.split("_")[0]))
    return records
