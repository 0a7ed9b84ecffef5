"""report.html: one page that needs nothing else, neither network nor script nor font.

It is drawn for a data-protection officer: the claim first, then what it means, what it cost in
utility, what it rests on and what it does not cover. Every word that a run brought along goes
through ``escape``. Charts are inline SVG in percentages, so that text keeps its size from 400
pixels to paper. Colours come from ``LIGHT`` and ``DARK`` alone; every ink of ``INKS`` has a
contrast of 4.5:1 or more on every ground of ``GROUNDS`` (WCAG 2.2, 1.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...common.privacy.statement import delta_text
from . import (
    Json,
    epsilon_text,
    escape,
    group_text,
    is_share,
    kept_text,
    metric_title,
    percent,
    sections,
    share_of,
    unmasked,
    value_text,
)
from .style import page
from .svg import bar, curve_chart, line_chart
from .words import told_of_sums


def render(report: Json) -> str:
    """The whole page."""
    claim, name = report["claim"], report["run"]["name"]
    title = f"Privacy report: {name}"
    if not claim["private"]:
        title = f"NOT DIFFERENTIALLY PRIVATE: {name}"
    parts = [
        _header(report),
        _section(f"What this means for one {claim['unit']}", _person(claim), ""),
        _section("How useful the adapter is", _useful(report), _examples(report)),
        _section("Over the rounds", _rounds(report), ""),
        _section("Holders", sections.holders(report), _holders_lead(report)),
        _section("What left the holders", sections.released(report), _RELEASED_LEAD),
        _section("What is not protected", sections.things(report["not_protected"], "warn"), ""),
        _section(
            "Checks", sections.checks(report), "Computed from the run folder when it was written."
        ),
        _section("What was looked at besides", sections.findings(report), _FINDINGS_LEAD),
        _section("Who, for what, and for whom", sections.about(report), _ABOUT_LEAD),
        _section("Settings and versions", sections.settings(report), ""),
    ]
    return page(title, "\n".join(["", *parts, _FOOTER, ""]))


_HOLDERS_LEAD = (
    "Everything is recomputed from each holder's events. This run: what it spent, by PLD, PRV and "
    "RDP. All runs: the PLD sum of every run on the holder's text, which holds for settings fixed "
    "beforehand. Claim: what is proven of all of them, this run in full, whatever one run showed "
    "before the next was set up. {limit}"
)
_FINDINGS_LEAD = (
    "The same judgement as `confide doctor` gives: what weakens the promise, or the worth of the "
    "run. What bears on the claim stands below it, at the top."
)
_ABOUT_LEAD = (
    "Stated by people in about.toml of the run folder; no program checks it. Times are the run's."
)
_RELEASED_LEAD = "Everything that went from a holder to the coordinator, and who answers for it."
_FOOTER = (
    "<footer><p>A program can check this page: <code>confide report verify</code> makes it again "
    "from the run folder and the holders' ledgers, names every difference, and says what it could "
    "not check.</p></footer>"
)


# --- the frame ---


def _header(report: Json) -> str:
    claim, run = report["claim"], report["run"]
    started = str(run["started"] or "")[:10]
    line = " · ".join(escape(part) for part in ("Privacy report", run["name"], started) if part)
    good = claim["private"]
    look = "claim" if good else "claim withdrawn"
    return (
        f'<header><h1>{line}</h1><p class="{look}">{escape(claim["sentence"])}</p>'
        f"{_facts(report)}{_bearing(report['findings'])}{_proof(claim)}</header>"
    )


def _bearing(findings: Sequence[Json]) -> str:
    """What bears on the claim, so near to it that nobody reads the one without the other."""
    items = "".join(
        f'<li class="{look}"><strong>{escape(one["what"])}</strong>'
        f"<span>{escape(one['why'])}</span></li>"
        for one in findings
        for look in [sections.SEVERITIES.get(one["severity"], "bad")]
        if look != "accent"
    )
    return f'<ul class="list bearing">{items}</ul>' if items else ""


def _proof(claim: Json) -> str:
    """What the claim rests on, with the figures that it is not."""
    if not claim["private"]:
        return ""
    run = claim["this_run"]
    beside = (
        f"This run alone: epsilon = {epsilon_text(run['spent'])} spent,"
        f" {epsilon_text(run['planned'])} planned."
    )
    if claim["runs"] > 1:
        summed = epsilon_text(claim["all_runs_by_pld"])
        beside += f" The PLD sum of all runs, for settings fixed beforehand: {summed}."
    told = [*claim["proven_by"], beside, *unmasked(claim), claim["computational"]]
    return f'<p class="note proof">{" ".join(map(escape, told))}</p>'


def _facts(report: Json) -> str:
    claim, run, utility = report["claim"], report["run"], report["utility"]
    planned, metric = claim["planned_epsilon"], utility["metric"]
    before, after = (value_text(metric, utility[when].get(metric)) for when in ("before", "after"))
    strong = (claim["strength"] or {}).get("word")
    plan = "; ".join(
        part for part in (strong and escape(strong), planned and f"planned: {planned:g}") if part
    )
    epsilon = epsilon_text(claim["epsilon"]) if claim["private"] else "–"
    plan = plan if claim["private"] else "nothing is promised"
    unit = f"one {escape(claim['unit'])} added or removed"
    rounds = f"{run['rounds']} of {run['rounds_planned']} rounds"
    facts = (
        ("Epsilon", epsilon, plan),
        ("Delta", escape(delta_text(claim["delta"])), f"{claim['delta']:g}; {unit}"),
        (escape(metric_title(metric)), after, f"before: {before}"),
        ("Holders", escape(run["holders"] or "–"), rounds),
    )
    cells = (f"<div><dt>{n}</dt><dd>{v}<small>{s}</small></dd></div>" for n, v, s in facts)
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _section(title: str, body: str, lead: str) -> str:
    aside = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    head = f"<div><h2>{escape(title)}</h2>{aside}</div>"
    return f'<section>{head}<div class="body">{body}</div></section>'


# --- sections ---


def _holders_lead(report: Json) -> str:
    planned = report["claim"]["planned_epsilon"]
    limit = f"The bars are against the {planned:g} planned for this run." if planned else ""
    return _HOLDERS_LEAD.format(limit=limit)


def _person(claim: Json) -> str:
    parts = [f"<p>{escape(claim['in_plain_words'])}</p>"]
    if claim["attacker"]:
        parts.append('<div class="pair">' + "".join(map(_attack, claim["attacker"])) + "</div>")
    if claim["groups"]:
        told = "; ".join(
            f"with {group['records']} records it is {group_text(group['epsilon'])}"
            for group in claim["groups"]
        )
        how = claim["groups"][0]["accounting"]
        parts.append(
            f'<p class="note">All of this is about one {escape(claim["unit"])}, and about nobody '
            "as a whole: whoever has several at the same holder is protected less. For so many "
            f"together the epsilon is larger: {told}. Computed so: {escape(how)}.</p>"
        )
    if claim["strength"]:
        parts.append(f'<p class="note">{escape(claim["strength"]["why"])}</p>')
    return "".join(parts) + _trade(claim)


def _trade(claim: Json) -> str:
    """One run has an epsilon at every delta; the claim is one point of this line."""
    if not claim["curve"]:
        return ""
    chart = curve_chart(claim["curve"], (claim["delta"], claim["epsilon"]), "Epsilon by delta")
    return (
        f"<figure><h3>The same promise at other deltas</h3>{chart}"
        '<figcaption class="note">Roughly, delta is the chance that epsilon does not bound '
        "what is learnt. The smaller it is asked to be, the larger epsilon; the dot is the claim."
        "</figcaption></figure>"
    )


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


def _useful(report: Json) -> str:
    sums = "".join(f'<p class="note">{escape(told)}</p>' for told in told_of_sums(report))
    return _utility(report["utility"]) + sums


def _utility(utility: Json) -> str:
    metric, interval = utility["metric"], utility["interval"]
    rows = [("Before training", "", utility["before"].get(metric), "", None)]
    note = f"95 % interval {percent(interval[0])} to {percent(interval[1])}" if interval else ""
    rows.append(("This run", note, utility["after"].get(metric), "main", interval))
    for yardstick in utility["yardsticks"]:
        epsilon = yardstick.get("epsilon")
        told = [f"epsilon {epsilon_text(epsilon)}"] if epsilon is not None else []
        told += [str(yardstick["note"])] if yardstick.get("note") else []
        rows.append((yardstick["name"], ", ".join(told), yardstick.get(metric), "", None))
    largest = max((value for _, _, value, _, _ in rows if value is not None), default=1.0)
    bars = "".join(
        f'<span class="{look}">{escape(name)}{f"<small>{escape(text)}</small>" if text else ""}'
        f"</span>{bar(share_of(metric, value, largest), look, whisker)}"
        f'<b class="{look}">{value_text(metric, value)}</b>'
        for name, text, value, look, whisker in rows
    )
    kept = f'<p class="note">{kept_text(utility)}</p>' if kept_text(utility) else ""
    return f'<figure><div class="bars wide">{bars}</div></figure>{_other_metrics(utility)}{kept}'


def _other_metrics(utility: Json) -> str:
    others = [name for name in utility["after"] if name not in (utility["metric"], "loss")]
    told = ", ".join(
        f"{metric_title(name)} {value_text(name, utility['after'][name])}" for name in others
    )
    return f'<p class="note">This run also: {escape(told)}.</p>' if told else ""


def _rounds(report: Json) -> str:
    metric = report["utility"]["metric"]
    title, points = escape(metric_title(metric)), report["utility"]["rounds"]
    line = [(float(p["round"]), float(p[metric])) for p in points if p.get(metric) is not None]
    share = is_share(metric)
    first = line_chart([("", line, True)], f"{title} by round", share=share)
    parts = [f"<figure><h3>{title}</h3>{first}</figure>"]
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
    return f'<p class="note">Left out, or noticed: {escape(shown + more)}.</p>'
