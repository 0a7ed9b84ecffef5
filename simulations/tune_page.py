"""What a search found: a table, base models side by side, what it cost, and a page with plots.

The plots are inline SVG: the trials in their order, and along each dimension. A dot is a trial, a
cross one that ended early, a ring the best: no mark differs by its colour alone. Numbers lie along
the width. Each choice has a strip of its own, since the name of a model is too long for a place on
an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..common.settings import Scalar
from ..server.report import epsilon_text, escape
from ..server.report.style import page
from .space import Dimension
from .tune import Outcome, Trial

_STYLE = """
.scroll{overflow-x:auto}td,th{white-space:nowrap}
section.wide{grid-template-columns:minmax(0,1fr)}
header>p:not(.claim){max-width:44em}
"""


def cost_sentence(outcome: Outcome) -> str:
    """What the search cost, and what it would have cost on private text."""
    count, promise = len(outcome.trials), outcome.search.config()["privacy.epsilon"]
    if outcome.search.config()["privacy.trust"] == "off":
        return (
            f"The text of a scenario is public: these {count} trials cost no privacy. They were"
            " NOT DIFFERENTIALLY PRIVATE, and on private text nothing would protect it."
        )
    return (
        f"The text of a scenario is public: these {count} trials cost no privacy. On private text"
        f" every one of them is charged, also those that ended early: the fullest ledger would"
        f" stand at epsilon {epsilon_text(outcome.epsilon)} at delta {outcome.delta:g} for the"
        f" search alone, where one run promises {promise:g}."
    )


def grid_sentence(outcome: Outcome) -> str:
    """Which part of a grid was tried; empty if it was the whole grid, or there is no grid."""
    count, points = len(outcome.trials), outcome.search.points or 0
    if count >= points:
        return ""
    return f"{count} of the grid's {points} points were tried; --trials {points} tries all of them."


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the trials, the best one first."""
    keys = [dimension.key for dimension in outcome.search.space]
    ranked = sorted(outcome.trials, key=_rank)
    rows = [
        [
            str(t.number),
            t.state if t.state != "failed" else f"failed: {t.facts.get('code')}",
            _share(t.measure),
            *(_value(t.values[key]) for key in keys),
            _number(t.facts.get("seconds")),
        ]
        for t in ranked
    ]
    return ["trial", "state", outcome.search.measure, *keys, "seconds"], rows


def models(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Heads and a row for each base model, each by its best completed trial; empty for one."""
    measure = outcome.search.measure
    heads = ["model", measure, "trials", "seconds", "peak MB", "bytes up", "bytes down", "weights"]
    if not any(d.key == "model.name" for d in outcome.search.space):
        return heads, []
    found: dict[str, list[Trial]] = {}
    for trial in outcome.trials:
        found.setdefault(str(trial.values["model.name"]), []).append(trial)
    rows = []
    for name, trials in sorted(found.items(), key=lambda pair: _rank(min(pair[1], key=_rank))):
        best = min(trials, key=_rank)
        facts = ("seconds", "megabytes", "bytes_up", "bytes_down", "parameters")
        figures = [_number(best.facts.get(fact)) for fact in facts]
        rows.append([name, _share(best.measure), str(len(trials)), *figures])
    return heads, rows


def render(outcome: Outcome) -> str:
    """The page: cost, plots, tables. It needs nothing else and has no script."""
    name, best = outcome.search.scenario.name, outcome.best
    values = ", ".join(f"{key} = {_value(value)}" for key, value in best.values.items())
    told = escape(f"{_share(best.measure)} {outcome.search.measure} with {values}")
    body = [
        f"<header><h1>Search: {escape(name)}</h1>"
        f'<p class="claim">{told}</p>'
        f"<p>{escape(f'{grid_sentence(outcome)} {cost_sentence(outcome)}'.strip())}</p>"
        '<p class="note">The best of many trials is chosen on the same public text on which its'
        " figure is measured, and flatters; judge it on other text.</p></header>",
        _section("Trials in their order", history(outcome)),
    ]
    body += [_section(d.key, along(outcome, d)) for d in outcome.search.space]
    heads, rows = models(outcome)
    if rows:
        body.append(_section("Base models, side by side", _html_table(heads, rows), "wide"))
    body.append(_section("All trials", _html_table(*table(outcome)), "wide"))
    return page(f"Search: {name}", "".join(body), _PLOT_STYLE + _STYLE)


def _rank(trial: Trial) -> tuple[bool, float, int]:
    measure = -math.inf if trial.measure is None else trial.measure
    return trial.state != "complete", -measure, trial.number


def _value(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(measure: float | None) -> str:
    return "–" if measure is None else f"{measure:.3f}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _section(title: str, content: str, look: str = "") -> str:
    head = f'<section class="{look}"><h2>{escape(title)}</h2>'
    return f'{head}<div class="body">{content}</div></section>'


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


_PLOT_STYLE = """
.plot{width:100%;max-width:44rem;height:auto}
.plot text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.plot .choice{fill:var(--ink)}.plot .frame{stroke:var(--rule);fill:none}
.plot .done{fill:var(--accent)}.plot .cut{stroke:var(--muted);stroke-width:2;fill:none}
.plot .best{fill:none;stroke:var(--ink);stroke-width:2}
.plot .step{fill:none;stroke:var(--muted);stroke-dasharray:5 4}
@media (max-width:40rem){.plot text{font-size:17px}}
"""
_WIDTH, _HEIGHT, _STRIP = 560.0, 190.0, 58.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 14.0, 14.0, 34.0
_INSIDE = 10.0  # marks keep clear of the frame
_LONGEST = 48  # characters of a choice

Place = Callable[[float], float]


def history(outcome: Outcome) -> str:
    """The plot of the measure by trial, and of the best so far."""
    last = max((t.number for t in outcome.trials), default=0)
    places = {t.number: t.number / max(last, 1) for t in outcome.trials}
    plot = _plot(outcome, places, ["trial 0", f"trial {last}"], steps=True)
    note = "A dot is a trial, a cross one that ended early, the ring is the best."
    return f'{plot}<p class="note">{note}</p>'


def along(outcome: Outcome, dimension: Dimension) -> str:
    """The plot of the measure by the values of a dimension."""
    if dimension.choices:
        return _strips(outcome, dimension)
    low, high = dimension.low, dimension.high
    places = {t.number: _part(t.values[dimension.key], dimension) for t in outcome.trials}
    return _plot(outcome, places, [f"{low:g}", f"{high:g}{' (log)' if dimension.log else ''}"])


def _part(value: Scalar, dimension: Dimension) -> float:
    """Where a value lies between the ends of its range, in [0, 1]."""
    low, high, here = (
        math.log(float(v)) if dimension.log else float(v)
        for v in (dimension.low, dimension.high, value)
    )
    return (here - low) / (high - low)


def _between(low: float, high: float, first: float, last: float) -> Place:
    """Numbers from ``low`` to ``high`` onto pixels from ``first`` to ``last``."""
    span = max(high - low, 1e-9)
    return lambda value: first + (value - low) / span * (last - first)


def _measured(outcome: Outcome) -> list[Trial]:
    return [t for t in outcome.trials if t.measure is not None]


def _ends(outcome: Outcome) -> tuple[float, float]:
    """The least and the greatest measure."""
    found = [t.measure or 0.0 for t in _measured(outcome)]
    return min(found), max(found)


def _plot(
    outcome: Outcome, places: Mapping[int, float], labels: Sequence[str], *, steps: bool = False
) -> str:
    """The measure upwards over places in [0, 1]."""
    low, high = _ends(outcome)
    x = _between(0, 1, _LEFT + _INSIDE, _WIDTH - _RIGHT - _INSIDE)
    y = _between(low, high, _HEIGHT - _BOTTOM - _INSIDE, _TOP + _INSIDE)
    marks = [_frame(_LEFT, _HEIGHT), _text(_LEFT - 8, y(high) + 4, f"{high:.3f}", "end")]
    if high > low:
        marks.append(_text(_LEFT - 8, y(low) + 4, f"{low:.3f}", "end"))
    marks.append(_text(_LEFT, _HEIGHT - 12, labels[0], "start"))
    marks.append(_text(_WIDTH - _RIGHT, _HEIGHT - 12, labels[-1], "end"))
    if steps:
        marks.append(_best_so_far(outcome, lambda t: x(places[t.number]), y))
    marks += [
        _mark(outcome, t, x(places[t.number]), y(t.measure or 0.0)) for t in _measured(outcome)
    ]
    return _svg(outcome, marks, _HEIGHT)


def _strips(outcome: Outcome, dimension: Dimension) -> str:
    """The measure to the right, a strip for each choice below its name."""
    low, high = _ends(outcome)
    height = _TOP + _STRIP * len(dimension.choices) + _BOTTOM
    x = _between(low, high, _INSIDE + 2, _WIDTH - _RIGHT - _INSIDE)
    marks = []
    for number, choice in enumerate(dimension.choices):
        top = _TOP + number * _STRIP
        marks.append(_text(0, top + 10, _plain(choice), "start", "choice"))
        line = f'x1="0" x2="{_WIDTH - _RIGHT}" y1="{top + 34:.1f}" y2="{top + 34:.1f}"'
        marks.append(f'<line class="frame" {line}/>')
        marks += [
            _mark(outcome, t, x(t.measure or 0.0), top + 34)
            for t in _measured(outcome)
            if t.values[dimension.key] == choice
        ]
    marks.append(_text(0, height - 12, f"{low:.3f}", "start"))
    if high > low:
        marks.append(_text(_WIDTH - _RIGHT, height - 12, f"{high:.3f}", "end"))
    return _svg(outcome, marks, height)


def _plain(value: Scalar) -> str:
    """A choice; only its end if it is longer than a narrow screen."""
    words = f"{value:.4g}" if isinstance(value, float) else str(value)
    return words if len(words) <= _LONGEST else f"…{words[1 - _LONGEST :]}"


def _svg(outcome: Outcome, marks: Sequence[str], height: float) -> str:
    title = escape(f"{outcome.search.measure} of the trials")
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {_WIDTH:g} {height:g}" aria-label="{title}">'
        f"{''.join(marks)}</svg>"
    )


def _frame(left: float, height: float) -> str:
    size = f'width="{_WIDTH - left - _RIGHT}" height="{height - _TOP - _BOTTOM}"'
    return f'<rect class="frame" x="{left}" y="{_TOP}" {size}/>'


def _text(x: float, y: float, words: str, anchor: str, look: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{look}" {place}>{escape(words)}</text>'


def _mark(outcome: Outcome, trial: Trial, x: float, y: float) -> str:
    told = escape(f"trial {trial.number}: {trial.state}, {trial.measure:.3f}")
    title = f"<title>{told}</title>"
    if trial.state != "complete":
        ends = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path class="cut" d="{ends}">{title}</path>'
    dot = f'<circle class="done" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
    if trial.number != outcome.best.number:
        return dot
    return f'{dot}<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="8">{title}</circle>'


def _best_so_far(outcome: Outcome, x: Callable[[Trial], float], y: Place) -> str:
    points: list[str] = []
    best = -math.inf
    for trial in _measured(outcome):
        if trial.state != "complete":
            continue
        if points:
            points.append(f"{x(trial):.1f},{y(best):.1f}")
        best = max(best, trial.measure or 0.0)
        points.append(f"{x(trial):.1f},{y(best):.1f}")
    return f'<polyline class="step" points="{" ".join(points)}"/>'
