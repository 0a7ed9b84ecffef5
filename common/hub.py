"""What is written for others: an adapter that Hugging Face's own calls load rightly, or refuse.

The head of a pooled task with ``task.pooling = mean`` has the name and shape that the same family's
text classifier reads the first token with, and it would be given to that one without a word
(FAULTS M10). So what the text classifier has and the token classifier lacks is named in the adapter
such that PEFT stops: a block to put LoRA on, of a kind that takes none, or a layer to be loaded for
which there are no weights. A Llama and its kin lack nothing: there a mean is refused before the run
(``common.models``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .adapter import save_adapter
from .errors import ConfideError
from .heads import of_texts_alone
from .models import LoadedModel
from .paths import public_name
from .settings import Settings
from .tasks import TASKS
from .tasks.pooled import PooledTask

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


# --- a model folder as it is read ---
#
# What the configuration of a model folder says, before any of its weights are read.
#
# A folder that cannot be trained is named at once, by what stands in config.json and by the size
# of its tokenizer; what a model would draw at random while it trains is turned off here.


# Rates of what a model draws at random in training: dropout of all kinds, layers left out
# (layerdrop, stochastic depth: drop_path_rate), and noise on the scores of experts.
_RANDOM = ("drop", "jitter")
# PhiMoE reads its jitter as a threshold, in use as in training: the model is another one without.
_THRESHOLDS = ("phimoe",)


def check_folder(
    name: str, config: Any, tokenizer: PreTrainedTokenizerBase, *, writes: bool
) -> None:
    """Refuse what no adapter can be trained on; ``writes`` says whether the task makes text.

    Raises:
        ConfideError: ``model.quantised``, ``model.nested`` or ``model.vocabulary``.
    """
    _check_quantised(name, config)
    _check_nested(name, config)
    _check_vocabulary(name, config, tokenizer, writes=writes)


def _check_quantised(name: str, config: Any) -> None:
    known = getattr(config, "quantization_config", None)
    if not known:
        return
    method = known.get("quant_method") if isinstance(known, dict) else known.quant_method
    raise ConfideError(
        "model.quantised",
        f"The weights of {name!r} are quantised ({method or 'of an unnamed kind'!s:.50}); exact"
        " per-example gradients need them as numbers.",
        "Use the model that it was quantised from (float32, float16 or bfloat16 weights), or write"
        " it out again: AutoModel...from_pretrained(FOLDER).dequantize().save_pretrained(NEW).",
    )


def _check_nested(name: str, config: Any) -> None:
    inner = getattr(config, "text_config", None)
    if not isinstance(inner, PretrainedConfig):
        return
    raise ConfideError(
        "model.nested",
        f"{name!r} ({config.model_type:.50}) is for more than text: its language model"
        f" ({inner.model_type:.50}) is a part of it, described in config.text_config.",
        "Use the text-only model of the family, or save that part as a folder of its own, with the"
        " tokenizer: AutoModel.from_pretrained(FOLDER).language_model.save_pretrained(NEW).",
    )


def _check_vocabulary(
    name: str, config: Any, tokenizer: PreTrainedTokenizerBase, *, writes: bool
) -> None:
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):  # a model of characters (CANINE) has no table to be too small
        return
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    unknown = set(beyond.values()) - _never_used(tokenizer, writes=writes)
    if unknown:
        token = next(token for token, number in beyond.items() if number in unknown)
        raise ConfideError(
            "model.vocabulary",
            f"The tokenizer of {name!r} has {len(unknown)} tokens that the model does not embed"
            f" (first: {token!r:.50}, number {beyond[token]}; it embeds 0 to {size - 1}).",
            "Use the model's own tokenizer, or enlarge the model:"
            " model.resize_token_embeddings(len(tokenizer)), then save both.",
        )


def _never_used(tokenizer: PreTrainedTokenizerBase, *, writes: bool) -> set[int]:
    """Special tokens that a tokenizer's class knows by itself (Qwen2's <|endoftext|>), if they
    neither frame a text nor pad it, nor begin or end one that the model writes."""
    t = tokenizer
    named = {t.bos_token_id, t.eos_token_id, t.sep_token_id, t.cls_token_id, t.mask_token_id}
    used = {t.pad_token_id, t.unk_token_id, *t("a")["input_ids"]}
    return set() if writes else named - used


def without_chance(config: Any) -> None:
    """Set every rate of what is drawn at random in training to zero, inner configurations
    included. (The frozen model is never in training mode either, ``client.per_example``.) BigBird
    attends in full: its blocks are drawn, and whether it has any goes by the longest text so
    far."""
    if getattr(config, "attention_type", None) == "block_sparse":
        config.attention_type = "original_full"
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            without_chance(value)
        threshold = "jitter" in name and config.model_type in _THRESHOLDS
        if isinstance(value, float) and any(word in name for word in _RANDOM) and not threshold:
            setattr(config, name, 0.0)


def positions(config: Any) -> int | None:
    """How many tokens a model reads; None where it does not say, or has no limit (XLNet: -1)."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
