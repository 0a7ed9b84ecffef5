"""What is written for others: an adapter that Hugging Face's own calls load rightly, or refuse.

The head of a pooled task with ``task.pooling = mean`` has the name and shape that the same family's
text classifier reads the first token with, and it would be given to that one without a word
(FAULTS M10). So a layer that the text classifier has and the token classifier lacks gets a LoRA of
rank 0, which PEFT refuses to make. A Llama and its kin have no such layer.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import save_adapter
from .models import LoadedModel
from .settings import Settings

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_CONFIG = "adapter_config.json"


def public_name(name: str) -> str:
    """The name of a base model as it may be published: its id on the Hub, or of a folder the last
    part alone, since the others are of this machine (MiniCPM#362). Whose folder that is nobody else
    can know: the card asks for its public name."""
    if HUB_ID.fullmatch(name) and not Path(name).is_dir():
        return name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def write_adapter(
    settings: Settings, loaded: LoadedModel, folder: Path, other: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter that the model carries, its tokenizer and, where it has labels, a
    ``config.json`` with their names. For that file ``pipeline`` and transformers' Auto classes look
    for a whole model here, and say that there is none: else they would load the base with labels
    and a head of its own.

    Args:
        other: as for ``save_adapter``.
    """
    save_adapter(loaded.model, folder, public_name(settings.model.name), other)
    base = loaded.model.get_base_model()
    path = folder / _CONFIG
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["task_type"] is None:  # else AutoPeftModel could not tell the class
        of = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        told["auto_mapping"] = of
    if foreign := foreign_weights(settings, base.config):
        layer = foreign[0].rpartition(".")[0]
        told["target_modules"] = sorted([*told["target_modules"], layer])
        told["rank_pattern"] = {**told["rank_pattern"], layer: 0}
    path.write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")
    if loaded.task.by_logits:
        with_labels(settings, base.config).save_pretrained(str(folder))
    tokenizer_of(loaded).save_pretrained(str(folder))


def foreign_weights(settings: Settings, config: Any) -> list[str]:
    """Where the head reads a mean: the weights that the family's text classifier has and its token
    classifier lacks. None for any other task."""
    import transformers

    text = transformers.AutoModelForSequenceClassification
    pooled = settings.task.kind in ("classification", "regression")
    if not pooled or settings.task.pooling != "mean" or type(config) not in text._model_mapping:
        return []
    with torch.device("meta"):
        theirs = text.from_config(config).state_dict()
        ours = transformers.AutoModelForTokenClassification.from_config(config).state_dict()
    return sorted(name for name in theirs.keys() - ours.keys() if name.endswith(".weight"))


def with_labels(settings: Settings, config: Any) -> Any:
    """A copy of the configuration of a pooled model, saying what its labels are for. Where a mean
    is read it names no class: ``pipeline`` tries any that is named there, and would take each
    token's scores for the text's."""
    told = copy.deepcopy(config)
    number = settings.task.kind == "regression"
    told.problem_type = "regression" if number else "single_label_classification"
    told.use_cache = True
    if settings.task.pooling == "mean":
        told.architectures = None
    return told


def tokenizer_of(loaded: LoadedModel) -> Any:
    """The tokenizer to be saved; of a task that reads whole texts with the run's own length, which
    whoever asks for truncation then gets."""
    told = copy.deepcopy(loaded.tokenizer)
    if loaded.task.by_logits:
        told.model_max_length = loaded.max_length
    return told
