"""Scenarios: a source of text, how it is shared out, and the run config that differs.

A scenario is a TOML file, or JSON of the same content; a task description is one, too
(``description``), and so is the name of a benchmark (``glue/sst2``). The ones that come with
confide are called by their name, any other by its path. The values of ``[config]`` are checked
where the run config is read, not here.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.paths import local_or_cached
from ..common.settings import Scalar, Settings, hint, rules, spelled
from ..common.text.benchmarks import BENCHMARKS, spec
from ..common.text.readers import read_records
from ..common.text.settled import KEY as BENCHMARK
from ..common.text.settled import settled
from .copies import copy_name, on_screen, prepare_files
from .description import (
    HOLDERS,
    Described,
    Files,
    is_description,
    read_description,
    small_model,
)

_FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What ``prepare_federation`` takes, and the run config's flat keys that differ. ``folder`` is
    of a benchmark's suite in the Hub's format."""

    name: str
    source: str
    holders: int
    partition: str
    alpha: float = 1.0
    seed: int = 0
    limit: int | None = None
    public_limit: int | None = None
    folder: Path | None = None
    files: Files | None = None
    config: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def federation(self) -> str:
        """The name of the prepared federation, e.g. ``nyt-10``; with files of one's own it ends in
        a digest of them.

        Raises:
            ConfideError: ``data.missing-file`` where they are not there.
        """
        if self.files is not None:
            return copy_name(self.name, self.files, self.holders, self.seed)
        return f"{self.name}-{self.holders}"

    def run_config(self) -> dict[str, Scalar]:
        """The overrides of the run config: ``config``, with its data path and name."""
        return {"data.path": self.federation, "run.name": self.name, **self.config}


def scenario_names() -> list[str]:
    """The scenarios that come with confide."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_scenario(name: str) -> Scenario:
    """The scenario of that name, or in the file of that path.

    Raises:
        ConfideError: ``scenario.unknown`` or ``scenario.format``.
    """
    known = scenario_names()
    by_path = name.endswith((".toml", ".json"))
    if name in BENCHMARKS:
        return _benchmark(name)
    if not by_path and name not in known:
        raise ConfideError(
            "scenario.unknown",
            f"No scenario is called {name!r}.",
            nearest(name, [*known, *BENCHMARKS]),
        )
    path = Path(name) if by_path else _FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfideError(
            "scenario.unknown",
            f"{path} cannot be read: {error.strerror}.",
            f"Give the path of a .toml file, or one of {', '.join(known)}.",
        ) from error
    except ValueError as error:
        _refuse(path, f"is not {path.suffix[1:].upper()}: {error}")
    if not isinstance(content, dict):
        _refuse(path, "is no table of keys and values")
    return _described(path, content) if is_description(content) else _scenario(path, content)


def _benchmark(name: str) -> Scenario:
    """A benchmark as it stands, with a small model of the kind that it needs."""
    kind = spec(name).kind
    return Scenario(
        name=name.replace("/", "-"),
        source=name,
        holders=HOLDERS,
        partition="unit",
        config={BENCHMARK: name, "model.name": small_model(kind)},
    )


def _described(path: Path, content: dict[str, Any]) -> Scenario:
    config = _config(path, content)
    found: Described = read_description(path, content, config)
    named = found.settings.get(BENCHMARK)
    return Scenario(
        name=path.stem,
        source=spec(str(named)).name if named else "files",
        holders=found.holders,
        partition="unit",
        seed=found.seed,
        folder=found.folder,
        files=found.files,
        config={**found.settings, **config},
    )


def run_config(scenario: Scenario, changes: Sequence[str] = ()) -> dict[str, Scalar]:
    """The whole flat run config: defaults, then the scenario's values, then ``KEY=VALUE`` changes,
    then what the benchmark settles.

    Raises:
        ConfideError: ``settings.unknown-key`` or ``settings.type`` for a change, and what
            ``settled`` raises for what was chosen here; values are checked by ``from_flat``.
    """
    defaults, chosen = Settings().to_flat(), scenario.run_config()
    chosen |= changed(changes)
    return {**defaults, **chosen, **settled(chosen)}


def changed(changes: Sequence[str]) -> dict[str, Scalar]:
    """What ``KEY=VALUE`` changes set, by keys as they are spelled here.

    Raises:
        ConfideError: as ``run_config``.
    """
    found = {}
    for change in changes:
        written, equals, value = change.partition("=")
        key = spelled(written.strip())
        if not equals:
            raise ConfideError(
                "settings.unknown-key",
                f"--set {change!r} gives no value.",
                f"Write --set {key or 'KEY'}=VALUE, without spaces or in quotes.",
            )
        if key not in rules():
            raise ConfideError(
                "settings.unknown-key", f"--set {change!r:.100} changes no setting.", hint(key)
            )
        found[key] = rules()[key].parsed(value.strip())
    return found


def with_batch(
    config: Mapping[str, Scalar], scenario: Scenario, changes: Sequence[str], folder: Path
) -> dict[str, Scalar]:
    """The run config with ``train.batch`` for the text as it was prepared, where neither the
    scenario nor a change chooses it: as many units as the largest holder uses in a step. The text
    of a simulation is public, and so is how much of it there is."""
    chosen = {**scenario.config, **changed(changes)}
    if "train.batch" in chosen:
        return dict(config)
    by_person = config["privacy.unit"] == "person"
    column = str(config["data.person"]) if by_person else None
    sizes = []
    for file in folder.glob("holder-*.jsonl"):
        records = read_records(file, text=str(config["data.text"]), target=None, person=column)
        sizes.append(len({r.person for r in records}) if by_person else len(records))
    most = math.ceil(float(config["train.rate"]) * max(sizes, default=1))
    return {**config, "train.batch": max(1, most)}


def prepare(scenario: Scenario, say: Callable[[str], None] = on_screen) -> Path:
    """Make or find the scenario's federation in the cache, and return its folder. What there is to
    know of a copy of one's own text is said, a line at a time."""
    if scenario.files is not None:
        name, files = scenario.federation, scenario.files
        return prepare_files(name, files, scenario.holders, scenario.seed, say)
    from .partition import prepare_federation

    return prepare_federation(
        scenario.federation,
        source=scenario.source,
        holders=scenario.holders,
        partition=scenario.partition,
        alpha=scenario.alpha,
        seed=scenario.seed,
        limit=scenario.limit,
        public_limit=scenario.public_limit,
        folder=scenario.folder,
    )


def text_of(scenario: Scenario, settings: Settings) -> Path:
    """The folder with the text of a run: the scenario's, made if need be, unless ``data.path`` was
    set to another one.

    Raises:
        ConfideError: ``data.missing-file``, and what ``prepare`` raises.
    """
    if settings.data.path == scenario.federation:
        return prepare(scenario)
    folder = local_or_cached(settings.data.path, "federations")
    if folder is None:
        raise ConfideError(
            "data.missing-file",
            f"data.path = {settings.data.path!r:.200} is neither a folder nor a prepared"
            " federation.",
            "Leave it out for the scenario's own text, or name a folder with public.jsonl.",
        )
    return folder


_TYPES: Mapping[str, type] = {
    "source": str,
    "holders": int,
    "partition": str,
    "alpha": float,
    "seed": int,
    "limit": int,
    "public_limit": int,
    "folder": str,
    "config": dict,
}
_KINDS = {str: "text", int: "a whole number", float: "a number", dict: "a table"}


def _scenario(path: Path, content: dict[str, Any]) -> Scenario:
    for key, value in content.items():
        if key not in _TYPES:
            _refuse(path, f"has the unknown key {key!r}", nearest(key, _TYPES))
        if key == "alpha" and type(value) is int:
            content = {**content, "alpha": float(value)}
        elif type(value) is not _TYPES[key]:
            _refuse(path, f"has {key} = {value!r}, which is not {_KINDS[_TYPES[key]]}")
    content = {**content, "config": _config(path, content)}
    content |= _of_benchmark(path, content)
    if "folder" in content:
        content["folder"] = path.parent / Path(content["folder"]).expanduser()
    for f in fields(Scenario):
        required = f.default is MISSING and f.default_factory is MISSING
        if required and f.name not in {"name", *content}:
            _refuse(path, f"has no {f.name}", f"Add a line {f.name} = ...")
    return Scenario(name=path.stem, **content)


def _of_benchmark(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Source and ``data.benchmark`` each say the other; two that differ are refused."""
    source, named = content.get("source", ""), str(content["config"].get(BENCHMARK, ""))
    if not named and source not in BENCHMARKS:
        return {}
    name = spec(named or source).name
    if source not in ("", name):
        _refuse(path, f"has source = {source!r}, but {BENCHMARK} = {named!r}", "Leave one out.")
    return {"source": name, "config": {**content["config"], BENCHMARK: name}}


def _config(path: Path, content: Mapping[str, Any]) -> dict[str, Scalar]:
    """The flat keys of ``[config]``."""
    table = content.get("config", {})
    if not isinstance(table, dict):
        _refuse(path, f"has config = {table!r:.100}, which is not a table")
    config: dict[str, Scalar] = {}
    for written, value in _flat(table):
        key = spelled(written)
        if key not in rules():
            _refuse(path, f"sets {written!r}, which is no setting", hint(written))
        if key in config:
            _refuse(path, f"sets {key} twice", "Leave one of the two out.")
        if not isinstance(value, (str, int, float, bool)):
            _refuse(path, f"sets {key} to a {type(value).__name__}", "Use text or a number.")
        config[key] = value
    return config


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, whether they were written in quotes or as nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse(path: Path, what: str, hint: str = "Correct the file.") -> NoReturn:
    raise ConfideError("scenario.format", f"{path} {what}.", hint)
