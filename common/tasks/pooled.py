"""What classification and regression share: one vector of scores for a whole text.

``pooling = mean`` averages a linear layer's logits over a record's own tokens, which is a linear
layer on the mean-pooled hidden states. It is expressed as token classification, a class that
transformers has for every encoder, so the adapter loads without confide; sentence encoders carry
their meaning in the mean, and frozen BERT poolers are a poor start under noise (docs/benchmarks).
``pooling = model`` is the model's own sequence classification head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import TaskSpec
from .example import Batch, Example, padded
from .task import Place
from .tokens import random_ids


def auto_class(spec: TaskSpec) -> Any:
    """transformers' Auto class of the model with its head."""
    import transformers

    if spec.pooling == "mean":
        return transformers.AutoModelForTokenClassification
    return transformers.AutoModelForSequenceClassification


def peft_task_type(spec: TaskSpec) -> str:
    """PEFT's name for that class: it decides which head is trained and saved."""
    return "TOKEN_CLS" if spec.pooling == "mean" else "SEQ_CLS"


def token_ids(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[tuple[int, ...]]:
    """Token ids of each text with the tokenizer's own frame, cut at ``max_length``."""
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
    # A text of which the tokenizer leaves nothing is one token long: no mean is over nothing.
    blank = (tokenizer.pad_token_id or 0,)
    return [tuple(i) or blank for i in ids]


def collate(examples: Sequence[Example], place: Place, dtype: torch.dtype) -> Batch:
    """Examples with one target each."""
    ids, mask = padded([e.ids for e in examples], place.tokenizer.pad_token_id or 0)
    targets = torch.tensor([e.target for e in examples], dtype=dtype)
    return Batch({"input_ids": ids}, mask, targets)


def logits(spec: TaskSpec, output: Any, attention_mask: Tensor) -> Tensor:
    """(B, L) from the model's output."""
    scores: Tensor = output.logits.float()  # a mean over tokens is no sum for bfloat16
    if spec.pooling == "mean":  # (B, T, L) -> (B, L), over the record's own tokens
        weight = attention_mask.unsqueeze(-1).to(scores.dtype)
        scores = (scores * weight).sum(1) / weight.sum(1)
    return scores


def made_up_ids(
    length: int, size: int, generator: torch.Generator, place: Place
) -> tuple[int, ...]:
    """Made-up words in the tokenizer's own frame: some heads look for the token that ends a
    text, and find one in each."""
    t = place.tokenizer
    frame = list(t("")["input_ids"])[:length]
    behind = [token for token in frame if token in (t.eos_token_id, t.sep_token_id)]
    ahead = [token for token in frame if token not in behind]
    special = set(t.all_special_ids)
    word = next(token for token in range(size) if token not in special)
    words = [
        word if token in special else token
        for token in random_ids(length - len(frame), size, generator)
    ]
    return (*ahead, *words, *behind)


def without_words(
    example: Example, rate: float, place: Place, generator: torch.Generator
) -> Example:
    """The example without some of its tokens, each left out with this chance; those of the frame
    stay, and so does one other."""
    frame = set(place.tokenizer.all_special_ids)
    words = [position for position, token in enumerate(example.ids) if token not in frame]
    chances = torch.rand(len(words), generator=generator).tolist()
    gone = {w for w, chance in zip(words, chances, strict=True) if chance < rate}
    if words and len(gone) == len(words):
        gone.remove(words[max(range(len(words)), key=chances.__getitem__)])
    ids = tuple(token for position, token in enumerate(example.ids) if position not in gone)
    return Example(ids, example.target)
