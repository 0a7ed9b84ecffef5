"""A simulated federation on disk: one file a holder, and held-out text for the coordinator.

Whole persons (articles) are held out first, so that none is both trained on and tested on; the
rest goes to the holders by a partitioner of flwr-datasets. The same arguments give the same
bytes: what is held out, and every order, comes from a keyed hash, not from a library's random
stream. Only public text ever lies here; a real holder's text is never partitioned.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..common.errors import ConfideError, nearest
from ..common.paths import cache_dir
from ..common.text.readers import Record
from ..common.text.units import group_units
from .sources import load_source
from .staging import sha256_of, staged

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

T = TypeVar("T")

PARTITIONS = ("unit", "iid", "dirichlet")
# Raise it whenever the same arguments give other files than before.
_SCHEMA = 1
_MANIFEST = "federation.json"


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """All that decides the files; ``alpha`` is None unless the partition looks at it."""

    name: str
    source: str
    partition: str
    alpha: float | None
    seed: int
    holders: int
    limit: int | None
    public_fraction: float

    def to_json(self) -> dict[str, Any]:
        return {"schema": _SCHEMA, **asdict(self)}


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
    load: Callable[[str], list[Record]] = load_source,
) -> Path:
    """Make the folder of a federation, or find the one that these arguments made before.

    Args:
        name: the folder's name in the cache.
        source: where the records come from, for ``load``.
        holders: how many files to make; 1 pools everything.
        partition: ``unit`` gives each holder whole persons, about equally many; ``iid`` equally
            many records; ``dirichlet`` draws each label's shares (records of one person may
            then lie at several holders, as with ``iid``).
        alpha: concentration of the Dirichlet distribution; small is uneven.
        seed: decides who is held out and who goes where.
        public_fraction: the part of the persons that is held out.
        limit: train on this many records at most, chosen by the seed.

    Raises:
        ConfideError: ``data.partition`` for arguments that cannot be met, and what ``load``
            and ``staged`` raise. A folder that was there is then as it was before.
    """
    recipe = _Recipe(
        name=name,
        source=source,
        partition=partition,
        alpha=alpha if partition == "dirichlet" else None,
        seed=seed,
        holders=holders,
        limit=limit,
        public_fraction=public_fraction,
    )
    _check_recipe(recipe)
    folder = cache_dir() / "federations" / name
    if _is_current(folder, recipe):
        return folder
    public, training = _hold_out(load(source), public_fraction, seed)
    if limit is not None:
        kept = _shuffled(range(len(training)), "limit", seed)
        training = [training[i] for i in sorted(kept[:limit])]
    parts = _split(training, recipe)
    files = {"public.jsonl": public}
    for number, part in enumerate(parts):
        files[f"holder-{number:02d}.jsonl"] = [training[i] for i in part]
    with staged(folder) as new:
        _write(new, recipe, files, [len(part) for part in parts])
    return folder


def _check_recipe(recipe: _Recipe) -> None:
    def refuse(message: str, hint: str) -> None:
        raise ConfideError("data.partition", message, hint)

    if not re.fullmatch(r"\w[\w.-]*", recipe.name, re.ASCII):
        refuse(f"name = {recipe.name!r} is no folder name.", "Use letters, digits, - and _.")
    if recipe.partition not in PARTITIONS:
        refuse(
            f"partition = {recipe.partition!r} is not one of {', '.join(PARTITIONS)}.",
            nearest(recipe.partition, PARTITIONS),
        )
    if recipe.holders < 1:
        refuse(f"holders = {recipe.holders} is less than 1.", "Use at least one holder.")
    if recipe.limit is not None and recipe.limit < 1:
        refuse(f"limit = {recipe.limit} is less than 1.", "Leave it out to use every record.")
    if not 0 < recipe.public_fraction < 1:
        refuse(f"public_fraction = {recipe.public_fraction} is outside (0, 1).", "Try 0.15.")
    if recipe.alpha is not None and not recipe.alpha > 0:
        refuse(f"alpha = {recipe.alpha} is not above 0.", "Try 1.0; smaller is more uneven.")


def _is_current(folder: Path, recipe: _Recipe) -> bool:
    """Whether the folder was made by this recipe and every file is as it was made."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        pins = dict(manifest["sha256"])
        made = {key: manifest[key] for key in recipe.to_json()}
        same = made == recipe.to_json()
        return same and all(sha256_of(folder / file) == pins[file] for file in pins)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _shuffled(items: Sequence[T], purpose: str, seed: int) -> list[T]:
    """The items in an order that purpose, seed and their number alone decide."""
    keys = [hashlib.sha256(f"{purpose}:{seed}:{i}".encode()).digest() for i in range(len(items))]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def _hold_out(
    records: list[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Public and training records; whole persons, at least one on either side."""
    persons = group_units(records, "person")
    if len(persons) < 2:
        raise ConfideError(
            "data.partition",
            f"The source has {len(persons)} person, but some are held out and some are trained on.",
            "Use a source with more persons.",
        )
    count = min(max(1, round(len(persons) * fraction)), len(persons) - 1)
    public = {i for person in _shuffled(persons, "public", seed)[:count] for i in person}
    return (
        [record for i, record in enumerate(records) if i in public],
        [record for i, record in enumerate(records) if i not in public],
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
    import datasets

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


def _partitioner(recipe: _Recipe) -> Partitioner:
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if recipe.partition != "dirichlet":
        return IidPartitioner(num_partitions=recipe.holders)
    return DirichletPartitioner(
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
                row = {"text": record.text, "label": record.target, "person": record.person}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    pins = {name: sha256_of(folder / name) for name in sorted(files)}
    manifest = {
        **recipe.to_json(),
        "records": sizes,
        "public": len(files["public.jsonl"]),
        "sha256": pins,
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / _MANIFEST).write_text(text, encoding="utf-8", newline="\n")
