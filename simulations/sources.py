"""Public text for simulations: the rated sentences of VADER, and GLUE and SuperGLUE by name.

A benchmark (``glue/sst2``, ``superglue/boolq``) gives its training rows, from the folder
``benchmarks/glue`` or ``benchmarks/superglue`` of the cache when there is one, else from the Hub.

VADER: each sentence has the mean rating of 15 to 20 people, from -4 to 4. Sentences rated between
-0.5 and 0.5 say nothing clear and are left out, which leaves 2,788 sentences of 497 NYT
editorials and 10,043 movie reviews; the sign of the rating is the label. The person is the
article (the part of the id before the underscore); a movie review is a person of its own.

Sources: ``common/text/benchmarks.py``; Hutto and Gilbert, "VADER", ICWSM 2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..common.errors import ConfideError, nearest
from ..common.paths import cache_dir
from ..common.text.benchmarks import BENCHMARKS, load_benchmark
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


def source_named(name: str) -> Source | None:
    """The source of that name, None for a benchmark; ``data.unknown-source`` for neither."""
    if name in SOURCES:
        return SOURCES[name]
    if name in BENCHMARKS:
        return None
    raise ConfideError(
        "data.unknown-source",
        f"No source is called {name!r}.",
        nearest(name, [*SOURCES, *BENCHMARKS]),
    )


def load_source(name: str) -> list[Record]:
    """The records of a source whose asset was fetched, or a benchmark's training rows.

    Raises:
        ConfideError: ``data.unknown-source``, ``assets.missing`` for an asset that was not
            fetched, and what ``load_benchmark`` raises.
    """
    source = source_named(name)
    if source is None:
        folder = cache_dir() / "benchmarks" / name.split("/")[0]
        return load_benchmark(name, "train", folder if folder.is_dir() else None)
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
