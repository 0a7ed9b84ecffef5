"""A run folder, read: settings, events and receipts as the report needs them.

A resumed run may hold a round's lines twice; the last one counts.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.ledger import Receipt, in_words
from ...common.privacy.plan import Unit
from ...common.settings import Settings, from_flat
from . import Json


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """One accepted update, in the order of the file; superseded rounds are kept."""

    round: int
    holder: str
    receipt: Receipt | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read. ``rounds`` and ``evaluations`` hold the last line of each round."""

    folder: Path
    id: str
    settings: Settings
    start: Json
    end: Json
    rounds: dict[int, Json]
    evaluations: dict[int, Json]
    accepted: tuple[Accepted, ...]
    yardsticks: tuple[Json, ...]

    @property
    def private(self) -> bool:
        return self.settings.privacy.trust != "off"

    @property
    def unit(self) -> Unit:
        """Whom the promise is for."""
        return Unit(self.settings.privacy.unit)

    @property
    def unit_in_words(self) -> str:
        """The same as a ledger says it, with the column that tells persons apart."""
        return in_words(self.unit, self.settings.data.person)

    @property
    def limit(self) -> float | None:
        """The epsilon that was planned; None when the noise was given and epsilon follows."""
        privacy = self.settings.privacy
        return privacy.epsilon if self.private and not privacy.noise_multiplier else None


def read_run(folder: Path) -> Run:
    """Read config.toml, metrics.jsonl, yardsticks.json."""
    events = _read_events(folder / "metrics.jsonl")
    start = next((e for e in events if e["event"] == "start"), None)
    if start is None:
        raise ConfideError(
            "report.metrics",
            f"metrics.jsonl of {folder.name!r} has no start line.",
            "The run ended before it began; start it again.",
        )
    rounds, evaluations = _newest(events)
    yardsticks = folder / "yardsticks.json"
    return Run(
        folder=folder,
        id=str(start["run"]),
        settings=_read_settings(folder / "config.toml"),
        start=start,
        end=next((e for e in reversed(events) if e["event"] == "end"), {}),
        rounds=rounds,
        evaluations=evaluations,
        accepted=tuple(_accepted(events)),
        yardsticks=tuple(json.loads(yardsticks.read_text("utf-8")) if yardsticks.is_file() else ()),
    )


def _read_events(path: Path) -> list[Json]:
    lines = path.read_text(encoding="utf-8").splitlines()
    events = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # the coordinator was killed while it wrote its last line
            raise ConfideError(
                "report.metrics",
                f"Line {number} of metrics.jsonl in {path.parent.name!r} is not JSON.",
                "Restore the file; the report is computed from it.",
            ) from error
    return events


def _read_settings(path: Path) -> Settings:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfideError(
            "report.config",
            f"config.toml of {path.parent.name!r} is missing or not TOML.",
            "Restore the file; the report is computed from it.",
        ) from error
    flat = {f"{room}.{key}": value for room, keys in tables.items() for key, value in keys.items()}
    return from_flat(flat)


def _newest(events: Iterable[Json]) -> tuple[dict[int, Json], dict[int, Json]]:
    """Rounds and evaluations as they count: of a round done again, the last line."""
    rounds: dict[int, Json] = {}
    evaluations: dict[int, Json] = {}
    for event in events:
        if event["event"] == "round":
            rounds[event["round"]] = event
        elif event["event"] == "evaluation":
            evaluations[event["round"]] = event
    return dict(sorted(rounds.items())), dict(sorted(evaluations.items()))


def _accepted(events: Iterable[Json]) -> Iterable[Accepted]:
    for event in events:
        for update in event["accepted"] if event["event"] == "round" else ():
            yield Accepted(
                round=event["round"],
                holder=str(update["holder"]),
                receipt=_receipt(update.get("receipt")),
            )


def _receipt(told: Any) -> Receipt | None:
    """None for what is no receipt; the check that each update has one then fails."""
    try:
        return Receipt.from_json(told)
    except ConfideError:
        return None
