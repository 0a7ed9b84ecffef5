"""Public text for simulations: a table of sources, each read by a module of this folder.

The modules say how a source is cleaned and what its labels, persons and test split are; the table
says how many records are left. A benchmark (``glue/sst2``, ``superglue/boolq``) is a source, too:
its training rows are trained on, its validation rows measured on. They come from a folder in the
Hub's format, else from ``benchmarks/glue`` or ``benchmarks/superglue`` in the cache, else from the
Hub. Sources are never used at a real holder, whose text common.text reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ...common.errors import ConfideError, nearest
from ...common.machine.paths import cache_dir
from ...common.text.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from ..assets import ASSETS
from ..staging import sha256_of
from .papers import answers, read_papers, summaries
from .plays import read_plays
from .pronunciations import read_pronunciations
from .ratings import read_ratings
from .source import Source, Split
from .topics import read_topics
from .translations import read_translations

__all__ = ["SOURCES", "Source", "Split", "fingerprint", "load_source", "source_named"]


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


def source_named(name: str, folder: Path | None = None) -> Source:
    """The source or benchmark of that name; ``folder`` is where a benchmark's suite lies.

    Raises:
        ConfideError: ``data.unknown-source``, or ``data.folder`` for a source that is not a
            benchmark.
    """
    if name in BENCHMARKS:
        return Source(assets=(), read=partial(_benchmark, BENCHMARKS[name], folder))
    if name not in SOURCES:
        raise ConfideError(
            "data.unknown-source",
            f"No source is called {name!r}.",
            nearest(name, [*SOURCES, *BENCHMARKS]),
        )
    if folder is not None:
        raise ConfideError(
            "data.folder",
            f"{folder} is the folder of a benchmark, but the source {name!r} is none.",
            "Leave folder out; `confide assets fetch` brings the text.",
        )
    return SOURCES[name]


def fingerprint(name: str, folder: Path | None = None) -> str:
    """SHA-256 over a benchmark's local files, whose text may change under the same name; ``hub`` if
    there are none; empty for a pinned source."""
    if name not in BENCHMARKS:
        return ""
    place = _place(BENCHMARKS[name], folder)
    if place is None:
        return "hub"
    digest = hashlib.sha256()
    for path in sorted((place / BENCHMARKS[name].config).glob("*")):
        if path.is_file():
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _benchmark(chosen: Benchmark, folder: Path | None) -> Split:
    place = _place(chosen, folder)
    public = next(split for split in chosen.splits if split.startswith("validation"))
    train, held_out = (load_benchmark(chosen.name, split, place) for split in ("train", public))
    return Split(train, held_out)


def _place(chosen: Benchmark, folder: Path | None) -> Path | None:
    """The suite's folder; None if only the Hub has it."""
    cached = cache_dir() / "benchmarks" / chosen.suite
    return folder or (cached if cached.is_dir() else None)


def load_source(name: str, folder: Path | None = None) -> Split:
    """The records of a source whose assets were fetched; ``assets.missing`` if they were not."""
    source = source_named(name, folder)
    for asset in (ASSETS[asset] for asset in source.assets):
        absent = [file for file in asset.files if not (asset.folder / file).is_file()]
        if absent:
            raise ConfideError(
                "assets.missing",
                f"The text of {name!r} is not in the cache ({asset.folder / absent[0]}).",
                f"Run confide assets fetch {' '.join(source.assets)}.",
            )
    return source.read(*(ASSETS[asset].folder for asset in source.assets))
