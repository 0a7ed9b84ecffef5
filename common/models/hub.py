"""Writes adapters that Hugging Face's own calls load correctly, or refuse.

With ``task.pooling = mean`` the head of a pooled task has the name and shape of the head with which
the same family's text classifier reads the first token. So the text classifier would silently load
it (FAULTS M10). To make PEFT stop, the adapter names something that the text classifier has and the
token classifier lacks: a block to put LoRA on, of a kind that takes none, or a layer without
weights to load. In Llama and similar families nothing is lacking; there a mean is refused before
the run (``common.models.loading``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter.schema import save_adapter
from ..machine.paths import public_name
from ..settings import Settings
from ..tasks import TASKS
from ..tasks.pooled import PooledTask
from .heads import of_texts_alone
from .loading import LoadedModel

_CONFIG = "adapter_config.json"


def write_adapter(
    settings: Settings, loaded: LoadedModel, folder: Path, other: Mapping[str, Tensor] | None = None
) -> None:
    """Write the model's adapter, its tokenizer and, if it has labels, a ``config.json`` with their
    names. With that file ``pipeline`` and transformers' Auto classes look for a whole model here,
    and say that there is none. Without it they would load the base with its own labels and head.

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
        _stop(told, foreign[0].rpartition(".")[0])
    path.write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")
    if loaded.task.by_logits:
        with_labels(settings, base.config).save_pretrained(str(folder))
    tokenizer_of(loaded).save_pretrained(str(folder))


def _stop(told: dict[str, Any], layer: str) -> None:
    """Make PEFT raise if the model has ``layer``, and only then."""
    block, kept = layer.rpartition(".")[0], told["modules_to_save"]
    if any(f"{layer}.".startswith(f"{name}.") for name in kept):
        return  # a head of that name has weights that the file lacks: PEFT raises as it is
    if block:
        told["target_modules"] = sorted([*told["target_modules"], block])
    else:
        told["modules_to_save"] = sorted([*kept, layer])


def foreign_weights(settings: Settings, config: Any) -> list[str]:
    """If the head reads a mean: the weights that the family's text classifier has and its token
    classifier lacks. None for any other task."""
    pooled = issubclass(TASKS[settings.task.kind], PooledTask)
    return of_texts_alone(config) or [] if pooled and settings.task.pooling == "mean" else []


def with_labels(settings: Settings, config: Any) -> Any:
    """A copy of a pooled model's configuration with its labels. If the head reads a mean, it names
    no class: ``pipeline`` would use that class, and take each token's scores for the text's."""
    told = copy.deepcopy(config)
    told.problem_type = TASKS[settings.task.kind].problem_type
    told.use_cache = True
    if settings.task.pooling == "mean":
        told.architectures = None
    return told


def tokenizer_of(loaded: LoadedModel) -> Any:
    """The tokenizer to be saved. For a task that reads whole texts it has the run's length, so that
    truncation cuts there."""
    told = copy.deepcopy(loaded.tokenizer)
    if loaded.task.by_logits:
        told.model_max_length = loaded.max_length
    return told
