"""The privacy report of a run: computed once, shown in three ways, verified from the ledgers.

``build`` computes report.json from a run folder, ``html`` and ``terminal`` show it, ``verify``
checks it, and recomputes it from the holders' ledgers alone. Here is what they share: finding and
reading a run folder, and drawing a figure as inline SVG. Nothing in this room needs torch,
except the second opinion of Opacus's PRV accountant, which only ``build`` asks for.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as _escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.ledger import Receipt
from ...common.settings import Settings, from_flat

SCHEMA = "confide-report/1"
CHART_TOP, CHART_BOTTOM, CHART_LEFT, CHART_RIGHT = 12.0, 88.0, 8.0, 98.0  # per cent
DRAWN_POINTS = 60
MOST_PROMISE = 100.0  # above it an epsilon is no promise, and its digits would mislead

Json = dict[str, Any]
Series = tuple[str, Sequence[tuple[float, float]], bool]


def find_run(name: str, runs: Path | None = None) -> Path:
    """The folder of a run: a path, or ``latest`` for the newest one under ``./runs``."""
    if name != "latest":
        folder = Path(name).expanduser()
        if not (folder / "metrics.jsonl").is_file():
            raise ConfideError(
                "run.missing",
                f"{name!r} is not a run folder: it holds no metrics.jsonl.",
                "Give a folder below runs/, or 'latest'.",
            )
        return folder
    runs = runs or Path("runs")
    found = [path.parent for path in runs.glob("*/metrics.jsonl")]
    if not found:
        raise ConfideError(
            "run.missing",
            f"There is no run under {str(runs)!r}.",
            "Start one with `flwr run . --stream`, or give the folder of a run.",
        )
    # A run folder's name starts with its time, so that the last name is the newest run.
    return max(found, key=lambda folder: folder.name)


def load_report(folder: Path) -> dict[str, Any]:
    """report.json of a run folder; refused when torn or of another schema."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfideError(
            "report.missing",
            f"The run folder {folder.name!r} has no report.json.",
            "Use `confide report show`, which computes it.",
        ) from error
    except ValueError as error:
        raise ConfideError(
            "report.corrupt",
            f"report.json of {folder.name!r} is not readable JSON.",
            "Delete it; `confide report show` computes it again from the run folder.",
        ) from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfideError(
            "report.schema",
            f"report.json of {folder.name!r} does not follow the schema {SCHEMA!r}.",
            "Read it with the version of confide that wrote it.",
        )
    return report


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon for people, rounded up, since a claim may only err upwards."""
    if epsilon is None or not math.isfinite(epsilon):
        return "–"
    return f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def group_text(epsilon: float | None) -> str:
    """The epsilon of several records together."""
    if epsilon is None or epsilon > MOST_PROMISE:
        return "above 100, which is no promise"
    return epsilon_text(epsilon)


def percent(share: float | None) -> str:
    """A share for people."""
    return "–" if share is None else f"{100 * share:.1f} %"


def escape(value: Any) -> str:
    """Text for a page, also inside a quoted attribute."""
    return _escape(str(value), quote=True)


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN; both are told as null, which is never a promise."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def no_path(value: Any) -> Any:
    """A value without the folders of this machine."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def wilson(share: float | None, count: int | None, z: float = 1.959964) -> list[float] | None:
    """The 95 % interval of a share that was counted (Wilson 1927)."""
    if share is None or not count:
        return None
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return [centre - half, centre + half]


# --- reading ---


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


# --- drawing ---


def _palette(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


LIGHT = _palette(
    "page=#faf9f6 card=#ffffff tint=#f1efe9 ink=#1d2329 soft=#565e66 "
    "accent=#0d5c80 muted=#5f6770 good=#1c6a3e warn=#85550a bad=#ab2318 rule=#dedad1"
)
DARK = _palette(
    "page=#13171b card=#1a1f24 tint=#21272d ink=#e7e9eb soft=#aab2ba "
    "accent=#74bce0 muted=#929ba4 good=#74cd98 warn=#e2b463 bad=#ff958b rule=#343b42"
)
GROUNDS = ("page", "card", "tint")
INKS = ("ink", "soft", "accent", "muted", "good", "warn", "bad")


def bar(share: float, look: str, whisker: Sequence[float] | None = None) -> str:
    """A horizontal bar from 0 to 1, with an interval when there is one."""
    width = 100 * min(max(share, 0.0), 1.0)
    thin = " thin" if "thin" in look else ""
    mark = ""
    if whisker:
        low, high = (100 * end for end in whisker)
        mark = f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
    return (
        f'<svg class="bar{thin}" aria-hidden="true"><rect class="track" width="100%" '
        f'height="100%" rx="2"/><rect class="fill {look}" width="{width:.2f}%" height="100%" '
        f'rx="2"/>{mark}</svg>'
    )


def line_chart(
    series: Sequence[Series], title: str, *, limit: float | None = None, share: bool = False
) -> str:
    """Lines over rounds; the main one is drawn last, with its last value written beside it."""
    points = [point for _, line, _ in series for point in line]
    if not points:
        return '<p class="note">Nothing was measured.</p>'
    last_round = max(x for x, _ in points)
    values = [y for _, y in points] + ([limit] if limit else [])
    ticks = _ticks(min(values) if share else 0.0, max(values))
    frame = _Frame(0.0, max(last_round, 1.0), ticks[0], ticks[-1])
    marks = [_grid(frame, ticks, share), _round_labels(frame)]
    if limit:
        marks.append(_limit(frame, limit))
    marks += [_line(frame, *one) for one in sorted(series, key=lambda one: one[2])]
    main = next((line for _, line, chief in series if chief and line), ())
    if main:
        marks.append(
            _end(frame, main[-1], percent(main[-1][1]) if share else epsilon_text(main[-1][1]))
        )
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(marks)}</svg>"
    )


class _Frame:
    """From data to percentages of the drawing."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> str:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return f"{CHART_LEFT + share * (CHART_RIGHT - CHART_LEFT):.2f}%"

    def y(self, value: float) -> str:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return f"{CHART_BOTTOM - share * (CHART_BOTTOM - CHART_TOP):.2f}%"


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers around [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = max(high - low, 1e-6) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _grid(frame: _Frame, ticks: Sequence[float], share: bool) -> str:
    return "".join(
        f'<line class="grid" x1="{CHART_LEFT}%" x2="{CHART_RIGHT}%" y1="{frame.y(tick)}" '
        f'y2="{frame.y(tick)}"/><text x="{CHART_LEFT - 1.5}%" y="{frame.y(tick)}" dy=".35em" '
        f'text-anchor="end">{f"{100 * tick:.3g}" if share else f"{tick:g}"}</text>'
        for tick in ticks
    )


def _round_labels(frame: _Frame) -> str:
    last = frame.x_high
    middle = round(last / 2) if last >= 4 else 0
    labels = {0.0: "0", float(middle): f"{middle}", last: f"round {last:.0f}"}
    return "".join(
        f'<text x="{frame.x(at)}" y="98%" text-anchor="{"end" if at == last else "middle"}">'
        f"{text}</text>"
        for at, text in labels.items()
    )


def _limit(frame: _Frame, limit: float) -> str:
    y = frame.y(limit)
    return (
        f'<line class="limit" x1="{CHART_LEFT}%" x2="{CHART_RIGHT}%" y1="{y}" y2="{y}"/>'
        f'<text class="limit-text" x="{CHART_LEFT + 1}%" y="{y}" dy="-.5em">planned: {limit:g}'
        "</text>"
    )


def _line(frame: _Frame, name: str, line: Sequence[tuple[float, float]], chief: bool) -> str:
    stride = max(1, math.ceil(len(line) / DRAWN_POINTS))
    drawn = [*line[:-1:stride], line[-1]] if line else []
    look = "line main" if chief else "line"
    told = f"<title>{escape(name)}</title>" if name else ""
    pieces = "".join(
        f'<line class="{look}" x1="{frame.x(a[0])}" y1="{frame.y(a[1])}" '
        f'x2="{frame.x(b[0])}" y2="{frame.y(b[1])}"/>'
        for a, b in pairwise(drawn)
    )
    return f"<g>{told}{pieces}</g>"


def _end(frame: _Frame, point: tuple[float, float], text: str) -> str:
    x, y = frame.x(point[0]), frame.y(point[1])
    return (
        f'<circle class="dot" cx="{x}" cy="{y}" r="5"/>'
        f'<text class="value" x="{x}" y="{y}" dy="-.8em" text-anchor="end">{text}</text>'
    )
