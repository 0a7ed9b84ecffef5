"""A run folder, read: settings, events and what each holder's receipts tell.

metrics.jsonl is read line by line and a round's receipts are added up as they come, so that ten
thousand rounds of a thousand holders fit into memory. A resumed run may hold a round's lines
twice; the last one counts, while the receipts of both were given.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ...common.errors import ConfideError
from ...common.privacy.ledger import in_words
from ...common.privacy.plan import Unit
from ...common.settings import Settings, from_flat
from . import Json
from .histories import History, Round, add_round

# What else a line of an evaluation says.
_NO_METRIC = ("event", "round", "examples", "loss", "metric")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run folder, read. ``rounds`` and ``evaluations`` hold the last line of each round, ``sums``
    and ``summed`` (who answered, and what came of it) that of each noisy sum; ``histories`` what
    each holder's accepted updates add up to. ``named`` has round, holder and code of what was
    noticed of a holder that was accepted. ``kept`` is the round whose adapter is kept; None for
    the last one."""

    folder: Path
    id: str
    settings: Settings
    start: Json
    end: Json
    rounds: dict[int, Round]
    evaluations: dict[int, Json]
    sums: dict[int, Round]
    summed: dict[int, Json]
    histories: dict[str, History]
    named: tuple[tuple[int, str, str], ...]
    yardsticks: tuple[Json, ...]
    kept: int | None = None

    @property
    def outcome(self) -> Json:
        """What was measured of the adapter that is kept."""
        last: Json = next(reversed(self.evaluations.values()), {})
        return last if self.kept is None else self.evaluations.get(self.kept, last)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were measured, the main one first."""
        last = self.outcome
        main = str(last.get("metric", "accuracy"))
        return tuple(dict.fromkeys([main, *(n for n in last if n not in _NO_METRIC)]))

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


def read_run(folder: Path) -> RunRecord:
    """Read config.toml, metrics.jsonl, yardsticks.json."""
    start: Json | None = None
    end: Json = {}
    rounds: dict[int, Round] = {}
    evaluations: dict[int, Json] = {}
    sums: dict[int, Round] = {}
    summed: dict[int, Json] = {}
    histories: dict[str, History] = {}
    kept = None
    named: dict[tuple[str, str], int] = {}
    for event in _events(folder / "metrics.jsonl"):
        kind = event["event"]
        if kind == "start":
            start = start or event
        elif kind == "end":
            end = event
        elif kind == "evaluation":
            evaluations[event["round"]] = event
        elif kind == "round":
            rounds[event["round"]] = Round.of(event)
            if event.get("sum"):  # of all, of whom none can be named
                named.setdefault(("the secure sum", str(event["sum"])), int(event["round"]))
            add_round(histories, event)
        elif kind == "sum":
            sums[event["round"]] = Round.of(event)
            summed[event["round"]] = {**event, "accepted": len(event["accepted"])}
            add_round(histories, event)
        elif kind == "ledger":
            named.setdefault((str(event["holder"]), str(event["code"])), int(event["round"]))
        elif kind == "kept":
            kept = int(event["round"])
    if start is None:
        raise ConfideError(
            "report.metrics",
            f"metrics.jsonl of {folder.name!r} has no start line.",
            "The run ended before its first line; start it again.",
        )
    for history in histories.values():
        history.finish()
    yardsticks = folder / "yardsticks.json"
    return RunRecord(
        folder=folder,
        id=str(start["run"]),
        settings=read_settings(folder / "config.toml"),
        start=start,
        end=end,
        rounds=dict(sorted(rounds.items())),
        evaluations=dict(sorted(evaluations.items())),
        sums=dict(sorted(sums.items())),
        summed=dict(sorted(summed.items())),
        histories=histories,
        named=tuple((number, holder, code) for (holder, code), number in named.items()),
        yardsticks=tuple(json.loads(yardsticks.read_text("utf-8")) if yardsticks.is_file() else ()),
        kept=kept,
    )


def _events(path: Path) -> Iterator[Json]:
    """The lines, one by one; only the last may be torn: the coordinator was killed writing it."""
    torn = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if torn:
                raise ConfideError(
                    "report.metrics",
                    f"Line {torn} of metrics.jsonl in {path.parent.name!r} is not JSON.",
                    "Restore the file; the report is computed from it.",
                )
            try:
                event = json.loads(line)
            except ValueError:
                torn = number
                continue
            yield event


def read_settings(path: Path) -> Settings:
    """The settings in a run's config.toml.

    Raises:
        ConfideError: ``report.config``, and what ``from_flat`` refuses.
    """
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


# What only people can say of a run. Nothing in it is checked, and the report says so.
ABOUT = "about.toml"
NOT_STATED = "not stated"
MOST_LETTERS = 500  # of one field
FIELDS = {
    "responsible": "Responsible for the run",
    "contact": "Contact, data-protection officer",
    "purpose": "What the adapter is for",
    "text": "What kind of text was used, and whose",
    "holders": "Who holds the text",
    "basis": "Legal basis, or consent",
    "recipients": "Who gets the adapter",
    "kept-until": "How long adapter and run folder are kept",
}


def read_about(folder: Path) -> Json:
    """What people stated of a run in ``about.toml``: each field's heading with what was said of
    it. A report that was made before is then made again: ``confide report make RUN``.

    Raises:
        ConfideError: ``report.about`` for a file that is no TOML, or has other fields.
    """
    path = folder / ABOUT
    stated = _about_of(path) if path.is_file() else {}
    return {title: stated.get(key, "").strip() or NOT_STATED for key, title in FIELDS.items()}


def _about_of(path: Path) -> dict[str, str]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse_about(f"cannot be read ({type(error).__name__})")
    for key, value in found.items():
        if key not in FIELDS:
            _refuse_about(f"has a field {key!r:.60}")
        if not isinstance(value, str) or len(value) > MOST_LETTERS:
            _refuse_about(f"has no text of at most {MOST_LETTERS} letters in {key}")
    return found


def _refuse_about(what: str) -> NoReturn:
    raise ConfideError(
        "report.about",
        f"{ABOUT} {what}.",
        f'It has lines of the form {next(iter(FIELDS))} = "...", of {", ".join(FIELDS)}.',
    )
