"""The code by which a model is used without confide, for its card: plain transformers, and PEFT
where the adapter is still apart; what differs between tasks is the task's. ``tests`` run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.tasks import TASKS, Task
from ..common.tasks.card import literal


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
