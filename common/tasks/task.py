"""The Protocol that every task follows, and what it needs of the place where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..settings import TaskSpec
from ..text.readers import Record
from .example import Batch, Example, Prediction


class Place(Protocol):
    """A tokenizer and a model, as ``common.models.LoadedModel`` has them."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def max_length(self) -> int: ...


class Task(Protocol):
    """What a record means. Everything is per example: nothing that one example's loss or gradient
    is made of may depend on the others of its batch.

    Attributes:
        metrics: names of ``common.metrics``, or ``perplexity``; the first is the main one.
        fixed: whether a record gives the same inputs each time it is used, so that frozen layers
            can be computed once.
        by_logits: whether the answer is read off the logits; otherwise ``generate`` makes it.
    """

    spec: TaskSpec
    metrics: tuple[str, ...]
    fixed: bool
    by_logits: bool

    def auto_class(self) -> Any:
        """transformers' Auto class of the model with its head."""

    def peft_task_type(self) -> str | None:
        """PEFT's name of the task; None where it has none."""

    def check(self, config: Any, tokenizer: Any) -> None:
        """Refuse a model that the task does not fit.

        Raises:
            ConfideError: ``task.model`` or ``model.tokenizer``.
        """

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """The records as examples. ``labelled = False`` needs no target, and has none.

        Raises:
            ConfideError: ``data.``...; it names the record's number, never its content.
        """

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        """The example as it is used this time; the same one where ``fixed``. Called for one
        example at a time, and never for one that comes from here."""

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        """Examples in one padded batch, in their order."""

    def length(self, example: Example, max_length: int) -> int:
        """What batches are cut by: at most ``max_length``, and no tensor of the example is longer
        than this share of what it is in an example of that length."""

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """(B, ...) in float32 from the model's output."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example (B,), in nats where it is a likelihood."""

    def counts(self, targets: Tensor) -> Tensor:
        """Of how many terms each loss is the mean, (B,)."""

    def answers(self, logits: Tensor) -> list[int | float]:
        """What the metrics compare with ``references``, where ``by_logits``."""

    def references(self, targets: Tensor) -> list[int | float]:
        """The right answers, where ``by_logits``."""

    def tell(self, logits: Tensor) -> list[Prediction]:
        """The answers in words, where ``by_logits``."""

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The model's own text for each record, where not ``by_logits``. Too long a text is cut as
        ``encode`` cuts it, or refused where it must be taken ``whole``.

        Raises:
            ConfideError: ``data.too-long``, by the record's number.
        """

    def made_up(
        self,
        lengths: Sequence[int],
        size: int,
        generator: torch.Generator,
        place: Place,
    ) -> list[Example]:
        """Examples of so many tokens below ``size``, without any text, ready to be used."""
