"""The adapter's model card: what it is, how to load it without confide, what is promised.

Written from the report alone, so that the card cannot promise what the report does not. It
names no path of this machine and no holder. Format: the Hub's README.md, whose front matter
``huggingface_hub`` writes. It names no data set: the text is nobody's to find on the Hub.

The code on it is plain transformers, and PEFT where the adapter is still apart; what differs
between tasks is the task's. ``tests`` run it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError  # type: ignore[import-untyped]

from ..common.machine.paths import HUB_ID
from ..common.privacy.statement import delta_text
from ..common.tasks import TASKS, Task
from ..common.tasks.task import literal
from .report import epsilon_text, kept_text, percent, plain, value_text


def task_in(settings: Mapping[str, Any]) -> type[Task]:
    """The task of flat settings."""
    return TASKS[settings["task.kind"]]


def model_class(settings: Mapping[str, Any]) -> str:
    """transformers' Auto class of the model."""
    return task_in(settings).model_class(settings["task.pooling"])


def loading_code(settings: Mapping[str, Any], base: str, *, merged: bool) -> str:
    """Python that loads the model in the current folder and uses it. ``base`` is what the adapter
    belongs to; a merged model needs none."""
    task, auto, labels = task_in(settings), model_class(settings), labels_of(settings)
    lines = ["import torch"]
    lines += [] if merged else ["from peft import PeftModel"]
    lines += [f"from transformers import AutoTokenizer, {auto}", ""]
    if merged:
        lines += ['folder = "."  # this folder']
    else:
        quoted = literal(base)
        lines += [f"base = {quoted}", 'adapter = "."  # this folder']
    if task.fewest_labels:
        lines += [f"labels = {literal(labels)}"]
    source, rows = "folder" if merged else "base", task.rows_in_code()
    options = f", num_labels={rows}" if rows and not merged else ""
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
        f"model = {auto}.from_pretrained({source}{options})" + (".eval()" if merged else ""),
    ]
    lines += [] if merged else ["model = PeftModel.from_pretrained(model, adapter).eval()"]
    return "\n".join([*lines, "", task.card_code(settings)])


def labels_of(settings: Mapping[str, Any]) -> list[str]:
    """The names of the classes, in order; none where the task has none."""
    return [label.strip() for label in str(settings["task.labels"]).split(",") if label.strip()]


# Metrics by the Hub's names, where it has one for ours.
_METRICS: Mapping[str, str] = {
    "macro-f1": "f1",
    "micro-f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "bleu": "sacrebleu",
    "exact-match": "exact_match",
    "token-f1": "f1",
}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
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
    settings, model = report["settings"], report["run"]["model"]
    tags = [t for t in _TAGS if report["claim"]["private"] or t != "differential-privacy"]
    return _yaml(
        _base(report),
        base_model_relation="adapter",
        library_name="peft",
        license=model.get("license"),
        language=model.get("language"),
        pipeline_tag=task_in(settings).pipeline_tag(settings, merged=False),
        tags=tags,
        **_results(report),
    )


def _yaml(base: str, **told: Any) -> str:
    known = base if HUB_ID.fullmatch(base) else None  # the Hub refuses what is no id of its own
    if known is None:
        told["base_model_relation"] = None
    data = ModelCardData(base_model=known, **told)
    return f"---\n{data.to_yaml()}\n---"


def _results(report: Mapping[str, Any]) -> dict[str, Any]:
    """``metrics`` and what becomes the ``model-index``: the main metric on the held-out text."""
    utility, settings = report["utility"], report["settings"]
    name, value = utility["metric"], utility["after"].get(utility["metric"])
    if not isinstance(value, int | float) or not math.isfinite(value):
        return {}
    metric = _METRICS.get(name, name)
    result = EvalResult(
        task_type=task_in(settings).hub,
        dataset_type="held-out",
        dataset_name="the coordinator's held-out text",
        metric_type=metric,
        metric_name=name,
        metric_value=round(float(value), 6),
    )
    called = re.sub(r"[^\w .-]+", "-", plain(report["run"]["name"]), flags=re.ASCII)[:96]
    return {"metrics": [metric], "model_name": called.strip() or "run", "eval_results": [result]}


def merged_card(settings: Mapping[str, Any], base: str) -> str:
    """The card of a merged export: base and adapter as one model.

    Args:
        settings: flat, those of the run.
        base: the base model's public name.
    """
    head = _yaml(
        base,
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag=task_in(settings).pipeline_tag(settings, merged=True),
        tags=["confide", "federated-learning"],
    )
    why = task_in(settings).card_words(settings, merged=True)
    code = loading_code(settings, base, merged=True)
    return (
        f"{head}\n\n# {_line(base)} with the adapter of a run of confide, merged\n\n"
        "The privacy report of the run tells what this model promises.\n\n"
        f"{_named_by_hand(base)}{why}{' ' if why else ''}To use it:\n\n```python\n{code}```\n"
    )


def terms_of(folder: Path | None) -> dict[str, Any]:
    """Licence and language that a base model's own card states, which are the adapter's, too; what
    is no plain identifier is left out."""
    path = folder / "README.md" if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except (ValueError, OSError, YAMLError):
        return {}  # somebody else's file
    language = data.language if isinstance(data.language, list) else [data.language]
    spoken = [one for one in language if isinstance(one, str) and _LANGUAGE.fullmatch(one)]
    known = isinstance(data.license, str) and _LICENCE.fullmatch(data.license)
    return {
        **({"license": data.license} if known else {}),
        **({"language": spoken[:100]} if spoken else {}),
    }


def _named_by_hand(base: str, where: str = "") -> str:
    """What is to be done before publishing, where nobody else could find the base model."""
    if HUB_ID.fullmatch(base):
        return ""
    return (
        f"The base model is named by a folder, `{_line(base)}`, or by an id without an owner."
        f" Before you publish this, write its public id by hand{where}, as `base_model` above, and"
        " in the code below.\n\n"
    )


def _base(report: Mapping[str, Any]) -> str:
    return str(report["run"]["model"]["name"])


def _what_it_is(report: Mapping[str, Any]) -> str:
    run, settings = report["run"], report["settings"]
    sha = run["model"].get("sha256")
    pinned = f" (sha256 of the weights: `{_line(sha)}`)" if sha else ""
    trained = run["model"].get("trained")
    size = f" with {trained:,} trained parameters" if trained else ""
    labels = ", ".join(_line(label) for label in labels_of(settings))
    does = task_in(settings).does
    low, high = settings["task.low"], settings["task.high"]
    return (
        f"An adapter for `{_line(_base(report))}`{pinned}{size}, which "
        f"{does.format(labels=labels, low=low, high=high)}. It was trained by"
        f" {_line(run['rounds'])} federated rounds over {_line(run['holders'] or 'several')}"
        " holders, whose texts stayed with them."
    )


def _loading(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    why, base = task_in(settings).card_words(settings, merged=False), _base(report)
    code = loading_code(settings, base, merged=False)
    by_hand = _named_by_hand(base, ": as `base_model_name_or_path` in adapter_config.json")
    return f"{by_hand}Plain PEFT is enough. {why}\n\n```python\n{code}```"


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
