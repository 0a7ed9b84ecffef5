"""Sequence to sequence: translation, summaries, questions and answers, any text to another text.

The source goes through ``task.template`` (T5's way of naming the task, Raffel et al. 2020) and is
cut at ``train.max-length`` tokens, the target at ``task.target-length``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from . import pooled, tokens
from .example import Example
from .generation import check_template, continued, in_words
from .task import PERPLEXITY, T5, Described, Place, Refuse, Weighed, writing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..settings import Settings, TaskSpec
    from ..text.readers import Record


class Seq2Seq(tokens.PairTask):
    """See the module's docstring."""

    kind = "seq2seq"
    target = "needed"
    takes = ("template", "target_length", "beams")
    known = (
        "rougeL", "chrf", "exact-match", "token-f1", "bleu", "rouge1", "rouge2", "token-error",
        PERPLEXITY,
    )  # fmt: skip
    shown = 4
    hub = "text2text-generation"
    does = "turns a text into another one"
    described: ClassVar[Described] = {
        "summarization": {"task.template": "summarize: {text}", "task.metric": "rougeL"},
        "translation": {"task.metric": "bleu"},
        "question-answering": {"task.metric": "token-f1"},
        "text2text-generation": {},
    }
    small_model = T5
    learns_from = ("texts",)
    explains = True

    @classmethod
    def check_settings(cls, settings: Settings, refuse: Refuse) -> None:
        check_template(settings.task, refuse)

    @classmethod
    def writes(cls, spec: TaskSpec) -> bool:
        return True

    @classmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        new, beams = told["task.target-length"], told["task.beams"]
        return writing(told["task.template"], new=new, beams=beams, alone=False)

    def check(self, config: Any, tokenizer: Any) -> None:
        tokens.bounds(tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Source and target of each record.

        Raises:
            ConfideError: ``data.missing-target``.
        """
        sources = pooled.token_ids([self.asked(r.text) for r in records], tokenizer, max_length)
        if not labelled:
            return [Example(source, ()) for source in sources]
        _, end = tokens.bounds(tokenizer)
        most, texts = self.spec.target_length, tokens.targets_of([r.target for r in records])
        found = _target_ids(texts, tokenizer, most)
        # A frame may close with the language behind the end (mBART).
        ended = [ids if end in ids[-2:] else (*ids[: most - 1], end) for ids in found]
        return [Example(i, t) for i, t in zip(sources, ended, strict=True)]

    def asked(self, text: str) -> str:
        return self.spec.template.replace("{text}", text)

    def length(self, example: Example, max_length: int) -> int:
        return pair_length(example, max_length, self.spec.target_length)

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The target that the model writes."""
        sources = [self.asked(record.text) for record in records]
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

    def weighed(self, ids: Tensor, place: Place) -> Weighed:
        """The answer that the model writes: the very one that it predicts."""
        new, model = self.spec.target_length, place.model
        (written,) = continued(ids.tolist(), place, new=new, beams=self.spec.beams)
        before, after = _read_and_written(written, place, new)  # (1, A) each

        def log_probability(embedded: Tensor) -> Tensor:  # (B, T, H) -> (B,)
            count = len(embedded)
            output = model(
                inputs_embeds=embedded,
                attention_mask=before.new_ones(embedded.shape[:2]),
                decoder_input_ids=before.expand(count, -1),
            )
            each = output.logits.float().log_softmax(-1)  # (B, A, V)
            found: Tensor = each.gather(-1, after.expand(count, -1).unsqueeze(-1)).sum((1, 2))
            return found

        (answer,) = in_words([written], place)
        return Weighed(answer, "log-probability of the answer", log_probability)


def _read_and_written(written: Sequence[int], place: Place, new: int) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it says then, each (1, A). An answer that could have been
    longer has ended, and its end is a token like the others."""
    example = Example((), (*written, tokens.bounds(place.tokenizer)[1])[:new])
    batch = tokens.pair_batch([example], place)
    return batch.inputs["decoder_input_ids"], batch.targets


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
