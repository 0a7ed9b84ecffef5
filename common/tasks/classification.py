"""Sequence classification: one text, one of the declared labels.

``pooling = mean`` averages a linear layer's logits over a record's own tokens, which is a linear
layer on the mean-pooled hidden states. It is expressed as token classification, a class that
transformers has for every encoder, so the adapter loads without confide; sentence encoders carry
their meaning in the mean, and frozen BERT poolers are a poor start under noise (docs/benchmarks).
``pooling = model`` is the model's own sequence classification head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfideError
from ..settings import TaskSpec
from ..text.readers import Record


@dataclass(frozen=True)
class Example:
    """An encoded record: token ids, at most max_length of them, and the class index."""

    ids: tuple[int, ...]
    target: int


class Classification:
    """See the module's docstring."""

    metric = "accuracy"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.labels = spec.label_names

    def auto_class(self) -> Any:
        """transformers' Auto class of the model with its head."""
        import transformers

        if self.spec.pooling == "mean":
            return transformers.AutoModelForTokenClassification
        return transformers.AutoModelForSequenceClassification

    def peft_task_type(self) -> str:
        return "TOKEN_CLS" if self.spec.pooling == "mean" else "SEQ_CLS"

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids and class of each record; longer texts are cut at ``max_length`` tokens.

        Raises:
            ConfideError: ``data.unknown-label``; it names the record's number, never its content.
        """
        index = {name: i for i, name in enumerate(self.labels)}
        if labelled:
            for number, record in enumerate(records, start=1):
                if record.target not in index:
                    raise ConfideError(
                        "data.unknown-label",
                        f"The label of record {number} is not one of {', '.join(self.labels)}.",
                        "Declare every label in task.labels, spelt as in the data.",
                    )
        texts = [record.text for record in records]
        ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
        targets = [index[r.target] if labelled and r.target is not None else 0 for r in records]
        # A text of which the tokenizer leaves nothing is one token long: no mean is over nothing.
        blank = (tokenizer.pad_token_id or 0,)
        return [Example(tuple(i) or blank, t) for i, t in zip(ids, targets, strict=True)]

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """Class logits (B, L) from the model's output."""
        logits: Tensor = output.logits.float()  # a mean over tokens is no sum for bfloat16
        if self.spec.pooling == "mean":  # (B, T, L) -> (B, L), over the record's own tokens
            weight = attention_mask.unsqueeze(-1).to(logits.dtype)
            logits = (logits * weight).sum(1) / weight.sum(1)
        return logits

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each example (B,) in nats; nothing is shared between examples."""
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
