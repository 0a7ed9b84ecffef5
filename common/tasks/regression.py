"""Regression: one text, one number in a declared range.

The loss is the squared error of each example. The range is the coordinator's, never taken from the
text; it is checked, since a misread column would otherwise train on numbers of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfideError
from ..settings import TaskSpec
from ..text.readers import Record
from . import pooled
from .example import Batch, Example, Prediction
from .scores import chosen
from .task import Place
from .tokens import generates_nothing


class Regression:
    """See the module's docstring."""

    by_logits = True

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.metrics = chosen(spec, ("pearson", "spearman"), shown=2)
        self.fixed = spec.word_dropout == 0

    def auto_class(self) -> Any:
        return pooled.auto_class(self.spec)

    def peft_task_type(self) -> str:
        return pooled.peft_task_type(self.spec)

    def check(self, config: Any, tokenizer: Any) -> None:
        """Whatever has the class of ``auto_class`` fits."""

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids and number of each record.

        Raises:
            ConfideError: ``data.bad-number``; it names the record's number, never its content.
        """
        ids = pooled.token_ids([record.text for record in records], tokenizer, max_length)
        numbers = [self._number(r.target, i) if labelled else 0.0 for i, r in enumerate(records, 1)]
        return [Example(i, n) for i, n in zip(ids, numbers, strict=True)]

    def _number(self, target: str | None, place: int) -> float:
        try:
            number = float(target or "")
        except ValueError:
            number = math.nan
        low, high = self.spec.low, self.spec.high
        if not low <= number <= high:
            raise ConfideError(
                "data.bad-number",
                f"The target of record {place} is not a number in [{low:g}, {high:g}].",
                "Set task.low and task.high to the range of the scale, or correct the record.",
            )
        return number

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        return pooled.without_words(example, self.spec.word_dropout, place, generator)

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return pooled.collate(examples, place, torch.float32)

    def length(self, example: Example, max_length: int) -> int:
        return len(example.ids)

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """The number of each text, (B, 1)."""
        return pooled.logits(self.spec, output, attention_mask)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The squared error of each example (B,)."""
        return (logits.float().squeeze(-1) - targets) ** 2

    def counts(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets)

    def answers(self, logits: Tensor) -> list[int | float]:
        return list(logits.float().squeeze(-1).tolist())

    def references(self, targets: Tensor) -> list[int | float]:
        return list(targets.tolist())

    def tell(self, logits: Tensor) -> list[Prediction]:
        return [Prediction(number) for number in self.answers(logits)]

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        return generates_nothing(self.spec)

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        span = self.spec.high - self.spec.low
        return [
            Example(
                pooled.made_up_ids(length, size, generator, place),
                self.spec.low + span / (2 + number),
            )
            for number, length in enumerate(lengths)
        ]
