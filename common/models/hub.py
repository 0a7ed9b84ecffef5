"""What is written for others: an adapter that Hugging Face's own calls load rightly, or refuse.

The head of a pooled task with ``task.pooling = mean`` has the name and shape that the same family's
text classifier reads the first token with, and it would be given to that one without a word
(FAULTS M10). So what the text classifier has and the token classifier lacks is named in the adapter
such that PEFT stops: a block to put LoRA on, of a kind that takes none, or a layer to be loaded for
which there are no weights. A Llama and its kin lack nothing: there a mean is refused before the run
(``common.models.loading``).
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
        _stop(told, foreign[0].rpartition(".")[0])
    path.write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")
    if loaded.task.by_logits:
        with_labels(settings, base.config).save_pretrained(str(folder))
    tokenizer_of(loaded).save_pretrained(str(folder))


def _stop(told: dict[str, Any], layer: str) -> None:
    """Make PEFT raise where the model has ``layer``, and say nothing where it has not."""
    block, kept = layer.rpartition(".")[0], told["modules_to_save"]
    if any(f"{layer}.".startswith(f"{name}.") for name in kept):
        return  # a head of that name has weights that the file lacks: PEFT raises as it is
    if block:
        told["target_modules"] = sorted([*told["target_modules"], block])
    else:
        told["modules_to_save"] = sorted([*kept, layer])


def foreign_weights(settings: Settings, config: Any) -> list[str]:
    """Where the head reads a mean: the weights that the family's text classifier has and its token
    classifier lacks. None for any other task."""
    pooled = issubclass(TASKS[settings.task.kind], PooledTask)
    return of_texts_alone(config) or [] if pooled and settings.task.pooling == "mean" else []


def with_labels(settings: Settings, config: Any) -> Any:
    """A copy of the configuration of a pooled model, saying what its labels are for. Where a mean
    is read it names no class: ``pipeline`` tries any that is named there, and would take each
    token's scores for the text's."""
    told = copy.deepcopy(config)
    told.problem_type = TASKS[settings.task.kind].problem_type
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
