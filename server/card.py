"""The adapter's model card: what it is, how to load it without confide, what is promised.

Written from the report alone, so that the card cannot promise what the report does not. It
names no path of this machine and no holder. Format: the Hub's README.md with YAML front matter
(JSON strings are valid YAML, so that no name can break out of its field).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .report import epsilon_text, load_report, percent
from .run_folder import RunFolder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TAGS = ("confide", "differential-privacy", "federated-learning", "lora", "text-classification")

_MEAN = """\
model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(labels))
model = PeftModel.from_pretrained(model, adapter).eval()

texts = ["The first text.", "Another, somewhat longer text."]
batch = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    token_logits = model(**batch).logits  # (texts, tokens, labels)
mask = batch["attention_mask"].unsqueeze(-1)
logits = (token_logits * mask).sum(1) / mask.sum(1)  # the mean over the tokens of each text
print([labels[i] for i in logits.argmax(-1)])
"""
_MODEL = """\
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
model = PeftModel.from_pretrained(model, adapter).eval()

texts = ["The first text.", "Another, somewhat longer text."]
batch = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits  # (texts, labels)
print([labels[i] for i in logits.argmax(-1)])
"""


def write_card(folder: Path) -> None:
    """Write ``adapter/README.md`` of a run folder, from its report.json."""
    RunFolder(folder).write("adapter/README.md", model_card(load_report(folder)).encode())


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
    tags = [tag for tag in TAGS if private or tag != "differential-privacy"]
    return "\n".join([*lines, "library_name: peft", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _base(report: Mapping[str, Any]) -> str:
    return str(report["run"]["model"]["name"])


def _what_it_is(report: Mapping[str, Any]) -> str:
    run, settings = report["run"], report["settings"]
    sha = run["model"].get("sha256")
    pinned = f" (sha256 of the weights: `{_line(sha)}`)" if sha else ""
    trained = run["model"].get("trained")
    size = f" with {trained:,} trained parameters" if trained else ""
    labels = ", ".join(_line(label) for label in _labels(settings))
    return (
        f"An adapter for `{_line(_base(report))}`{pinned}{size}, which sorts a text into: "
        f"{labels}. It was trained by {run['rounds']} federated rounds over "
        f"{run['holders'] or 'several'} holders, whose texts stayed with them."
    )


def _labels(settings: Mapping[str, Any]) -> list[str]:
    return [label.strip() for label in str(settings["task.labels"]).split(",") if label.strip()]


def _loading(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    mean = settings["task.pooling"] == "mean"
    kind = "AutoModelForTokenClassification" if mean else "AutoModelForSequenceClassification"
    why = (
        "The head scores every token, and the scores of a text are averaged over its tokens:\n\n"
        if mean
        else ""
    )
    code = (
        "import torch\nfrom peft import PeftModel\n"
        f"from transformers import AutoTokenizer, {kind}\n\n"
        f"base = {json.dumps(_base(report), ensure_ascii=False)}\n"
        'adapter = "."  # this folder\n'
        f"labels = {json.dumps(_labels(settings), ensure_ascii=False)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(base)\n"
    )
    body = (_MEAN if mean else _MODEL).replace("{length}", str(settings["train.max-length"]))
    return f"Plain PEFT is enough. {why}```python\n{code}{body}```"


def _privacy(report: Mapping[str, Any]) -> str:
    claim = report["claim"]
    sentence = f"**{_line(claim['sentence'])}**\n\n{_line(claim['in_plain_words'])}"
    if not claim["private"]:
        return sentence
    return (
        f"{sentence}\n\n- unit: one {claim['unit']}; neighbouring: {claim['neighbouring']}\n"
        f"- epsilon {epsilon_text(claim['epsilon'])} at delta {claim['delta']:g}, the largest of "
        f"all holders\n- against: {_line(claim['adversary'])}\n\n"
        "`report.json` and `report.html` of the run show what this rests on."
    )


def _utility(utility: Mapping[str, Any]) -> str:
    rows = [
        "| | accuracy | epsilon |\n|---|---|---|",
        f"| before training | {percent(utility['before']['accuracy'])} | |",
        f"| **this adapter** | **{percent(utility['after']['accuracy'])}** | |",
    ]
    for yardstick in utility["yardsticks"]:
        epsilon = yardstick.get("epsilon")
        shown = "" if epsilon is None else epsilon_text(epsilon)
        rows.append(f"| {_cell(yardstick['name'])} | {percent(yardstick['accuracy'])} | {shown} |")
    told = ""
    if utility["interval"]:
        low, high = utility["interval"]
        told = (
            f"\n\nOn {utility['examples']} held-out records; 95 % interval of this adapter: "
            f"{percent(low)} to {percent(high)}."
        )
    return "\n".join(rows) + told


def _limits(report: Mapping[str, Any]) -> str:
    limits = [f"- {_line(t['what'])}: {_line(t['why'])}" for t in report["not_protected"]]
    longest = report["settings"]["train.max-length"]
    limits.append(f"- Length: texts were cut after {longest} tokens.")
    limits.append("- Use: what the base model may not be used for, this adapter may not either.")
    return "\n".join(limits)


def _line(text: Any) -> str:
    """One line, without anything that Markdown would read as a tag or as code."""
    flat = " ".join(str(text).split())
    return flat.replace("<", "&lt;").replace("`", "'")


def _cell(text: Any) -> str:
    return _line(text).replace("|", "\\|")
