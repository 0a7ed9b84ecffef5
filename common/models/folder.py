"""What the configuration of a model folder says, before any of its weights are read.

A folder that cannot be trained is refused at once, by its config.json and the size of its
tokenizer. Everything that a model would draw at random in training is turned off here.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..errors import ConfideError

# Rates of what a model draws at random in training: dropout of all kinds, layers left out
# (layerdrop, stochastic depth: drop_path_rate), and noise on the scores of experts.
_RANDOM = ("drop", "jitter")
# PhiMoE reads its jitter as a threshold, in use as in training: the model is another one without.
_THRESHOLDS = ("phimoe",)


def check_folder(
    name: str, config: Any, tokenizer: PreTrainedTokenizerBase, *, writes: bool
) -> None:
    """Refuse a model on which no adapter can be trained; ``writes``: whether the task writes text.

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
    """Special tokens that come from the tokenizer's class (Qwen2's <|endoftext|>), if they neither
    frame nor pad a text, nor begin or end one that the model writes."""
    t = tokenizer
    named = {t.bos_token_id, t.eos_token_id, t.sep_token_id, t.cls_token_id, t.mask_token_id}
    used = {t.pad_token_id, t.unk_token_id, *t("a")["input_ids"]}
    return set() if writes else named - used


def without_chance(config: Any) -> None:
    """Set every rate of random draws in training to zero, inner configurations included. (The
    frozen model is never in training mode either: ``client.training``.) BigBird is set to full
    attention: it draws its sparse blocks, and uses them or not depending on the longest text so
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
    """How many tokens a model reads; None if its configuration gives no limit (XLNet: -1)."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
