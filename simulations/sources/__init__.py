"""Public text for simulations: a table of sources, each read by a module of this folder.

The modules say how a source is cleaned and what its labels, persons and test split are; the table
says how many records are left. A benchmark (``glue/sst2``, ``superglue/boolq``) is a source, too:
its training rows, from the folder ``benchmarks/glue`` or ``benchmarks/superglue`` of the cache when
there is one, else from the Hub. Never used at a real holder, whose text common.text reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...common.errors import ConfideError, nearest
from ...common.paths import cache_dir
from ...common.text.benchmarks import BENCHMARKS, load_benchmark
from ..assets import ASSETS
from .papers import answers, read_papers, summaries
from .plays import read_plays
from .pronunciations import read_pronunciations
from .ratings import read_ratings
from .source import Source, Split
from .topics import read_topics
from .translations import read_translations

__all__ = ["SOURCES", "Source", "Split", "load_source", "source_named"]


def _translations(language: str, training: int) -> Source:
    read = partial(read_translations, language=language)
    return Source(assets=("django", "wagtail"), read=read, training=training)


SOURCES: Mapping[str, Source] = {
    "nyt": Source(
        assets=("vader",),
        read=partial(read_ratings, file="nytEditorialSnippets_GroundTruth.txt"),
        training=2788,
    ),
    "movies": Source(
        assets=("vader",),
        read=partial(read_ratings, file="movieReviewSnippets_GroundTruth.txt"),
        training=10043,
    ),
    "r8": Source(
        assets=("reuters",), read=partial(read_topics, name="reuters-r8"), training=5480, test=2189
    ),
    "r52": Source(
        assets=("reuters",), read=partial(read_topics, name="reuters-r52"), training=6524, test=2568
    ),
    "newsgroups": Source(
        assets=("newsgroups",),
        read=partial(read_topics, name="20newsgroups"),
        training=11286,
        test=7528,
    ),
    "shakespeare": Source(assets=("shakespeare",), read=read_plays, training=27623),
    "cmudict": Source(assets=("cmudict",), read=read_pronunciations, training=76293, test=11650),
    "translate-de": _translations("de", 1766),
    "translate-es": _translations("es", 1556),
    "translate-fr": _translations("fr", 1762),
    "translate-sv": _translations("sv", 1671),
    "summaries": Source(
        assets=("aclsum",), read=partial(read_papers, derive=summaries), training=450, test=300
    ),
    "answers": Source(
        assets=("aclsum",), read=partial(read_papers, derive=answers), training=598, test=397
    ),
}


def source_named(name: str) -> Source:
    """The source or benchmark of that name; ``data.unknown-source`` when there is none."""
    if name in SOURCES:
        return SOURCES[name]
    if name in BENCHMARKS:
        return Source(assets=(), read=partial(_benchmark, name))
    raise ConfideError(
        "data.unknown-source",
        f"No source is called {name!r}.",
        nearest(name, [*SOURCES, *BENCHMARKS]),
    )


def _benchmark(name: str) -> Split:
    folder = cache_dir() / "benchmarks" / name.split("/")[0]
    return Split(load_benchmark(name, "train", folder if folder.is_dir() else None), [])


def load_source(name: str) -> Split:
    """The records of a source whose assets were fetched; ``assets.missing`` when they were not."""
    source = source_named(name)
    for asset in (ASSETS[asset] for asset in source.assets):
        absent = [file for file in asset.files if not (asset.folder / file).is_file()]
        if absent:
            raise ConfideError(
                "assets.missing",
                f"The text of {name!r} is not in the cache ({asset.folder / absent[0]}).",
                f"Run confide assets fetch {' '.join(source.assets)}.",
            )
    return source.read(*(ASSETS[asset].folder for asset in source.assets))
