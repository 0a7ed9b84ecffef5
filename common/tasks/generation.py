"""Text that the model makes itself: greedy, or the best of several beams; never sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .example import padded
from .task import Place
from .tokens import bounds

_AT_ONCE = 16  # prompts of similar length


@torch.no_grad()
def continued(
    prompts: Sequence[Sequence[int]], place: Place, *, new: int, beams: int
) -> list[list[int]]:
    """The new token ids for each prompt, at most ``new`` of them; they end where the text ends.

    A decoder alone is given its prompts padded on the left, so that all of them end at the same
    place; an encoder reads them padded on the right.
    """
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
        made = place.model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
        )
        for index, row in zip(chunk, made.tolist(), strict=True):
            out[index] = _own(row[ids.shape[1] if alone else 1 :], place)
    return [out[i] for i in range(len(prompts))]


def in_words(ids: Sequence[Sequence[int]], place: Place) -> list[str]:
    """Token ids as text, without special tokens and the space around it."""
    return [place.tokenizer.decode(list(row), skip_special_tokens=True).strip() for row in ids]


def _config(place: Place, new: int, beams: int) -> Any:
    import transformers

    begin, end = bounds(place.tokenizer)
    start = getattr(place.model.config, "decoder_start_token_id", None)
    return transformers.GenerationConfig(
        max_new_tokens=new,
        num_beams=beams,
        do_sample=False,
        use_cache=True,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=_pad(place),
        decoder_start_token_id=_pad(place) if start is None else start,
    )


def _own(row: Sequence[int], place: Place) -> list[int]:
    """Up to the end of the text; what follows is padding beside a longer neighbour."""
    _, end = bounds(place.tokenizer)
    return list(row[: row.index(end)]) if end in row else list(row)


def _pad(place: Place) -> int:
    return place.tokenizer.pad_token_id or 0
