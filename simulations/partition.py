"""A simulated federation on disk: one file a holder, and held-out text for the coordinator.

The source's own test split is held out if it has one. Otherwise whole persons (articles) are held
out first, so that no person is both trained on and tested on. A partitioner of flwr-datasets gives
the rest to the holders. The same arguments give the same bytes: a keyed hash decides what is held
out and every order, not a library's random stream. Only public text ever lies here; a real holder's
text is never partitioned.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..common.errors import ConfideError, nearest
from ..common.machine.installed import library
from ..common.machine.paths import cache_dir
from ..common.settings.specs import PARTITIONS
from ..common.text.readers import Record, group_units
from .sources import Split, fingerprint, load_source
from .staging import is_sealed, seal, staged

T = TypeVar("T")


# Raise it whenever the same arguments give other files than before.
_SCHEMA = 1
_MANIFEST = "federation.json"


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Everything that decides the files; ``alpha`` is None unless the partition uses it."""

    name: str
    source: str
    partition: str
    alpha: float | None
    seed: int
    holders: int
    limit: int | None
    public_limit: int | None
    public_fraction: float
    fingerprint: str  # of text that nobody pins; empty for what is pinned

    def to_json(self) -> dict[str, Any]:
        found = {"schema": _SCHEMA, **asdict(self)}
        return found if self.fingerprint else {k: v for k, v in found.items() if k != "fingerprint"}


def prepare_federation(
    name: str,
    *,
    source: str,
    holders: int,
    partition: str = "unit",
    alpha: float = 1.0,
    seed: int = 0,
    public_fraction: float = 0.15,
    limit: int | None = None,
    public_limit: int | None = None,
    folder: Path | None = None,
    load: Callable[[str], Split] | None = None,
) -> Path:
    """Make the folder of a federation, or find the one that these arguments made before.

    Args:
        name: the folder's name in the cache.
        source: where the records come from, for ``load`` (the table of sources by default).
        holders: how many files to make; 1 pools everything.
        partition: ``unit`` gives each holder whole persons, about equally many; ``iid`` equally
            many records; ``dirichlet`` draws each label's shares (records of one person may
            then lie at several holders, as with ``iid``).
        alpha: concentration of the Dirichlet distribution; small is uneven.
        seed: decides who is held out and who goes where.
        public_fraction: the part of the persons that is held out, if the source has no test split.
        limit: train on this many records at most, chosen by the seed.
        public_limit: hold out this many records at most, chosen by the seed.
        folder: where the suite of a benchmark lies in the Hub's format.

    Raises:
        ConfideError: ``data.partition`` for arguments that cannot be met, and what ``load`` and
            ``staged`` raise. An existing folder then stays unchanged.
    """
    recipe = _Recipe(
        name=name,
        source=source,
        partition=partition,
        alpha=alpha if partition == "dirichlet" else None,
        seed=seed,
        holders=holders,
        limit=limit,
        public_limit=public_limit,
        public_fraction=public_fraction,
        fingerprint=fingerprint(source, folder),
    )
    _check_recipe(recipe)
    made = cache_dir() / "federations" / name
    if is_sealed(made, _MANIFEST, recipe.to_json()):
        return made
    training, held_out = load(source) if load else load_source(source, folder)
    if not held_out:
        training, held_out = _hold_out(training, public_fraction, seed)
    training = _thinned(training, limit, "limit", seed)
    parts = _split(training, recipe)
    files = {"public.jsonl": _thinned(held_out, public_limit, "public-limit", seed)}
    for number, part in enumerate(parts):
        files[f"holder-{number:02d}.jsonl"] = [training[i] for i in part]
    with staged(made) as new:
        _write(new, recipe, files, [len(part) for part in parts])
    return made


def _check_recipe(recipe: _Recipe) -> None:
    def refuse(message: str, hint: str) -> None:
        raise ConfideError("data.partition", message, hint)

    if not re.fullmatch(r"\w[\w.-]*", recipe.name, re.ASCII):
        refuse(f"name = {recipe.name!r} is not a folder's name.", "Use letters, digits, - and _.")
    if recipe.partition not in PARTITIONS:
        refuse(
            f"partition = {recipe.partition!r} is not one of {', '.join(PARTITIONS)}.",
            nearest(recipe.partition, PARTITIONS),
        )
    if recipe.holders < 1:
        refuse(f"holders = {recipe.holders} is less than 1.", "Use at least one holder.")
    for name, most in (("limit", recipe.limit), ("public_limit", recipe.public_limit)):
        if most is not None and most < 1:
            refuse(f"{name} = {most} is less than 1.", "Leave it out to use every record.")
    if not 0 < recipe.public_fraction < 1:
        refuse(f"public_fraction = {recipe.public_fraction} is outside (0, 1).", "Try 0.15.")
    if recipe.alpha is not None and not recipe.alpha > 0:
        refuse(f"alpha = {recipe.alpha} is not above 0.", "Try 1.0; smaller is more uneven.")


def _shuffled(items: Sequence[T], purpose: str, seed: int) -> list[T]:
    """The items in an order that depends only on purpose, seed and number of items."""
    keys = [hashlib.sha256(f"{purpose}:{seed}:{i}".encode()).digest() for i in range(len(items))]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def _thinned(records: list[Record], most: int | None, purpose: str, seed: int) -> list[Record]:
    """At most this many of the records, in their order; all of them for None."""
    if most is None:
        return records
    kept = _shuffled(range(len(records)), purpose, seed)
    return [records[i] for i in sorted(kept[:most])]


def _hold_out(records: list[Record], fraction: float, seed: int) -> Split:
    """Training and held-out records; whole persons, at least one on either side."""
    persons = group_units(records, "person")
    if len(persons) < 2:
        raise ConfideError(
            "data.partition",
            f"The source has {len(persons)} person, but some are held out and some are trained on.",
            "Use a source with more persons.",
        )
    count = min(max(1, round(len(persons) * fraction)), len(persons) - 1)
    chosen = {i for person in _shuffled(persons, "public", seed)[:count] for i in person}
    return Split(
        [record for i, record in enumerate(records) if i not in chosen],
        [record for i, record in enumerate(records) if i in chosen],
    )


def _split(training: list[Record], recipe: _Recipe) -> list[list[int]]:
    """The records' indices of each holder, ascending."""
    unit = "person" if recipe.partition == "unit" else "record"
    units = _shuffled(group_units(training, unit), "split", recipe.seed)
    if recipe.holders > len(units):
        raise ConfideError(
            "data.partition",
            f"holders = {recipe.holders}, but only {len(units)} {unit}s are left for training.",
            f"Use at most {len(units)} holders, or more text.",
        )
    # For the unit partition the rows are persons, whose label is not looked at.
    rows = [{"row": i, "label": training[first].target} for i, (first, *_) in enumerate(units)]
    shares = _partitioned(rows, recipe)
    return [sorted(i for row in share for i in units[row]) for share in shares]


def _partitioned(rows: list[dict[str, Any]], recipe: _Recipe) -> list[list[int]]:
    # Imported here: it takes seconds, and a federation that is there already needs none of it.
    datasets = library("datasets")
    partitioner = _partitioner(recipe)
    partitioner.dataset = datasets.Dataset.from_list(rows)
    with warnings.catch_warnings():
        # One warning for every draw that leaves a holder with nothing; the last draw's raises.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [list(partitioner.load_partition(i)["row"]) for i in range(recipe.holders)]
        except ValueError as error:
            raise ConfideError(
                "data.partition",
                f"alpha = {recipe.alpha} left one of {recipe.holders} holders without a record"
                " in every draw.",
                "Use a larger alpha or fewer holders.",
            ) from error


def _partitioner(recipe: _Recipe) -> Any:
    kinds = library("flwr_datasets.partitioner")
    if recipe.partition != "dirichlet":
        return kinds.IidPartitioner(num_partitions=recipe.holders)
    return kinds.DirichletPartitioner(
        num_partitions=recipe.holders,
        partition_by="label",
        alpha=float(recipe.alpha or 0),
        min_partition_size=1,
        seed=recipe.seed,
    )


def _write(
    folder: Path, recipe: _Recipe, files: Mapping[str, list[Record]], sizes: list[int]
) -> None:
    for name, records in files.items():
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(_row(record), ensure_ascii=False) + "\n")
    seal(folder, _MANIFEST, recipe.to_json(), records=sizes, public=len(files["public.jsonl"]))


def _row(record: Record) -> dict[str, Any]:
    """The columns of a record, without those that its source does not have."""
    row = {"text": record.text, "label": record.cell, "person": record.person}
    return {name: value for name, value in row.items() if value is not None}
