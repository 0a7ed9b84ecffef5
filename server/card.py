"""The adapter's model card: what it is, how to load it without confide, what is promised.

Written from the report alone, so that the card cannot promise what the report does not. It
names no path of this machine and no holder. Format: the Hub's README.md with YAML front matter
(JSON strings are valid YAML, so that no name can break out of its field).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..common.kinds import KINDS
from ..common.privacy.statement import delta_text
from .report import epsilon_text, kept_text, percent, plain, value_text
from .usage import explained, labels_of, loading_code

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ("confide", "differential-privacy", "federated-learning", "lora")


def model_card(report: Mapping[str, Any]) -> str:
    """The text of the card."""
    name = _line(report["run"]["name"])
    parts = [
        _front_matter(report),
        f"# {name}\n\n{_what_it_is(report)}",
        f"## How to load it\n\n{_loading(report)}",
        f"## Privacy\n\n{_privacy(report)}",
        f"## Utility\n\n{_utility(report['utility'])}",
        f"## Limits\n\n{_limits(report)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(report: Mapping[str, Any]) -> str:
    base = _base(report)
    lines = ["---"]
    if _HUB_ID.fullmatch(base):  # the Hub refuses a base_model that is no id of its own
        lines.append(f"base_model: {json.dumps(base)}")
    private = report["claim"]["private"]
    task = KINDS[report["settings"]["task.kind"]].hub
    tags = [tag for tag in (*_TAGS, task) if private or tag != "differential-privacy"]
    return "\n".join([*lines, "library_name: peft", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _base(report: Mapping[str, Any]) -> str:
    return str(report["run"]["model"]["name"])


def _what_it_is(report: Mapping[str, Any]) -> str:
    run, settings = report["run"], report["settings"]
    sha = run["model"].get("sha256")
    pinned = f" (sha256 of the weights: `{_line(sha)}`)" if sha else ""
    trained = run["model"].get("trained")
    size = f" with {trained:,} trained parameters" if trained else ""
    labels = ", ".join(_line(label) for label in labels_of(settings))
    does = KINDS[settings["task.kind"]].does
    low, high = settings["task.low"], settings["task.high"]
    return (
        f"An adapter for `{_line(_base(report))}`{pinned}{size}, which "
        f"{does.format(labels=labels, low=low, high=high)}. It was trained by"
        f" {_line(run['rounds'])} federated rounds over {_line(run['holders'] or 'several')}"
        " holders, whose texts stayed with them."
    )


def _loading(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    why = explained(settings)
    code = loading_code(settings, _base(report), merged=False)
    return f"Plain PEFT is enough. {f'{why[:-1]}:' if why else ''}\n\n```python\n{code}```"


def _privacy(report: Mapping[str, Any]) -> str:
    claim = report["claim"]
    sentence = f"**{_line(claim['sentence'])}**\n\n{_line(claim['in_plain_words'])}"
    if not claim["private"]:
        return sentence
    return (
        f"{sentence}\n\n- unit: one {_line(claim['unit'])}; neighbouring:"
        f" {_line(claim['neighbouring'])}\n"
        f"- epsilon {epsilon_text(claim['epsilon'])} at delta = {delta_text(claim['delta'])}"
        f" ({claim['delta']:g}), the largest of all holders, of all runs on their texts\n"
        f"- against: {_line(claim['adversary'])}\n"
        + "".join(f"- {_line(told)}\n" for told in (*claim["proven_by"], claim["computational"]))
        + "\n"
        "`report.json` and `report.html` of the run show what this rests on."
    )


def _utility(utility: Mapping[str, Any]) -> str:
    name = utility["metric"]
    before, after = (value_text(name, utility[when].get(name)) for when in ("before", "after"))
    rows = [
        f"| | {_cell(name)} | epsilon |\n|---|---|---|",
        f"| before training | {before} | |",
        f"| **this adapter** | **{after}** | |",
    ]
    for yardstick in utility["yardsticks"]:
        epsilon = yardstick.get("epsilon")
        shown = "" if epsilon is None else epsilon_text(epsilon)
        rows.append(
            f"| {_cell(yardstick['name'])} | {value_text(name, yardstick.get(name))} | {shown} |"
        )
    told = [f"On {_line(utility['examples'])} held-out records."] if utility["examples"] else []
    if utility["interval"]:
        low, high = utility["interval"]
        told = [
            f"On {_line(utility['examples'])} held-out records; 95 % interval of this adapter: "
            f"{percent(low)} to {percent(high)}."
        ]
    told += [kept_text(utility)] if kept_text(utility) else []
    return "\n".join(rows) + (f"\n\n{' '.join(told)}" if told else "")


def _limits(report: Mapping[str, Any]) -> str:
    limits = [f"- {_line(t['what'])}: {_line(t['why'])}" for t in report["not_protected"]]
    longest = report["settings"]["train.max-length"]
    limits.append(f"- Length: texts were cut after {_line(longest)} tokens.")
    limits.append("- Use: what the base model may not be used for, this adapter may not either.")
    return "\n".join(limits)


# Whatever Markdown or HTML gives a meaning to: a link, an image, emphasis, code, a tag, an entity.
_MEANS = re.compile(r"[\\`*_{}\[\]<>()#!|~&$]")


def _line(text: Any) -> str:
    """One line of words from elsewhere, in which nothing means anything to Markdown or to HTML: no
    ``<script>``, and no link to run one."""
    flat = " ".join(plain(text).split())
    quiet = _MEANS.sub(lambda found: f"&#{ord(found.group())};", flat)
    return quiet.replace("javascript:", "javascript&#58;").replace("://", "&#58;//")


def _cell(text: Any) -> str:
    return _line(text)
