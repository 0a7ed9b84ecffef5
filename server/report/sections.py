"""The sections of report.html that are lists and tables, from the holders to the settings.

Whatever came from elsewhere goes through ``escape``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import Json, epsilon_text, escape
from .checks import FAILED, NOT_CHECKED, PASSED
from .svg import bar

SHOWN_HOLDERS = 50
SEVERITIES = {"not private": "bad", "not sound": "warn", "note": "accent"}
_LABELS = (
    "Holder", "Rounds", "Noise multiplier", "Sampling rate", "This run (PLD)", "PRV", "RDP",
    "All runs (PLD)", "Claim", "Known from",
)  # fmt: skip
_KEY = _LABELS.index("Claim")


def holders(report: Json) -> str:
    """Every holder: what it released, what it spent, what is claimed of it."""
    rows_of = sorted(report["holders"], key=lambda h: (-(h["epsilon_proven"] or 0.0), h["name"]))
    if not rows_of:
        return "<p>No holder took part.</p>"
    head = "".join(f'<th scope="col">{label}</th>' for label in _LABELS)
    rows = "".join(f"<tr>{_holder(holder)}</tr>" for holder in rows_of[:SHOWN_HOLDERS])
    more = len(rows_of) - SHOWN_HOLDERS
    rest = f'<p class="note">And {more} more with less, in report.json.</p>' if more > 0 else ""
    return (
        f'<table class="holders"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}'
        f"{_mechanism(report['mechanism'])}"
    )


def _mechanism(mechanism: Json) -> str:
    told = (
        f"Clip norm: {mechanism['clip']:g}. Noise: {mechanism['noise']}. Sampling:"
        f" {mechanism['sampling']}. {mechanism['accountants']}"
    )
    return f'<p class="note">{escape(told)}</p>'


def _holder(holder: Json) -> str:
    spent, limit = holder["epsilon_pld"], holder["epsilon_limit"]
    over = limit is not None and spent is not None and spent > limit * (1 + 1e-9)
    share = bar(spent / limit, "bad thin" if over else "main thin") if limit and spent else ""
    runs = f"<small>{holder['runs']} runs</small>" if holder["runs"] > 1 else ""
    values = (
        escape(holder["name"]),
        str(holder["rounds"]),
        _each(holder["events"], "noise_multiplier"),
        _each(holder["events"], "sampling_rate"),
        f"{epsilon_text(spent)}{share}",
        epsilon_text(holder["epsilon_prv"]),
        epsilon_text(holder["epsilon_rdp"]),
        f"{epsilon_text(holder['epsilon_all_runs'])}{runs}",
        epsilon_text(holder["epsilon_proven"]),
        escape(holder["basis"]),
    )
    cells = zip(_LABELS, values, strict=True)
    return "".join(
        f'<td data-label="{label}"{" class=key" if index == _KEY else ""}>{value}</td>'
        for index, (label, value) in enumerate(cells)
    )


def _each(events: Sequence[Json], name: str) -> str:
    """The different values of a holder's releases, sums among them."""
    return "<br>".join(f"{value:.4g}" for value in sorted({event[name] for event in events})) or "–"


def released(report: Json) -> str:
    """All that left the holders, by who answers for it."""
    groups = (
        ("accounted", "Accounted: covered by the claim", "good"),
        ("public", "Public: never private", "accent"),
        ("not_accounted", "Not accounted: outside the claim", "warn"),
    )
    return "".join(
        f'<div><h3 class="{look}">{title}</h3>{things(report["released"][key], look)}</div>'
        for key, title, look in groups
        if report["released"][key]
    )


def things(things: Iterable[Json], look: str) -> str:
    """Things and why, as a list."""
    items = "".join(
        f'<li class="{look}"><strong>{escape(thing["what"])}</strong>'
        f"<span>{escape(thing['why'])}</span></li>"
        for thing in things
    )
    return f'<ul class="list">{items}</ul>'


def checks(report: Json) -> str:
    """What was verified, in one of three states."""
    items = "".join(
        f'<li class="{look}"><span class="mark {look}">{word}</span>'
        f"<strong>{escape(check['name'])}</strong><span>{escape(check['detail'])}</span></li>"
        for check in report["checks"]
        for look, word in [_MARKS.get(check["state"], ("bad", "unknown"))]
    )
    return f'<ul class="list">{items}</ul>'


def findings(report: Json) -> str:
    """What the doctor finds, with its remedies."""
    if not report["findings"]:
        return "<p>Nothing was found.</p>"
    items = "".join(
        f'<li class="{SEVERITIES.get(one["severity"], "bad")}"><span class="mark">'
        f"{escape(one['severity'])}</span><strong>{escape(one['what'])}</strong>"
        f"<span>{escape(one['why'])} {escape(one['fix'])}</span></li>"
        for one in report["findings"]
    )
    return f'<ul class="list">{items}</ul>'


def about(report: Json) -> str:
    """What people stated, when it was, and places to sign."""
    run, seconds = report["run"], report["costs"]["seconds"]
    took = f"{run['started'] or '–'} to {run['ended'] or '–'}"
    times = {"When": took, "Computed for": "–" if seconds is None else f"{seconds:,.0f} s"}
    stated = f'<dl class="about">{_rows({**report["about"], **times})}</dl>'
    signs = "".join(
        f'<div class="sign"><span>{who}</span><span>Date, signature</span></div>'
        for who in ("For the coordinator", "For the holders", "Data-protection officer")
    )
    return f'{stated}<div class="signs">{signs}</div>'


_MARKS = {
    PASSED: ("good", "passed"),
    FAILED: ("bad", "FAILED"),
    NOT_CHECKED: ("warn", "not checked"),
}


def settings(report: Json) -> str:
    """Run, costs, versions and settings."""
    model = report["run"]["model"]
    facts = {
        "run": report["run"]["id"],
        "base model": model.get("name"),
        "parameters": _thousands(model.get("parameters")),
        "trained": _thousands(model.get("trained")),
        "sha256 of the base": str(model.get("sha256") or "–")[:16],
        **({"head": model["head"]} if model.get("head") else {}),
    }
    groups = (
        ("Run", facts),
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
