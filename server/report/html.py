"""report.html: one page that needs nothing else, neither network nor script nor font.

It is drawn for a data-protection officer: the claim first, then what it means, what it cost in
utility, what it rests on and what it does not cover. Every word that a run brought along goes
through ``escape``. Charts are inline SVG in percentages, so that text keeps its size from 400
pixels to paper. Colours come from ``LIGHT`` and ``DARK`` alone; every ink of ``INKS`` has a
contrast of 4.5:1 or more on every ground of ``GROUNDS`` (WCAG 2.2, 1.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from . import Json, epsilon_text, escape, group_text, percent
from .svg import DARK, LIGHT, bar, line_chart

SHOWN_HOLDERS = 50

STYLE = """
*{box-sizing:border-box}
html{font:17px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",
sans-serif;background:var(--page);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:68rem;padding:3.5rem 2rem 4rem}
h1,h2,h3,p,ul,dl,dd,figure,table{margin:0;padding:0}
h1{font-size:.95rem;font-weight:600;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:1.12rem;font-weight:650;line-height:1.35;text-wrap:balance}
h3{font-size:.95rem;font-weight:650;margin-bottom:.6rem}p+p,p+ul{margin-top:.7rem}
.claim{font:400 clamp(1.45rem,1.05rem + 1.7vw,2.15rem)/1.3 Charter,"Bitstream Charter","Sitka Text",
Cambria,Georgia,"Liberation Serif",serif;letter-spacing:-.006em;margin:1.1rem 0 2.2rem;
max-width:24em;text-wrap:pretty;overflow-wrap:anywhere}
.withdrawn{color:var(--bad);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(4,1fr);border-top:1px solid var(--rule);
border-bottom:1px solid var(--rule)}
.facts div{padding:1rem 1.2rem}.facts div+div{border-left:1px solid var(--rule)}
.facts div:first-child{padding-left:0}.facts dt{font-size:.82rem;color:var(--soft)}
.facts dd{font-size:1.5rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.facts small{display:block;font-size:.82rem;font-weight:400;color:var(--soft);line-height:1.4}
section{display:grid;grid-template-columns:15rem minmax(0,1fr);gap:1rem 3rem;padding:2.6rem 0;
border-bottom:1px solid var(--rule)}
section:last-of-type{border-bottom:0}
.lead{color:var(--soft);font-size:.88rem;margin-top:.5rem;line-height:1.5}
.body>*+*{margin-top:1.7rem}.body p{max-width:38em}.note{font-size:.88rem;color:var(--soft)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:2rem 2.5rem}
.bars{display:grid;grid-template-columns:minmax(7rem,auto) minmax(0,1fr) auto;gap:.55rem .9rem;
align-items:center;font-size:.92rem}
.bars.wide{grid-template-columns:minmax(0,17rem) minmax(0,1fr) auto}
.bars b{font-variant-numeric:tabular-nums;text-align:right;font-weight:500}
.bars .main{font-weight:650}
.bars small{display:block;color:var(--soft);font-size:.82rem;line-height:1.35;font-weight:400}
svg{display:block;width:100%;overflow:visible}.bar{height:14px}
.bar.thin{height:5px;margin-top:.3rem}.track{fill:var(--tint)}.fill{fill:var(--muted)}
.fill.main{fill:var(--accent)}.fill.bad{fill:var(--bad)}.whisker{stroke:var(--ink);stroke-width:1.5}
.chart{height:230px}.chart text{font-size:12.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .value{fill:var(--accent);font-weight:650;font-size:14px;paint-order:stroke;
stroke:var(--page);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--rule)}.limit{stroke:var(--warn);stroke-width:1.5;stroke-dasharray:5 4}
.chart .limit-text{fill:var(--warn)}.line{stroke:var(--muted);stroke-width:1.2;stroke-linecap:round}
.line.main{stroke:var(--accent);stroke-width:2.4}
.dot{fill:var(--accent);stroke:var(--page);stroke-width:2}
table{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th{font-size:.82rem;font-weight:500;color:var(--soft);text-align:right;vertical-align:bottom;
padding:0 0 .5rem 1rem;line-height:1.3}
td{text-align:right;padding:.5rem 0 .5rem 1rem;border-top:1px solid var(--rule);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0;overflow-wrap:anywhere}
td.key{font-weight:650;width:6.5rem}.list{list-style:none;display:grid;gap:.9rem}
.list li{padding-left:1.1rem;border-left:3px solid var(--rule)}
.list li.good{border-color:var(--good)}.list li.warn{border-color:var(--warn)}
.list li.bad{border-color:var(--bad)}.list li.accent{border-color:var(--accent)}
.list strong{font-weight:600;display:block}
.list span{color:var(--soft);font-size:.92rem;display:block;overflow-wrap:anywhere}
h3.good{color:var(--good)}h3.warn{color:var(--warn)}h3.accent{color:var(--accent)}
.mark{float:right;font-size:.85rem;font-weight:650;margin-left:1rem}.mark.good{color:var(--good)}
.mark.bad{color:var(--bad)}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:0 2.5rem;
font-size:.85rem}
.settings div{display:flex;justify-content:space-between;gap:1rem;padding:.28rem 0;
border-bottom:1px solid var(--rule)}
.settings dt{color:var(--soft);white-space:nowrap}
.settings dd{text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
footer{color:var(--soft);font-size:.85rem;padding-top:.5rem}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:56rem){section{grid-template-columns:minmax(0,1fr)}}
@media (max-width:40rem){html{font-size:16px}body{padding:2rem 1.15rem 3rem}section{padding:2rem 0}
.facts{grid-template-columns:1fr 1fr}.facts div{padding:.8rem .9rem}
.facts div:nth-child(odd){padding-left:0;border-left:0}
.facts div:nth-child(n+3){border-top:1px solid var(--rule)}
.pair{grid-template-columns:minmax(0,1fr)}
.bars.wide{grid-template-columns:minmax(0,1fr) auto;gap:.2rem .9rem;grid-auto-flow:dense}
.bars.wide>svg{grid-column:1/-1;margin-bottom:.7rem}
.holders thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.holders tr{display:grid;grid-template-columns:1fr 1fr;gap:.1rem 1.6rem;padding:.7rem 0;
border-top:1px solid var(--rule)}
.holders td{border:0;padding:0;display:flex;justify-content:space-between;width:auto}
.holders td::before{content:attr(data-label);color:var(--soft);font-weight:400}
.holders td:first-child{grid-column:1/-1;font-weight:650}
.holders td:first-child::before{content:none}.holders .bar{display:none}}
@media print{html{font-size:10.5pt;background:none}body{max-width:none;padding:0}
section{grid-template-columns:minmax(0,1fr);gap:.6rem;padding:1.2rem 0}
figure,li,tr,.facts,.bars{break-inside:avoid}h2,h3{break-after:avoid}
.track,.fill{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:18mm 16mm}}
"""


def render(report: Json) -> str:
    """The whole page."""
    claim, name = report["claim"], report["run"]["name"]
    title = f"Privacy report: {name}"
    if not claim["private"]:
        title = f"NOT DIFFERENTIALLY PRIVATE: {name}"
    parts = [_head(title), _header(report)]
    parts += [
        _section("What this means for one person", _person(claim), ""),
        _section("How useful the adapter is", _utility(report["utility"]), _examples(report)),
        _section("Over the rounds", _rounds(report), ""),
        _section("Holders", _holders(report), _HOLDERS_LEAD),
        _section("What left the holders", _released(report["released"]), _RELEASED_LEAD),
        _section("What is not protected", _things(report["not_protected"], "warn"), ""),
        _section("Checks", _checks(report), "Computed from the run folder when it was written."),
        _section("Settings and versions", _settings(report), ""),
    ]
    return "\n".join([*parts, _FOOTER, "</main></body></html>\n"])


_HOLDERS_LEAD = (
    "Epsilon of this run, recomputed from each holder's events. PLD is the figure of record, "
    "PRV a second opinion, RDP the conservative one. All runs: what the holder's data set has "
    "spent in total."
)
_RELEASED_LEAD = "Everything that went from a holder to the coordinator, and who answers for it."
_FOOTER = (
    "<footer><p>A program can check this page: <code>confide report verify</code> recomputes "
    "every epsilon from the holders' ledgers alone.</p></footer>"
)


# --- the frame ---


def _head(title: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_colours()}{STYLE}</style></head><body><main>"
    )


def _colours() -> str:
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette.items())
        for palette in (LIGHT, DARK)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _header(report: Json) -> str:
    claim, run = report["claim"], report["run"]
    started = str(run["started"] or "")[:10]
    line = " · ".join(escape(part) for part in ("Privacy report", run["name"], started) if part)
    good = claim["private"]
    look = "claim" if good else "claim withdrawn"
    return (
        f'<header><h1>{line}</h1><p class="{look}">{escape(claim["sentence"])}</p>'
        f"{_facts(report)}</header>"
    )


def _facts(report: Json) -> str:
    claim, run, utility = report["claim"], report["run"], report["utility"]
    planned, before = claim["planned_epsilon"], utility["before"]["accuracy"]
    plan = f"planned: {planned:g}" if planned else "&nbsp;"
    unit = f"one {escape(claim['unit'])} added or removed"
    rounds = f"{run['rounds']} of {run['rounds_planned']} rounds"
    after = percent(utility["after"]["accuracy"])
    facts = (
        ("Epsilon", epsilon_text(claim["epsilon"]), plan),
        ("Delta", f"{claim['delta']:g}", unit),
        ("Accuracy", after, f"before: {percent(before)}"),
        ("Holders", escape(run["holders"] or "–"), rounds),
    )
    cells = (f"<div><dt>{n}</dt><dd>{v}<small>{s}</small></dd></div>" for n, v, s in facts)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _section(title: str, body: str, lead: str) -> str:
    aside = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    head = f"<div><h2>{escape(title)}</h2>{aside}</div>"
    return f'<section>{head}<div class="body">{body}</div></section>'


# --- sections ---


def _person(claim: Json) -> str:
    parts = [f"<p>{escape(claim['in_plain_words'])}</p>"]
    if claim["attacker"]:
        parts.append('<div class="pair">' + "".join(map(_attack, claim["attacker"])) + "</div>")
    if claim["groups"]:
        told = "; ".join(
            f"with {group['records']} records it is {group_text(group['epsilon'])}"
            for group in claim["groups"]
        )
        parts.append(
            f'<p class="note">All of this is about one {escape(claim["unit"])}. For a person with '
            f"several at the same holder the epsilon is larger: {told}.</p>"
        )
    return "".join(parts)


def _attack(case: Json) -> str:
    blind, best = case["false_positive_rate"], case["true_positive_rate"]
    rows = (("Blind guess", blind, ""), ("Best attack", best, "main"), ("No protection", 1, ""))
    bars = "".join(
        f'<span class="{look}">{name}</span>{bar(share, look)}<b>{_upwards(share)} %</b>'
        for name, share, look in rows
    )
    return (
        f"<figure><h3>Found, when {100 * blind:g} % of the others are wrongly named</h3>"
        f'<div class="bars">{bars}</div></figure>'
    )


def _upwards(share: float) -> str:
    """Per cent, rounded up: an attacker is never made to look weaker."""
    return f"{math.ceil(1000 * share - 1e-6) / 10:g}"


def _examples(report: Json) -> str:
    count = report["utility"]["examples"]
    return f"Measured on {count} held-out records that no holder trained on." if count else ""


def _utility(utility: Json) -> str:
    rows = [("Before training", "", utility["before"]["accuracy"], "", None)]
    interval = utility["interval"]
    note = f"95 % interval {percent(interval[0])} to {percent(interval[1])}" if interval else ""
    rows.append(("This run", note, utility["after"]["accuracy"], "main", interval))
    for yardstick in utility["yardsticks"]:
        epsilon = yardstick.get("epsilon")
        told = [f"epsilon {epsilon_text(epsilon)}"] if epsilon is not None else []
        told += [str(yardstick["note"])] if yardstick.get("note") else []
        rows.append((yardstick["name"], ", ".join(told), yardstick["accuracy"], "", None))
    bars = "".join(
        f'<span class="{look}">{escape(name)}{f"<small>{escape(text)}</small>" if text else ""}'
        f'</span>{bar(share or 0.0, look, whisker)}<b class="{look}">{percent(share)}</b>'
        for name, text, share, look, whisker in rows
    )
    return f'<figure><div class="bars wide">{bars}</div></figure>'


def _rounds(report: Json) -> str:
    accuracy = [
        (float(point["round"]), float(point["accuracy"]))
        for point in report["utility"]["rounds"]
        if point["accuracy"] is not None
    ]
    first = line_chart([("", accuracy, True)], "Accuracy by round", share=True)
    parts = [f"<figure><h3>Accuracy</h3>{first}</figure>"]
    curves = [(h["name"], h["epsilon_rounds"]) for h in report["holders"] if h["epsilon_rounds"]]
    if curves:
        curves.sort(key=lambda curve: curve[1][-1][1])
        series = [
            (name, [(0.0, 0.0), *((r, e) for r, e in points)], name == curves[-1][0])
            for name, points in curves
        ]
        chart = line_chart(series, "Epsilon by round", limit=report["claim"]["planned_epsilon"])
        parts.append(f"<figure><h3>Epsilon of each holder</h3>{chart}</figure>")
    return f'<div class="pair">{"".join(parts)}</div>{_faults(report["faults"])}'


def _faults(faults: Sequence[Json]) -> str:
    if not faults:
        return '<p class="note">No holder was left out of any round.</p>'
    shown = "; ".join(
        f"round {fault['round']}: {fault['holder']} ({fault['code']})" for fault in faults[:8]
    )
    more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
    return f'<p class="note">Left out: {escape(shown + more)}.</p>'


def _holders(report: Json) -> str:
    holders = sorted(report["holders"], key=lambda h: (-(h["epsilon_pld"] or 0.0), h["name"]))
    if not holders:
        return "<p>No holder took part.</p>"
    labels = ("Holder", "Rounds", "Epsilon (PLD)", "PRV", "RDP", "All runs", "Known from")
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    rows = "".join(f"<tr>{_holder(holder, labels)}</tr>" for holder in holders[:SHOWN_HOLDERS])
    more = len(holders) - SHOWN_HOLDERS
    rest = f'<p class="note">And {more} more with less, in report.json.</p>' if more > 0 else ""
    return (
        f'<table class="holders"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}'
    )


def _holder(holder: Json, labels: Sequence[str]) -> str:
    epsilon, limit = holder["epsilon_pld"], holder["epsilon_limit"]
    over = limit is not None and epsilon is not None and epsilon > limit * (1 + 1e-9)
    look = "bad thin" if over else "main thin"
    share = bar(epsilon / limit, look) if limit and epsilon is not None else ""
    values = (
        escape(holder["name"]),
        str(holder["rounds"]),
        f"{epsilon_text(epsilon)}{share}",
        epsilon_text(holder["epsilon_prv"]),
        epsilon_text(holder["epsilon_rdp"]),
        epsilon_text(holder["epsilon_all_runs"]),
        escape(holder["basis"]),
    )
    cells = zip(labels, values, strict=True)
    return "".join(
        f'<td data-label="{label}"{" class=key" if index == 2 else ""}>{value}</td>'
        for index, (label, value) in enumerate(cells)
    )


def _released(released: Json) -> str:
    groups = (
        ("accounted", "Accounted: covered by the claim", "good"),
        ("public", "Public: never private", "accent"),
        ("not_accounted", "Not accounted: outside the claim", "warn"),
    )
    return "".join(
        f'<div><h3 class="{look}">{title}</h3>{_things(released[key], look)}</div>'
        for key, title, look in groups
        if released[key]
    )


def _things(things: Iterable[Json], look: str) -> str:
    items = "".join(
        f'<li class="{look}"><strong>{escape(thing["what"])}</strong>'
        f"<span>{escape(thing['why'])}</span></li>"
        for thing in things
    )
    return f'<ul class="list">{items}</ul>'


def _checks(report: Json) -> str:
    items = "".join(
        f'<li class="{look}"><span class="mark {look}">{word}</span>'
        f"<strong>{escape(check['name'])}</strong><span>{escape(check['detail'])}</span></li>"
        for check in report["checks"]
        for look, word in [("good", "passed") if check["passed"] else ("bad", "FAILED")]
    )
    return f'<ul class="list">{items}</ul>'


def _settings(report: Json) -> str:
    model = report["run"]["model"]
    about = {
        "run": report["run"]["id"],
        "base model": model.get("name"),
        "parameters": _thousands(model.get("parameters")),
        "trained": _thousands(model.get("trained")),
        "sha256 of the base": str(model.get("sha256") or "–")[:16],
    }
    groups = (
        ("Run", about),
        ("Costs", _costs(report["costs"])),
        ("Versions", report["software"]),
        ("Settings", {k: v for k, v in report["settings"].items() if v != ""}),
    )
    return "".join(
        f'<div><h3>{title}</h3><dl class="settings">{_rows(rows)}</dl></div>'
        for title, rows in groups
        if rows
    )


def _rows(rows: Json) -> str:
    return "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape('–' if value is None else value)}</dd></div>"
        for key, value in rows.items()
    )


def _costs(costs: Json) -> dict[str, str]:
    def shown(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value / scale:,.1f} {unit}"

    return {
        "whole run": shown(costs["seconds"], "s"),
        "one round": shown(costs["seconds_per_round"], "s"),
        "to a holder, a round": shown(costs["bytes_down"], "kB", 1000),
        "from a holder, a round": shown(costs["bytes_up"], "kB", 1000),
        "peak memory": shown(costs["peak_memory_mb"], "MB"),
    }


def _thousands(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
