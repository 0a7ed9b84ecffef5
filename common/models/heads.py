"""The head of a pooled task: which weights come from the base model, and which begin at zero.

A checkpoint with a trained head for the very labels of the task (a classifier from the Hub, or a
merged export of an earlier run) begins with that head: each label's row is found by its name,
whatever the order. A label that it does not have begins at zero, and so does a whole new head: to
unlearn a random one would cost privacy budget.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ..settings import TaskSpec
from ..tasks import TASKS

# The heads that PEFT trains and saves by itself.
PEFTS_OWN = ("classifier", "score")


@dataclass(frozen=True)
class Head:
    """A head as the folder has it.

    Attributes:
        rows: for each label of the task the checkpoint's row, or None.
        words: what was kept and why, as log and report say it.
    """

    rows: tuple[int | None, ...]
    words: str

    @property
    def kept(self) -> bool:
        """Whether anything of the checkpoint's head is used."""
        return any(row is not None for row in self.rows)


def labels_of(task: TaskSpec) -> tuple[str, ...]:
    """The labels of the head, in the order of its rows."""
    return TASKS[task.kind].head_labels(task)


def head_in(config: Any, task: TaskSpec, model_class: str) -> Head:
    """The head that a folder's configuration describes, before its labels are changed.

    Args:
        model_class: name of the class that the task loads. The head of another class reads
            something else (the first token, not the mean), and is not used.
    """
    labels = labels_of(task)
    new = Head((None,) * len(labels), "The head is new, and starts at zero.")
    made = [name for name in getattr(config, "architectures", None) or [] if isinstance(name, str)]
    known = {int(row): str(name) for row, name in (config.id2label or {}).items()}
    rows = _rows(labels, known) if TASKS[task.kind].fewest_labels else _number(known)
    if not any(row is not None for row in rows):
        return _other(new, made, known, model_class)
    if made and model_class not in made:
        pooling = "model" if task.pooling == "mean" else "mean"
        return Head(
            new.rows,
            f"The head is new, and starts at zero: the base model has one for these labels, but of"
            f" {made[0]:.100}, which reads a text in another way (task.pooling = '{pooling}').",
        )
    missing = [name for name, row in zip(labels, rows, strict=True) if row is None]
    also = f"; new, and at zero, for {', '.join(missing)}" if missing else ""
    return Head(tuple(rows), f"The head is the base model's own for these labels{also}.")


def _other(new: Head, made: Sequence[str], known: Mapping[int, str], model_class: str) -> Head:
    """A new head, and a sentence on the head that is there for other labels."""
    if model_class not in made:
        return new
    shown = ", ".join(list(known.values())[:5]) + (", ..." if len(known) > 5 else "")
    return Head(new.rows, f"{new.words[:-1]}: the base model's own is for {shown:.300}.")


def _number(known: Mapping[int, str]) -> list[int | None]:
    return [0 if len(known) == 1 else None]


def _rows(labels: Sequence[str], known: Mapping[int, str]) -> list[int | None]:
    """Each label's row by its name. Case is ignored if that finds more rows and makes no two names
    of either side the same."""
    exact, loose = (_rows_by(fold, labels, known) for fold in (False, True))
    return loose if loose.count(None) < exact.count(None) else exact


def _rows_by(fold: bool, labels: Sequence[str], known: Mapping[int, str]) -> list[int | None]:
    def same(name: str) -> str:
        plain = unicodedata.normalize("NFC", name.strip())
        return plain.casefold() if fold else plain

    there, wanted = {same(name): row for row, name in known.items()}, [same(n) for n in labels]
    apart = len(there) == len(known) and len(set(wanted)) == len(wanted)
    return [there.get(name) if apart else None for name in wanted]


def settle(base: PreTrainedModel, head: Head, task: TaskSpec, new: set[str]) -> Head:
    """Give the model's head the rows of the task, and say what was kept.

    Only the head's last layer has a row for each label, and only it begins at zero: with two layers
    at zero neither would get a gradient. The task says where a bias begins.

    Args:
        new: names of the weights that the folder does not have.
    """
    names = heads_of(base, new)
    last = _last(base, names)
    if head.kept and any(key.split(".")[0] in names for key in new):
        words = "The head is new, and starts at zero: weights of the base model's own are missing."
        head = Head((None,) * len(head.rows), words)
    with torch.no_grad():
        for name, parameter in list(last.named_parameters(recurse=False)):
            rows = parameter.new_zeros(len(head.rows), *parameter.shape[1:])
            if name == "bias":
                rows.fill_(TASKS[task.kind].begins_at(task))
            for place, row in enumerate(head.rows):
                if row is not None:
                    rows[place] = parameter[row]
            setattr(last, name, nn.Parameter(rows))
    last.out_features = len(head.rows)
    labelled(base.config, task)
    vars(base)["num_labels"] = len(head.rows)
    return head


def labelled(config: Any, task: TaskSpec) -> None:
    """Write the task's labels into a configuration."""
    names = dict(enumerate(labels_of(task)))
    config.id2label, config.label2id = names, {name: row for row, name in names.items()}


def heads_of(base: PreTrainedModel, new: set[str]) -> list[str]:
    """The top modules that are trained whole and travel with the adapter: the output module, those
    that PEFT knows as heads, and every module beside the backbone without weights in the folder."""
    children = {n: m for n, m in base.named_children() if any(True for _ in m.parameters())}
    body = _backbone(base, children)
    beside = [name for name in children if name != body]
    answering = [n for n in beside if any(isinstance(m, nn.Linear) for m in children[n].modules())]
    lacking = {key.split(".")[0] for key in new}
    return [
        name
        for name in beside
        if name.endswith(PEFTS_OWN) or name in lacking or name in answering[-1:]
    ]


def _backbone(base: PreTrainedModel, children: Mapping[str, nn.Module]) -> str:
    if base.base_model_prefix in children:
        return base.base_model_prefix
    return max(children, key=lambda name: sum(p.numel() for p in children[name].parameters()))


def _last(base: PreTrainedModel, names: Sequence[str]) -> nn.Linear:
    layers = [m for name in names for m in base.get_submodule(name).modules()]
    return [layer for layer in layers if isinstance(layer, nn.Linear)][-1]


_OF_TEXTS: dict[type, list[str] | None] = {}


def of_texts_alone(config: Any) -> list[str] | None:
    """The weights that a family's text classifier has and its token classifier lacks; None if it
    has no text classifier. If the list is empty, a head of the one would silently load as a head of
    the other."""
    text, kind = transformers.AutoModelForSequenceClassification, type(config)
    if kind not in _OF_TEXTS:
        _OF_TEXTS[kind] = None
        if kind in text._model_mapping:
            with torch.device("meta"):
                theirs = text.from_config(config).state_dict()
                ours = transformers.AutoModelForTokenClassification.from_config(config).state_dict()
            alone = theirs.keys() - ours.keys()
            _OF_TEXTS[kind] = sorted(name for name in alone if name.endswith(".weight"))
    return _OF_TEXTS[kind]
