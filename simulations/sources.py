"""Public text for simulations: the rated sentences of VADER as labelled records.

Each sentence has the mean rating of 15 to 20 people, from -4 to 4. Sentences rated between
-0.5 and 0.5 say nothing clear and are left out, which leaves 2,788 sentences of 497 NYT
editorials and 10,043 movie reviews; the sign of the rating is the label. The person is the
article (the part of the id before the underscore); a movie review is a person of its own.

Source: Hutto and Gilbert, "VADER", ICWSM 2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..common.errors import ConfideError, nearest
from ..common.text.readers import Record
from .assets import ASSETS

# Below this, in either direction, a mean rating shows no clear sentiment.
CLEAR_RATING = 0.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of an asset that holds ratings."""

    asset: str
    file: str


SOURCES: Mapping[str, Source] = {
    "nyt": Source(asset="vader", file="nytEditorialSnippets_GroundTruth.txt"),
    "movies": Source(asset="vader", file="movieReviewSnippets_GroundTruth.txt"),
}


def source_named(name: str) -> Source:
    """The source of that name; ``data.unknown-source`` when there is none."""
    if name not in SOURCES:
        raise ConfideError(
            "data.unknown-source", f"No source is called {name!r}.", nearest(name, SOURCES)
        )
    return SOURCES[name]


def load_source(name: str) -> list[Record]:
    """The records of a source whose asset was fetched; ``assets.missing`` when it was not."""
    source = source_named(name)
    path = ASSETS[source.asset].folder / source.file
    if not path.is_file():
        raise ConfideError(
            "assets.missing",
            f"The text of {name!r} is not in the cache ({path}).",
            f"Run confide assets fetch {source.asset}.",
        )
    return parse_ratings(path.read_text(encoding="utf-8"))


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
