"""Text that the model makes itself: greedy, or the best of several beams; never sampled.

What the folder's generation_config.json says of the text itself counts: which token it begins with
(of a model of several languages, the language's), with which ones it ends, what may not be in it.
Length and beams are the run's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfideError
from .example import padded
from .task import Place, Refuse
from .tokens import bounds

if TYPE_CHECKING:
    from ..settings import TaskSpec

_AT_ONCE = 16  # prompts of similar length
# What is taken of a folder's generation_config; some of it is about beams alone.
_KEPT = (
    "forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "repetition_penalty",
    "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens",
)  # fmt: skip
_OF_BEAMS = ("length_penalty", "early_stopping")


def check_template(task: TaskSpec, refuse: Refuse) -> None:
    """Refuse a template that has no one place for the text."""
    if task.template.count("{text}") != 1:
        refuse(
            f"task.template = {task.template!r:.100} does not fit task.kind = {task.kind!r}.",
            "Write {text} once, where the text belongs, as in 'summarize: {text}'; 'chat' is for"
            " a model that goes on with a text.",
        )


def continued(
    prompts: Sequence[Sequence[int]], place: Place, *, new: int, beams: int
) -> list[list[int]]:
    """The new token ids for each prompt, at most ``new`` of them; they end where the text ends.

    A decoder alone is given its prompts padded on the left, so that all of them end at the same
    place; an encoder reads them padded on the right.
    """
    import torch

    alone = not place.model.config.is_encoder_decoder
    out: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), _AT_ONCE):
        chunk = order[start : start + _AT_ONCE]
        rows = [list(prompts[i]) for i in chunk]
        ids, mask = padded([row[::-1] for row in rows] if alone else rows, _pad(place))
        if alone:
            ids, mask = ids.flip(1), mask.flip(1)
        config, device = _config(place, new, beams), place.model.device
        with torch.no_grad():
            made = place.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        for index, row in zip(chunk, made.tolist(), strict=True):
            out[index] = _own(row[ids.shape[1] if alone else 1 :], place)
    return [out[i] for i in range(len(prompts))]


def in_words(ids: Sequence[Sequence[int]], place: Place) -> list[str]:
    """Token ids as text, without special tokens and the space around it."""
    return [place.tokenizer.decode(list(row), skip_special_tokens=True).strip() for row in ids]


def settle_language(tokenizer: Any, folders: Any) -> None:
    """Tell a tokenizer of several languages which one targets are in, where it does not say so
    itself: the one that the folder's generation_config makes every text begin with.

    Raises:
        ConfideError: ``model.tokenizer`` where neither says, or both, and not the same.
    """
    if not hasattr(tokenizer, "tgt_lang"):
        return
    forced = _begins_with(tokenizer, folders)
    begins = None if forced is None else tokenizer.convert_ids_to_tokens(forced)
    known = tokenizer.tgt_lang
    if known is None and begins is None:
        _refuse_language(
            "knows several languages, and the folder does not say which one targets are in"
        )
    if known is None:
        tokenizer.tgt_lang = begins
    elif forced is not None and tokenizer.convert_tokens_to_ids(known) != forced:
        if known != getattr(tokenizer, "src_lang", None):
            _refuse_language(f"has tgt_lang = {known!r:.50}, but texts begin with {begins!r:.50}")
        tokenizer.tgt_lang = begins  # it was never said: the source's stands in for it


def _begins_with(tokenizer: Any, folders: Any) -> int | None:
    """The token that makes every text begin in its language: forced, or where the decoder starts
    (mBART of 25 languages)."""
    forced: int | None = getattr(folders, "forced_bos_token_id", None)
    start: int | None = getattr(folders, "decoder_start_token_id", None)
    plain = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return start if forced is None and start not in plain else forced


def _refuse_language(what: str) -> None:
    raise ConfideError(
        "model.tokenizer",
        f"The tokenizer {what}.",
        "Set tgt_lang in its tokenizer_config.json, and forced_bos_token_id in"
        " generation_config.json to the number of that token.",
    )


def _config(place: Place, new: int, beams: int) -> Any:
    import transformers

    begin, _ = bounds(place.tokenizer)
    kept = (*_KEPT, *_OF_BEAMS) if beams > 1 else _KEPT
    folders = getattr(place.model, "generation_config", None)
    values = {name: getattr(folders, name, None) for name in kept}
    for least in ("min_length", "min_new_tokens"):
        if (values[least] or 0) >= new:
            del values[least]
    if values["decoder_start_token_id"] is None:
        start = getattr(place.model.config, "decoder_start_token_id", None)
        values["decoder_start_token_id"] = _pad(place) if start is None else start
    if values["forced_bos_token_id"] is None:
        values["forced_bos_token_id"] = _language(place.tokenizer)
    return transformers.GenerationConfig(
        **{name: value for name, value in values.items() if value is not None},
        max_new_tokens=new,
        num_beams=beams,
        do_sample=False,
        use_cache=True,
        bos_token_id=begin,
        eos_token_id=_ends(place),
        pad_token_id=_pad(place),
    )


def _language(tokenizer: Any) -> int | None:
    """The token of the language that targets begin with, where a tokenizer frames them so."""
    code = getattr(tokenizer, "tgt_lang", None)
    if code is None:
        return None
    first = next(iter(tokenizer(text_target="a")["input_ids"]), None)
    token = tokenizer.convert_ids_to_tokens(first)
    return first if isinstance(token, str) and code in token else None


def _ends(place: Place) -> list[int]:
    """Every token that ends a text: the tokenizer's, and those of the folder (a chat model has one
    for the end of a turn beside that of a text)."""
    _, end = bounds(place.tokenizer)
    folders = getattr(place.model, "generation_config", None)
    known = getattr(folders, "eos_token_id", None)
    others = known if isinstance(known, list) else [known]
    return list(dict.fromkeys([end, *(one for one in others if isinstance(one, int))]))


def _own(row: Sequence[int], place: Place) -> list[int]:
    """Up to the end of the text; what follows is padding beside a longer neighbour."""
    ends = set(_ends(place))
    return list(row[: next((i for i, one in enumerate(row) if one in ends), len(row))])


def _pad(place: Place) -> int:
    return place.tokenizer.pad_token_id or 0
