"""Sequence classification: one text, one of the declared labels.

An example's loss may be weighted by its class and focused on what the model gets wrong (Lin et al.
2017); both are the coordinator's choice, never counted from the text, and scale the example's own
gradient before it is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfideError
from ..settings import TaskSpec
from ..text.readers import Record
from ..text.words import label_places
from . import pooled
from .example import Batch, Example, Prediction
from .scores import chosen
from .task import Place
from .tokens import generates_nothing

_MANY = ("accuracy", "macro-f1", "micro-f1", "mcc")
_TWO = ("accuracy", "f1", "macro-f1", "micro-f1", "mcc")


def class_indices(records: Sequence[Record], labels: Sequence[str]) -> list[int]:
    """The class of each record, by its place among the labels.

    Raises:
        ConfideError: ``data.unknown-label``; it names the record's number, never its content.
    """
    place_of, found = label_places(labels), list[int]()
    for number, record in enumerate(records, start=1):
        place = None if record.target is None else place_of(record.target)
        if place is None:
            raise ConfideError(
                "data.unknown-label",
                f"The label of record {number} is not one of {', '.join(labels)}.",
                "Declare every label in task.labels, spelt as in the data.",
            )
        found.append(place)
    return found


class Classification:
    """See the module's docstring."""

    by_logits = True

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.labels = spec.label_names
        known = _TWO if len(self.labels) == 2 else _MANY
        self.metrics = chosen(spec, known, shown=2)
        self.fixed = spec.word_dropout == 0
        self._weights = torch.tensor(spec.weights) if spec.weights else None

    def auto_class(self) -> Any:
        return pooled.auto_class(self.spec)

    def peft_task_type(self) -> str:
        return pooled.peft_task_type(self.spec)

    def check(self, config: Any, tokenizer: Any) -> None:
        """Whatever has the class of ``auto_class`` fits."""

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids and class of each record; longer texts are cut at ``max_length`` tokens.

        Raises:
            ConfideError: ``data.unknown-label``; it names the record's number, never its content.
        """
        targets = class_indices(records, self.labels) if labelled else [0] * len(records)
        ids = pooled.token_ids([record.text for record in records], tokenizer, max_length)
        return [Example(i, t) for i, t in zip(ids, targets, strict=True)]

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        return pooled.without_words(example, self.spec.word_dropout, place, generator)

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return pooled.collate(examples, place, torch.long)

    def length(self, example: Example, max_length: int) -> int:
        return len(example.ids)

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """Class logits (B, L) from the model's output."""
        return pooled.logits(self.spec, output, attention_mask)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each example (B,) in nats, weighted and focused as the settings say;
        nothing is shared between examples."""
        each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        if self.spec.loss == "focal":
            each = (1 - torch.exp(-each)) ** self.spec.gamma * each
        return each if self._weights is None else each * self._weights.to(each.device)[targets]

    def counts(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets)

    def answers(self, logits: Tensor) -> list[int | float]:
        return list(logits.argmax(-1).tolist())

    def references(self, targets: Tensor) -> list[int | float]:
        return list(targets.tolist())

    def tell(self, logits: Tensor) -> list[Prediction]:
        """The most probable label of each text, and every label's probability."""
        told = []
        for shares in logits.float().softmax(-1).tolist():
            by_label = dict(zip(self.labels, shares, strict=True))
            told.append(Prediction(max(by_label, key=lambda name: by_label[name]), by_label))
        return told

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        return generates_nothing(self.spec)

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        return [
            Example(pooled.made_up_ids(length, size, generator, place), number % len(self.labels))
            for number, length in enumerate(lengths)
        ]
