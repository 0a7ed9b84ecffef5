"""Scenarios: a source of text, how it is shared out, and the run config that differs.

A scenario is a TOML file, or JSON of the same content; a task description is one, too
(``description``). The ones that come with confide are called by their name, any other by its path.
The values of ``[config]`` are checked where the run config is read, not here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.settings import Scalar, Settings, known_keys
from .description import Files, is_description, prepare_files, read_description

_FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What ``prepare_federation`` takes, and the run config's flat keys that differ."""

    name: str
    source: str
    holders: int
    partition: str
    alpha: float = 1.0
    seed: int = 0
    limit: int | None = None
    public_limit: int | None = None
    files: Files | None = None
    config: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def federation(self) -> str:
        """The name of the prepared federation, e.g. ``nyt-10``."""
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
    if not by_path and name not in known:
        raise ConfideError(
            "scenario.unknown", f"No scenario is called {name!r}.", nearest(name, known)
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


def _described(path: Path, content: dict[str, Any]) -> Scenario:
    files, settings, holders, seed = read_description(path, content)
    config = {**settings, **_config(path, content)}
    return Scenario(
        name=path.stem,
        source="files",
        holders=holders,
        partition="unit",
        seed=seed,
        files=files,
        config=config,
    )


def run_config(scenario: Scenario, changes: Sequence[str] = ()) -> dict[str, Scalar]:
    """The whole flat run config: defaults, then the scenario's values, then ``KEY=VALUE`` changes.

    Raises:
        ConfideError: ``settings.unknown-key`` or ``settings.type`` for a change; values are
            checked by ``from_flat``.
    """
    return changed({**Settings().to_flat(), **scenario.run_config()}, changes)


def changed(config: Mapping[str, Scalar], changes: Sequence[str]) -> dict[str, Scalar]:
    """A whole flat config after ``KEY=VALUE`` changes.

    Raises:
        ConfideError: as ``run_config``.
    """
    config = dict(config)
    for change in changes:
        key, equals, value = change.partition("=")
        key = key.strip()
        if not equals:
            raise ConfideError(
                "settings.unknown-key",
                f"--set {change!r} gives no value.",
                f"Write --set {key or 'KEY'}=VALUE, without spaces or in quotes.",
            )
        if key not in config:
            raise ConfideError(
                "settings.unknown-key",
                f"--set {change!r} changes no setting.",
                nearest(key, config),
            )
        config[key] = _value(value.strip(), config[key])
    return config


def _value(text: str, like: Scalar) -> Scalar:
    """Text as it stands for a text; otherwise what TOML makes of it, or the text to be refused."""
    if isinstance(like, str):
        return text.strip("'\"")
    try:
        parsed: Scalar = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return parsed


def prepare(scenario: Scenario) -> Path:
    """Make or find the scenario's federation in the cache, and return its folder."""
    if scenario.files is not None:
        return prepare_files(scenario.federation, scenario.files, scenario.holders, scenario.seed)
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
    )


_TYPES: Mapping[str, type] = {
    "source": str,
    "holders": int,
    "partition": str,
    "alpha": float,
    "seed": int,
    "limit": int,
    "public_limit": int,
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
    for f in fields(Scenario):
        required = f.default is MISSING and f.default_factory is MISSING
        if required and f.name not in {"name", *content}:
            _refuse(path, f"has no {f.name}", f"Add a line {f.name} = ...")
    return Scenario(name=path.stem, **{**content, "config": _config(path, content)})


def _config(path: Path, content: Mapping[str, Any]) -> dict[str, Scalar]:
    """The flat keys of ``[config]``."""
    config = dict(_flat(content.get("config", {})))
    for key, value in config.items():
        if key not in known_keys():
            _refuse(path, f"sets {key!r}, which is no setting", nearest(key, known_keys()))
        if not isinstance(value, (str, int, float, bool)):
            _refuse(path, f"sets {key} to a {type(value).__name__}", "Use text or a number.")
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
