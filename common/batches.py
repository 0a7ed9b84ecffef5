"""Encoded examples as padded batches, short ones with short ones, frozen layers computed once.

Each batch is cut by tokens, not by records, so memory is bounded by the longest batch and
padding stays small. Batches of one logical (Poisson) batch are physical conveniences: per-example
losses make the result the same however it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .models import LoadedModel
from .tasks.classification import Classification, Example

# Tokens in one physical batch: about 0.5 GB of activations for the largest model of the docs.
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Batch:
    """One physical batch of B examples, padded to T tokens.

    ``inputs`` is ``input_ids`` (B, T) or, below cached layers, ``inputs_embeds`` (B, T, H).
    """

    inputs: dict[str, Tensor]
    attention_mask: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return len(self.targets)


def chunks_by_length(
    lengths: Sequence[int], indices: Sequence[int], budget: int = TOKENS_PER_BATCH
) -> list[list[int]]:
    """Cut ``indices`` into chunks of similar length whose padded size is within ``budget``
    tokens (a single longer example is a chunk of its own)."""
    chunks: list[list[int]] = []
    longest = 0
    for index in sorted(indices, key=lambda i: lengths[i]):
        longest = max(longest, lengths[index])
        if not chunks or (len(chunks[-1]) + 1) * longest > budget:
            chunks.append([])
            longest = lengths[index]
        chunks[-1].append(index)
    return chunks


class EncodedText:
    """Examples of one place, ready for its model; it holds private text at a holder.

    The hidden states below the adapters are computed at the first use and kept in memory only.
    """

    def __init__(self, examples: Sequence[Example], loaded: LoadedModel) -> None:
        self._examples, self._loaded = list(examples), loaded
        self._lengths = [len(example.ids) for example in examples]
        self._hidden: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[Batch]:
        """The examples of ``indices`` (all by default) in physical batches; each exactly once."""
        chosen = range(len(self)) if indices is None else indices
        for chunk in chunks_by_length(self._lengths, chosen):
            yield self._batch(chunk)

    def _batch(self, chunk: Sequence[int]) -> Batch:
        ids, mask = self._padded(chunk)
        targets = torch.tensor([self._examples[i].target for i in chunk])
        if not self._loaded.trunk.frozen:
            return Batch({"input_ids": ids}, mask, targets)
        hidden = self._cached_hidden()
        padded = pad_sequence([hidden[i] for i in chunk], batch_first=True)
        return Batch({"inputs_embeds": padded}, mask, targets)

    def _padded(self, chunk: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor(self._examples[i].ids, dtype=torch.long) for i in chunk]
        pad = self._loaded.tokenizer.pad_token_id or 0
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()

    def _cached_hidden(self) -> list[Tensor]:
        if self._hidden is None:
            hidden: dict[int, Tensor] = {}
            for chunk in chunks_by_length(self._lengths, range(len(self))):
                ids, mask = self._padded(chunk)
                states = self._loaded.trunk.lower(ids, mask)
                for row, index in enumerate(chunk):
                    hidden[index] = states[row, : self._lengths[index]].clone()
            self._hidden = [hidden[i] for i in range(len(self))]
        return self._hidden


def forward(loaded: LoadedModel, task: Classification, batch: Batch, model: Any = None) -> Tensor:
    """Class logits (B, L) of a batch. ``model`` may be a wrapper around ``loaded.model``."""
    call = model if model is not None else loaded.model
    if "inputs_embeds" not in batch.inputs:
        output = call(**batch.inputs, attention_mask=batch.attention_mask)
    else:
        with loaded.trunk.upper():
            output = call(**batch.inputs, attention_mask=batch.attention_mask)
    return task.logits(output, batch.attention_mask)
