"""The public settings of a run: frozen dataclasses and the one way from flat keys to them.

Everything here is chosen by the coordinator and known to everybody; no private value is ever
a setting. ``from_flat`` is the only parser: it refuses unknown keys, wrong types, values out of
range and combinations that make no sense, each with name, value, range and what to do. Flower
checks that an overridden key exists, but not its type, so nothing is taken on trust. What a setting
means stands beside it in ``specs``; `confide settings` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ..errors import ConfideError
from ..text.benchmarks import settled
from ..text.rows import columns_of
from . import rule
from .combinations import check_combinations
from .rule import Rule, Scalar
from .specs import (
    AggregateSpec,
    DataSpec,
    FederationSpec,
    LoraSpec,
    ModelSpec,
    PrivacySpec,
    RoundSpec,
    RunSpec,
    TaskSpec,
    TrainSpec,
    WireSpec,
)

__all__ = [
    "COORDINATORS_OWN",
    "OF_THE_COMMAND",
    "AggregateSpec",
    "DataSpec",
    "FederationSpec",
    "LoraSpec",
    "ModelSpec",
    "PrivacySpec",
    "RoundSpec",
    "Rule",
    "RunSpec",
    "Scalar",
    "Settings",
    "TaskSpec",
    "TrainSpec",
    "WireSpec",
    "from_flat",
    "hint",
    "json_schema",
    "known_keys",
    "rules",
    "spelled",
]

# Where a command finds and leaves things: two runs may differ in that and be the same.
OF_THE_COMMAND = ("data.path", "run.out", "run.resume", "run.name", "run.id")
# What the coordinator keeps to itself: that, what text it simulates with, and whom it prefers.
COORDINATORS_OWN = (
    *OF_THE_COMMAND,
    "privacy.openers",
    *(f"federation.{f.name.replace('_', '-')}" for f in fields(FederationSpec)),
)

_COLUMNS = ("data.text", "data.target", "data.person")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run; the field names are the prefixes of the flat keys."""

    model: ModelSpec = field(default_factory=ModelSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    task: TaskSpec = field(default_factory=TaskSpec)
    federation: FederationSpec = field(default_factory=FederationSpec)
    data: DataSpec = field(default_factory=DataSpec)
    privacy: PrivacySpec = field(default_factory=PrivacySpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    round: RoundSpec = field(default_factory=RoundSpec)
    aggregate: AggregateSpec = field(default_factory=AggregateSpec)
    wire: WireSpec = field(default_factory=WireSpec)
    run: RunSpec = field(default_factory=RunSpec)

    def to_flat(self) -> dict[str, Scalar]:
        """The flat form, as it is written; ``from_flat(s.to_flat()) == s``."""
        flat = {}
        for room in fields(self):
            spec = getattr(self, room.name)
            for f in fields(spec):
                value, word = getattr(spec, f.name), f.metadata.get("word")
                flat[_key(room.name, f.name)] = word if word and value == f.default else value
        return flat


@cache
def rules() -> Mapping[str, Rule]:
    """Every setting by its key, in order."""
    defaults = Settings()
    flat, found = defaults.to_flat(), {}
    for room in fields(defaults):
        for f in fields(getattr(defaults, room.name)):
            key = _key(room.name, f.name)
            found[key] = Rule(key=key, default=flat[key], **f.metadata)
    return found


def known_keys() -> list[str]:
    """Every key of the run config, in order."""
    return list(rules())


def spelled(key: str) -> str:
    """A key as it is spelled here: libraries write underscores for dashes."""
    usual = key.replace("_", "-")
    return usual if usual in rules() else key


def hint(name: str) -> str:
    """What to do about a name that is no setting."""
    return rule.hint(name[:100], list(rules().values()))


def json_schema() -> dict[str, Any]:
    """Of a TOML file of settings, a table for each room."""
    rooms: dict[str, Any] = {}
    for key, one in rules().items():
        room, _, name = key.partition(".")
        empty = {"type": "object", "additionalProperties": False, "properties": {}}
        rooms.setdefault(room, empty)["properties"][name] = one.schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a confide run",
        "type": "object",
        "additionalProperties": False,
        "properties": rooms,
    }


def from_flat(config: Mapping[str, Any]) -> Settings:
    """Turn a flat run config into settings. What ``data.benchmark`` settles is filled in; a value
    that is the default counts as not chosen there, since Flower's run config has every key.

    Raises:
        ConfideError: ``settings.unknown-key``, ``settings.type``, ``settings.range``,
            ``settings.combination`` or ``benchmark.unknown``.
    """
    given = _spelled(config)
    defaults = Settings()
    values = {key: one.checked(given.get(key, one.default)) for key, one in rules().items()}
    known = {key: one.checked(one.default) for key, one in rules().items()}
    # A column has one name, or a ledger would be bound to a spelling of it.
    values |= {key: ",".join(columns_of(values[key])) for key in _COLUMNS}
    values |= settled({key: value for key, value in values.items() if value != known[key]})
    settings = _assembled(defaults, values)
    check_combinations(settings)
    return settings


def _spelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with keys as they are spelled here."""
    given: dict[str, Any] = {}
    for written, value in config.items():
        key = spelled(written) if isinstance(written, str) else ""
        if key not in rules():
            raise ConfideError(
                "settings.unknown-key", f"{written!r:.100} is not a setting.", hint(str(written))
            )
        if key in given:
            raise ConfideError(
                "settings.unknown-key", f"{key} is set twice.", "Leave one of the two out."
            )
        given[key] = value
    return given


def _assembled(defaults: Settings, values: Mapping[str, Any]) -> Settings:
    rooms = {}
    for room in fields(defaults):
        spec = getattr(defaults, room.name)
        chosen = {f.name: values[_key(room.name, f.name)] for f in fields(spec)}
        rooms[room.name] = type(spec)(**chosen)
    return Settings(**rooms)


def _key(room: str, name: str) -> str:
    return f"{room}.{name.replace('_', '-')}"
