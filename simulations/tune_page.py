"""What a search found: a table, base models side by side, what it cost, and a page with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..common.settings import Scalar
from ..server.page import page
from ..server.report import epsilon_text, escape
from .space import Dimension
from .tune import Outcome, Trial

_WIDTH, _HEIGHT, _MARGIN = 560.0, 200.0, 44.0
_STYLE = """
.plot{width:100%;min-width:26rem;height:auto}.scroll{overflow-x:auto}
.plot text{fill:var(--soft);font-size:12px}.plot .frame{stroke:var(--rule);fill:none}
.plot .done{fill:var(--accent)}.plot .cut{stroke:var(--muted);stroke-width:2;fill:none}
.plot .best{fill:none;stroke:var(--ink);stroke-width:2.4}
.plot .step{fill:none;stroke:var(--muted);stroke-dasharray:5 4}
td,th{white-space:nowrap}
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
    told = ", ".join(f"{key} = {_value(value)}" for key, value in best.values.items())
    body = [
        f"<header><h1>Search: {escape(name)}</h1>"
        f'<p class="claim">{_share(best.measure)} {outcome.search.measure} with {escape(told)}</p>'
        f"<p>{escape(cost_sentence(outcome))}</p>"
        '<p class="note">The best of many trials is chosen on the same public text on which its'
        " figure is measured, and flatters; judge it on other text.</p></header>",
        _section("Trials in their order", _history(outcome)),
    ]
    body += [_section(d.key, _slice(outcome, d)) for d in outcome.search.space]
    heads, rows = models(outcome)
    if rows:
        body.append(_section("Base models, side by side", _html_table(heads, rows)))
    body.append(_section("All trials", _html_table(*table(outcome))))
    return page(f"Search: {name}", "".join(body), _STYLE)


def _rank(trial: Trial) -> tuple[bool, float, int]:
    measure = -math.inf if trial.measure is None else trial.measure
    return trial.state != "complete", -measure, trial.number


def _value(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(measure: float | None) -> str:
    return "–" if measure is None else f"{measure:.3f}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _section(title: str, content: str) -> str:
    return f'<section><h2>{escape(title)}</h2><div class="body">{content}</div></section>'


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _history(outcome: Outcome) -> str:
    last = max((t.number for t in outcome.trials), default=0)
    places = {t.number: t.number / max(last, 1) for t in outcome.trials}
    return _plot(outcome, places, ["0", f"trial {last}"], steps=True)


def _slice(outcome: Outcome, dimension: Dimension) -> str:
    if dimension.choices:
        at = {
            choice: i / max(len(dimension.choices) - 1, 1)
            for i, choice in enumerate(dimension.choices)
        }
        labels = [_value(choice) for choice in dimension.choices]
        return _plot(
            outcome, {t.number: at[t.values[dimension.key]] for t in outcome.trials}, labels
        )

    def place(value: Scalar) -> float:
        low, high, here = (
            math.log(float(v)) if dimension.log else float(v)
            for v in (dimension.low, dimension.high, value)
        )
        return (here - low) / (high - low)

    ends = [f"{dimension.low:g}", f"{dimension.high:g}{' (log)' if dimension.log else ''}"]
    return _plot(outcome, {t.number: place(t.values[dimension.key]) for t in outcome.trials}, ends)


def _plot(
    outcome: Outcome, places: Mapping[int, float], labels: Sequence[str], *, steps: bool = False
) -> str:
    """The measure over places in [0, 1]: a dot for a trial, a cross for one that ended early, a
    ring around the best."""
    shown = [t for t in outcome.trials if t.measure is not None]
    low, high = min(t.measure or 0 for t in shown), max(t.measure or 0 for t in shown)
    span = max(high - low, 1e-9)

    def x(share: float) -> float:
        return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

    def y(measure: float) -> float:
        return _HEIGHT - _MARGIN - (measure - low) / span * (_HEIGHT - 1.6 * _MARGIN)

    marks = [
        f'<rect class="frame" x="{_MARGIN}" y="{0.4 * _MARGIN:.1f}" '
        f'width="{_WIDTH - 2 * _MARGIN}" height="{_HEIGHT - 1.2 * _MARGIN:.1f}"/>',
        f'<text x="{_MARGIN - 6}" y="{y(high) + 4:.1f}" text-anchor="end">{high:.3f}</text>',
    ]
    if high > low:
        marks.append(
            f'<text x="{_MARGIN - 6}" y="{y(low) + 4:.1f}" text-anchor="end">{low:.3f}</text>'
        )
    marks += _labels(labels, x)
    if steps:
        marks.append(_best_so_far(shown, places, x, y))
    marks += [_mark(t, x(places[t.number]), y(t.measure or 0)) for t in shown]
    best = outcome.best
    marks.append(
        f'<circle class="best" cx="{x(places[best.number]):.1f}" cy="{y(best.measure or 0):.1f}" '
        'r="8"><title>the best</title></circle>'
    )
    measure = outcome.search.measure
    title = f"{measure}: a dot is a trial, a cross one that ended early, the ring is the best"
    return (
        f'<div class="scroll"><svg class="plot" role="img" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" '
        f'aria-label="{title}">{"".join(marks)}</svg></div><p class="note">{title}.</p>'
    )


def _labels(labels: Sequence[str], x: Any) -> Iterator[str]:
    for i, label in enumerate(labels):
        share = i / max(len(labels) - 1, 1)
        anchor = ("start", "middle", "end")[(share > 0) + (share == 1)]
        yield (
            f'<text x="{x(share):.1f}" y="{_HEIGHT - 0.35 * _MARGIN:.1f}" text-anchor="{anchor}">'
            f"{escape(label)}</text>"
        )


def _mark(trial: Trial, x: float, y: float) -> str:
    told = (
        f"<title>{escape(f'trial {trial.number}: {trial.state}, {_share(trial.measure)}')}</title>"
    )
    if trial.state == "complete":
        return f'<circle class="done" cx="{x:.1f}" cy="{y:.1f}" r="4">{told}</circle>'
    ends = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return f'<path class="cut" d="{ends}">{told}</path>'


def _best_so_far(shown: Sequence[Trial], places: Mapping[int, float], x: Any, y: Any) -> str:
    points: list[str] = []
    best = -math.inf
    for trial in shown:
        if trial.state != "complete":
            continue
        if points:
            points.append(f"{x(places[trial.number]):.1f},{y(best):.1f}")
        best = max(best, trial.measure or 0)
        points.append(f"{x(places[trial.number]):.1f},{y(best):.1f}")
    return f'<polyline class="step" points="{" ".join(points)}"/>'
