"""Sequence to sequence: translation, summaries, questions and answers, any text to another text.

The source goes through ``task.template`` (T5's way of naming the task, Raffel et al. 2020) and is
cut at ``train.max-length`` tokens, the target at ``task.target-length``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import TaskSpec
from ..text.readers import Record
from . import pooled, tokens
from .example import Batch, Example
from .generation import continued, in_words
from .scores import PERPLEXITY, chosen
from .task import Place

_METRICS = (
    "rougeL", "chrf", "exact-match", "token-f1", "bleu", "rouge1", "rouge2", "token-error",
    PERPLEXITY,
)  # fmt: skip


class Seq2Seq:
    """See the module's docstring."""

    by_logits = False
    answers = references = tell = tokens.nothing_read
    fixed = True

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.metrics = chosen(spec, _METRICS, shown=4)

    def auto_class(self) -> Any:
        import transformers

        return transformers.AutoModelForSeq2SeqLM

    def peft_task_type(self) -> str:
        return "SEQ_2_SEQ_LM"

    def check(self, config: Any, tokenizer: Any) -> None:
        tokens.bounds(tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Source and target of each record.

        Raises:
            ConfideError: ``data.missing-target``.
        """
        sources = pooled.token_ids(self._sources(records), tokenizer, max_length)
        if not labelled:
            return [Example(source, ()) for source in sources]
        _, end = tokens.bounds(tokenizer)
        most, texts = self.spec.target_length, tokens.targets_of([r.target for r in records])
        found = _target_ids(texts, tokenizer, most)
        # A frame may close with the language behind the end (mBART).
        ended = [ids if end in ids[-2:] else (*ids[: most - 1], end) for ids in found]
        return [Example(i, t) for i, t in zip(sources, ended, strict=True)]

    def _sources(self, records: Sequence[Record]) -> list[str]:
        return [self.spec.template.replace("{text}", record.text) for record in records]

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        return example

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return tokens.pair_batch(examples, place)

    def length(self, example: Example, max_length: int) -> int:
        return pair_length(example, max_length, self.spec.target_length)

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """(B, U, V), over the tokens of the target."""
        return output.logits.float()  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return tokens.token_losses(logits, targets)

    def counts(self, targets: Tensor) -> Tensor:
        return tokens.token_counts(targets)

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The target that the model writes."""
        sources = self._sources(records)
        if whole:
            tokens.check_lengths(place.tokenizer(sources)["input_ids"], place.max_length)
        found = pooled.token_ids(sources, place.tokenizer, place.max_length)
        made = continued(found, place, new=self.spec.target_length, beams=self.spec.beams)
        return in_words(made, place)

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        most = self.spec.target_length
        return [
            Example(
                tokens.random_ids(length, size, generator),
                tokens.random_ids(
                    most if length >= place.max_length else min(length + 1, most), size, generator
                ),
            )
            for length in lengths
        ]


def _target_ids(texts: Sequence[str], tokenizer: Any, most: int) -> list[tuple[int, ...]]:
    """Token ids in the frame of a target, which is another than a source's where a model has
    several languages (mBART-50, NLLB) or vocabularies (Marian)."""
    if not texts:
        return []
    found = tokenizer(text_target=list(texts), truncation=True, max_length=most)["input_ids"]
    return [tuple(ids) for ids in found]


def pair_length(example: Example, max_length: int, target_length: int) -> int:
    """The longer of source and target, each as a share of what it may be at most."""
    target = len(example.target) if isinstance(example.target, tuple) else 0
    return max(len(example.ids), math.ceil(target * max_length / target_length))
