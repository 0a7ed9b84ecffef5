"""The report in a terminal: the claim first, then what it rests on, on one or two screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import (
    all_plain,
    epsilon_text,
    kept_text,
    metric_title,
    percent,
    plain,
    rounds_text,
    unmasked,
    value_text,
)
from .checks import FAILED, NOT_CHECKED, PASSED
from .verify import Verdict
from .words import told_of_sums

SHOWN_HOLDERS = 12


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report. Words from elsewhere are printed as text, never as markup, and without
    what a terminal would obey."""
    report = all_plain(report)
    console.print(
        Group(
            _claim(report),
            *_findings(report["findings"]),
            _section(
                "Utility", Group(_utility(report["utility"]), *map(Text, told_of_sums(report)))
            ),
            _section("Holders", _holders(report["holders"])),
            _section("What left the holders", _released(report["released"])),
            _section("Checks", _checks(report["checks"])),
            *_faults(report["faults"]),
        )
    )


def outcome(report: Mapping[str, Any]) -> str:
    """The run in one sentence: what it brought, and what it cost."""
    utility, claim = all_plain(report["utility"]), all_plain(report["claim"])
    name = utility["metric"]
    before, after = (value_text(name, utility[when].get(name)) for when in ("before", "after"))
    short = rounds_text(report)
    gained = f"{metric_title(name)} {before} before, {after} after"
    if not claim["private"] or claim["epsilon"] is None:
        return f"{gained}; NOT DIFFERENTIALLY PRIVATE.{short}"
    spent = f"({epsilon_text(claim['epsilon'])}, {claim['delta']:g})"
    of_all = f", from all {claim['runs']} runs together" if claim["runs"] > 1 else ""
    paid = f"{spent} per {claim['unit']}{of_all}{_behind(claim)}"
    return f"{gained}, for (epsilon, delta) = {paid}.{short}"


def _behind(claim: Mapping[str, Any]) -> str:
    """What a promise rests on where noise is in shares."""
    secure = claim.get("secure_sum")
    if not secure:
        return ""
    bare = epsilon_text(secure["unmasked_epsilon"])
    return f", behind secure sums (without their masks {bare})"


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Print what ``verify`` found."""
    table = _table("holder", ">epsilon by its ledger", ">in the report", "")
    for holder in verdict.holders:
        if not holder.checked and not holder.differences:
            state = Text("not checked", style="yellow")
        elif holder.differences:
            state = Text(plain("; ".join(holder.differences)), style="bold red")
        else:
            state = Text("agrees", style="green")
        table.add_row(
            Text(plain(holder.name)),
            epsilon_text(holder.epsilon_pld),
            epsilon_text(holder.reported),
            state,
        )
    console.print(table)
    style = {0: "green", 1: "bold red", 3: "yellow"}[verdict.status]
    end = Text(verdict.headline, style=style)
    parts = [("Different", verdict.differences), ("Not checked", verdict.not_checked)]
    for title, lines in (*parts, ("To be known", verdict.notes)):
        if lines:
            end.append(f"\n{title}:", style="bold").append(
                "".join(f"\n  - {plain(line)}" for line in lines), style="not bold"
            )
    console.print(end)


def _claim(report: Mapping[str, Any]) -> RenderableType:
    claim = report["claim"]
    good = claim["private"]
    words = Text(claim["sentence"], style="bold" if good else "bold red")
    words.append(f"\n\n{claim['in_plain_words']}", style="not bold")
    if good:
        run = claim["this_run"]
        proofs = " ".join([*claim["proven_by"], *unmasked(claim), claim["computational"]])
        beside = (
            f"This run alone: epsilon = {epsilon_text(run['spent'])} spent,"
            f" {epsilon_text(run['planned'])} planned."
        )
        if claim["runs"] > 1:
            summed = epsilon_text(claim["all_runs_by_pld"])
            beside += f" The PLD sum of all {claim['runs']} runs: {summed}."
        strong = f"By the usual tiers this is {claim['strength']['word']}."
        words.append(f"\n\n{strong} {beside}\n\n{proofs}", style="not bold dim")
    return Panel(
        words,
        title=Text(f"Privacy report: {report['run']['name']}"),
        title_align="left",
        border_style="green" if good else "red",
        padding=(1, 2),
    )


def _utility(utility: Mapping[str, Any]) -> RenderableType:
    name = utility["metric"]
    table = _table("", ">" + name, "")
    table.add_row("before training", value_text(name, utility["before"].get(name)), "")
    table.add_row(
        Text("after training", style="bold"),
        value_text(name, utility["after"].get(name)),
        _interval(utility),
    )
    for yardstick in utility["yardsticks"]:
        epsilon = yardstick.get("epsilon")
        note = yardstick.get("note") or (
            "" if epsilon is None else f"epsilon = {epsilon_text(epsilon)}"
        )
        value = value_text(name, yardstick.get(name))
        table.add_row(Text(yardstick["name"]), value, Text(note))
    others = [n for n in utility["after"] if n not in (name, "loss")]
    told = ", ".join(f"{metric_title(n)} {value_text(n, utility['after'][n])}" for n in others)
    notes = [f"after training also: {told}" if told else "", kept_text(utility)]
    return Group(table, *(Text(note, style="dim") for note in notes if note))


def _interval(utility: Mapping[str, Any]) -> str:
    if not utility["interval"]:
        return ""
    low, high = utility["interval"]
    return f"95 %: {100 * low:.1f} to {percent(high)} on {utility['examples']} held-out records"


_NAME = 16  # columns of a holder's name that are always shown


def _holders(holders: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table(
        "holder", ">rounds", ">noise", ">rate", ">this run", ">PRV", ">RDP", ">all runs", ">claim",
        "from",
    )  # fmt: skip
    for holder in sorted(holders, key=_by_epsilon)[:SHOWN_HOLDERS]:
        table.add_row(
            Text(holder["name"]),
            str(holder["rounds"]),
            _each(holder["events"], "noise_multiplier"),
            _each(holder["events"], "sampling_rate"),
            epsilon_text(holder["epsilon_pld"]),
            epsilon_text(holder["epsilon_prv"]),
            epsilon_text(holder["epsilon_rdp"]),
            epsilon_text(holder["epsilon_all_runs"]),
            Text(epsilon_text(holder["epsilon_proven"]), style="bold"),
            Text(holder["basis"], style="dim"),
        )
    # In 80 columns a name is worth more than the space between the figures.
    table.padding = (0, 1, 0, 0)
    table.columns[0].min_width = min(_NAME, max((len(h["name"]) for h in holders), default=0))
    more = len(holders) - SHOWN_HOLDERS
    if more <= 0:
        return table
    return Group(table, Text(f"and {more} more with less, in report.json", style="dim"))


def _each(events: Sequence[Mapping[str, Any]], name: str) -> str:
    return "\n".join(f"{value:.4g}" for value in sorted({event[name] for event in events})) or "–"


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """What bears on the claim; notes are in report.json and on the page."""
    styles = {"not private": "bold red", "not sound": "yellow"}
    told = [one for one in findings if one["severity"] != "note"]
    lines = [
        Text(f"{one['severity'].upper()}  ", style=styles.get(one["severity"], "bold red")).append(
            f"[{one['name']}] {one['what']} {one['why']}", style="none"
        )
        for one in told
    ]
    return [_section("What bears on it", Group(*lines))] if lines else []


def _by_epsilon(holder: Mapping[str, Any]) -> tuple[float, str]:
    epsilon = holder["epsilon_proven"]
    return (float("-inf") if epsilon is None else -epsilon, holder["name"])


def _released(released: Mapping[str, Any]) -> RenderableType:
    table = _table("", "", "")
    heads = {"accounted": "green", "public": "blue", "not_accounted": "yellow"}
    for group, style in heads.items():
        for index, thing in enumerate(released[group]):
            label = group.replace("_", " ") if index == 0 else ""
            table.add_row(Text(label, style=style), Text(thing["what"]), Text(thing["why"], "dim"))
    return table


def _checks(checks: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("", "", "")
    for check in checks:
        mark = Text(*_MARKS.get(check["state"], ("unknown", "bold red")))
        table.add_row(mark, Text(check["name"]), Text(check["detail"], "dim"))
    return table


_MARKS = {
    PASSED: ("passed", "green"),
    FAILED: ("FAILED", "bold red"),
    NOT_CHECKED: ("not checked", "yellow"),
}


def _faults(faults: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not faults:
        return []
    table = _table(">round", "holder", "code")
    for fault in faults[:SHOWN_HOLDERS]:
        table.add_row(str(fault["round"]), Text(fault["holder"]), Text(fault["code"]))
    more = len(faults) - SHOWN_HOLDERS
    rest = [Text(f"and {more} more, in report.json", style="dim")] if more > 0 else []
    return [_section("Left out, or noticed", Group(table, *rest))]


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2)))


def _table(*heads: str) -> Table:
    """A plain table; a head that starts with > is aligned to the right."""
    table = Table(
        box=box.SIMPLE_HEAD if any(heads) else None, pad_edge=False, show_header=any(heads)
    )
    for head in heads:
        table.add_column(
            head.removeprefix(">"), justify="right" if head.startswith(">") else "left"
        )
    return table
