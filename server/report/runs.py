"""Runs beside each other: the list of a folder's runs, and two of them wherever they differ.

Figures are those of the reports, words and all; nothing is computed a second time. Of a run without
a report its events say how far it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ...common.errors import ConfideError
from ..run_folder import read_events
from . import Json, began, epsilon_text, escape, load_report, metric_title, plain, value_text
from .style import page

_ABSENT = "–"
_STYLE = """
table.beside td,table.beside th{text-align:left;vertical-align:top;overflow-wrap:anywhere}
table.beside td:first-child{white-space:nowrap}
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, for people: its folder's name, when it began in UTC, how it ended, what it promises
    and how well its adapter does; empty where it does not say."""

    name: str
    began: str
    status: str
    claim: str
    score: str


def runs_in(folder: Path) -> list[Row]:
    """The runs of a folder, the newest first."""
    found = [path.parent for path in folder.glob("*/metrics.jsonl")]
    return [_row(path) for path in sorted(found, key=lambda f: (began(f), f.name), reverse=True)]


def _row(folder: Path) -> Row:
    moment = datetime.fromtimestamp(began(folder), UTC)
    told = {"name": plain(folder.name), "began": f"{moment:%Y-%m-%d %H:%M}"}
    try:
        report = load_report(folder)
        run, claim, utility = report["run"], report["claim"], report["utility"]
        return Row(
            **told,
            status=plain(_status(run)),
            claim=_promise(claim),
            score=_score(utility, "after"),
        )
    except (ConfideError, KeyError, TypeError, AttributeError):
        return Row(**told, status=plain(_how_far(folder)), claim="", score="")


def _status(run: Json) -> str:
    done, planned, status = run["rounds"], run["rounds_planned"], str(run["status"])
    return f"{status}, {done} of {planned}" if done < planned else status


def _promise(claim: Json) -> str:
    if not claim["private"]:
        return "not private"
    return f"{epsilon_text(claim['epsilon'])} per {plain(claim['unit'])}"


def _score(utility: Json, when: str) -> str:
    name = utility["metric"]
    value = (utility[when] or {}).get(name)
    return "" if value is None else f"{plain(metric_title(name))} {value_text(name, value)}"


def _how_far(folder: Path) -> str:
    try:
        events = read_events(folder)
    except ConfideError:
        return "damaged"
    last = next((e for e in reversed(events) if e["event"] == "end"), None)
    if last is not None:
        return f"{last['status']} {last['code']}".strip()
    rounds = sum(event["event"] == "round" for event in events)
    return f"not ended, {rounds} rounds"


def show_runs(rows: Iterable[Row], console: Console) -> None:
    """Print the list."""
    whole = Column("run", no_wrap=True, overflow="fold")  # a name is there to be copied
    table = Table(whole, "began (UTC)", "status", "epsilon", "score", box=None, pad_edge=False)
    for row in rows:
        cells = (row.name, row.began, row.status, row.claim or _ABSENT, row.score or _ABSENT)
        table.add_row(*map(Text, cells))
    console.print(table)


# --- two runs beside each other ---


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Two runs: titled groups of rows, each a name and both values as people read them. Of claim
    and scores every row is there, of all else those that differ."""

    names: tuple[str, str]
    groups: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]

    def to_json(self) -> Json:
        """As report diff prints it for a program."""
        return {
            "runs": list(self.names),
            **{title.lower(): [list(row) for row in rows] for title, rows in self.groups},
        }


def beside(one: Json, other: Json) -> Beside:
    """Two reports."""
    cost, other_cost = ({k: _number(v) for k, v in r["costs"].items()} for r in (one, other))
    groups = (
        ("Claim", _rows(_claim(one), _claim(other))),
        ("Scores", _rows(_scores(one), _scores(other))),
        ("Settings", _rows(_settings(one), _settings(other), same=False)),
        ("Costs", _rows(cost, other_cost, same=False)),
        ("Software", _rows(_texts(one["software"]), _texts(other["software"]), same=False)),
    )
    names = (plain(one["run"]["id"]), plain(other["run"]["id"]))
    return Beside(names=names, groups=tuple((title, tuple(rows)) for title, rows in groups))


def _rows(
    one: Mapping[str, str], other: Mapping[str, str], *, same: bool = True
) -> Iterator[tuple[str, str, str]]:
    for key in dict.fromkeys([*one, *other]):
        left, right = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if same or left != right:
            yield plain(key), left, right


def _claim(report: Json) -> dict[str, str]:
    claim, run = report["claim"], report["run"]
    failed = [check["name"] for check in report["checks"] if check["state"] == "failed"]
    strong = claim.get("strength") or {}
    return {
        "epsilon": epsilon_text(claim["epsilon"]) if claim["private"] else "not private",
        "delta": f"{claim['delta']:g}",
        "unit": plain(claim["unit"]),
        "runs on the text": str(claim["runs"]),
        "this run alone": epsilon_text(claim["this_run"]["spent"]),
        "strength": plain(strong.get("word", _ABSENT)),
        "rounds": f"{run['rounds']} of {run['rounds_planned']}",
        "holders": str(len(report["holders"])),
        "failed checks": plain(", ".join(failed)) or "none",
    }


def _scores(report: Json) -> dict[str, str]:
    utility = report["utility"]
    found = {"examples": str(utility["examples"])}
    for when in ("before", "after"):
        for name, value in (utility[when] or {}).items():
            shown = f"{value:.4f}" if name == "loss" and value is not None else None
            found[f"{metric_title(name)} {when}"] = plain(shown or value_text(name, value))
    if utility["interval"]:
        low, high = (value_text(utility["metric"], end) for end in utility["interval"])
        found["95 % interval"] = f"{low} to {high}"
    return found


def _settings(report: Json) -> dict[str, str]:
    model = report["run"]["model"]
    weights = {"base model": plain(model.get("name")), "sha256": plain(model.get("sha256"))}
    return weights | _texts(report["settings"])


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: plain(value) for key, value in values.items()}


def _number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, int | float) else _ABSENT


def show_beside(found: Beside, console: Console) -> None:
    """Print both."""
    for title, rows in found.groups:
        if not rows:
            continue
        table = Table(title.lower(), *found.names, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table, "")


def beside_page(found: Beside) -> str:
    """The page."""
    one, other = map(escape, found.names)
    head = f'<tr><th scope="col"></th><th scope="col">{one}</th><th scope="col">{other}</th></tr>'
    parts = [f"<h1>{one} and {other}</h1>"]
    for title, rows in found.groups:
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        table = f'<table class="beside"><thead>{head}</thead><tbody>{cells}</tbody></table>'
        nothing = "<p>Nothing differs.</p>"
        parts.append(f"<section><h2>{escape(title)}</h2>{table if rows else nothing}</section>")
    return page(f"{found.names[0]} and {found.names[1]}", "".join(parts), _STYLE)
