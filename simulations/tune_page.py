"""What a search found: a table, base models side by side, what it cost, and a page with plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..common.settings import Scalar
from ..server.report import epsilon_text, escape
from ..server.report.style import page
from . import tune_plot
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
    """Which part of a grid was tried; nothing where it was all of it, or there is none."""
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
        _section("Trials in their order", tune_plot.history(outcome)),
    ]
    body += [_section(d.key, tune_plot.along(outcome, d)) for d in outcome.search.space]
    heads, rows = models(outcome)
    if rows:
        body.append(_section("Base models, side by side", _html_table(heads, rows), "wide"))
    body.append(_section("All trials", _html_table(*table(outcome)), "wide"))
    return page(f"Search: {name}", "".join(body), tune_plot.STYLE + _STYLE)


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
