"""Figures as inline SVG: a bar and a line chart, in two palettes, without a script or a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from . import epsilon_text, escape, percent

CHART_TOP, CHART_BOTTOM, CHART_LEFT, CHART_RIGHT = 12.0, 88.0, 8.0, 98.0  # per cent
DRAWN_POINTS = 60
Series = tuple[str, Sequence[tuple[float, float]], bool]


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
    ticks = _ticks(min(values) if share else min(0.0, *values), max(values))
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


def curve_chart(
    points: Sequence[Sequence[float | None]], claim: tuple[float, float], title: str
) -> str:
    """Epsilon over delta, delta on a scale of powers of ten; the dot is the claim."""
    line = [(math.log10(delta), epsilon) for delta, epsilon in points if delta and epsilon]
    if not line:
        return ""
    line = sorted([*line, (math.log10(claim[0]), claim[1])])
    ticks = _ticks(0.0, max(y for _, y in line))
    frame = _Frame(line[0][0], line[-1][0], ticks[0], ticks[-1])
    powers = range(math.ceil(line[0][0] - 1e-9), math.floor(line[-1][0] + 1e-9) + 1)
    labels = "".join(
        f'<text x="{frame.x(power)}" y="98%" text-anchor="'
        f'{"end" if power == powers[-1] else "middle"}">1e{power:d}</text>'
        for power in powers[::2] or [powers[0]]
    )
    x, y = frame.x(math.log10(claim[0])), frame.y(claim[1])
    told = f"{epsilon_text(claim[1])} at {claim[0]:g}"
    marks = [_grid(frame, ticks, share=False), labels, _line(frame, "", line, chief=True)]
    marks.append(
        f'<circle class="dot" cx="{x}" cy="{y}" r="5"/>'
        f'<text class="value" x="{x}" y="{y}" dx=".7em" dy="-.6em">{told}</text>'
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
