"""Encoded examples as padded batches, short ones with short ones, frozen layers computed once.

Each batch is cut by tokens and bytes, not by records, so memory is bounded and padding stays
small. Batches of one logical (Poisson) batch are physical conveniences: per-example
losses make the result the same however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .models import LoadedModel
from .tasks.classification import Classification, Example

# Tokens in one physical batch: more are no faster on a processor.
TOKENS_PER_BATCH = 4096
# Computed for nothing; less would cut the batches into ever smaller pieces.
MOST_PADDING = 0.15
# Tokens that are not worth a pass of their own, padding or not.
SMALL = 512


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


@dataclass(frozen=True)
class Piece:
    """One physical batch of a logical one.

    ``units`` (B,) says to which of U units each example belongs, ``sizes`` (U,) how many examples
    each has in the logical batch; with ``whole`` False more of the same single unit follows.
    """

    batch: Batch
    units: Tensor
    sizes: Tensor
    whole: bool = True


@dataclass(frozen=True)
class Footprint:
    """Bytes that an example takes while its gradient is made: by itself, and for each token."""

    example: float = 0.0
    token: float = 0.0

    def of(self, examples: int, longest: int) -> float:
        """Bytes of so many examples, padded to ``longest`` tokens."""
        return examples * (self.example + longest * self.token)


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much goes into one physical batch.

    Attributes:
        tokens: at most so many, padding included.
        memory: at most so many bytes, counted by ``footprint``.
        padding: at most this share of the tokens, in batches of more than SMALL.
    """

    tokens: int = TOKENS_PER_BATCH
    memory: float = math.inf
    footprint: Footprint = Footprint()
    padding: float = MOST_PADDING

    def holds(self, examples: int, longest: int) -> bool:
        """Whether so many examples, padded to ``longest`` tokens, go in."""
        needed = self.footprint.of(examples, longest)
        return examples * longest <= self.tokens and needed <= self.memory


ROOM = Room()


def chunks_by_length(
    lengths: Sequence[int], indices: Sequence[int], room: Room = ROOM
) -> list[list[int]]:
    """Cut ``indices`` into chunks of similar length that ``room`` holds; a single example that it
    does not hold is a chunk of its own."""
    chunks: list[list[int]] = []
    filled = 0
    for index in sorted(indices, key=lambda i: lengths[i]):
        length = lengths[index]
        count = len(chunks[-1]) + 1 if chunks else 1
        size = count * length
        wasteful = size > SMALL and filled + length < (1 - room.padding) * size
        if not chunks or wasteful or not room.holds(count, length):
            chunks.append([])
            filled = 0
        chunks[-1].append(index)
        filled += length
    return chunks


def chunks_of_units(
    lengths: Sequence[int], units: Sequence[Sequence[int]], room: Room = ROOM
) -> list[list[int]]:
    """The same for units of several examples, which stay together: chunks of positions in
    ``units``. A unit that is too large is a chunk of its own."""
    longest = [max(lengths[i] for i in unit) for unit in units]
    chunks: list[list[int]] = []
    examples = 0
    for unit in sorted(range(len(units)), key=lambda u: longest[u]):
        examples += len(units[unit])
        if not chunks or not room.holds(examples, longest[unit]):
            chunks.append([])
            examples = len(units[unit])
        chunks[-1].append(unit)
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

    def batches(self, indices: Sequence[int] | None = None, room: Room = ROOM) -> Iterator[Batch]:
        """The examples of ``indices`` (all by default) in physical batches; each exactly once."""
        chosen = range(len(self)) if indices is None else indices
        for chunk in chunks_by_length(self._lengths, chosen, room):
            yield self._batch(chunk)

    def together(self, indices: Sequence[int]) -> Batch:
        """The examples of ``indices`` in one physical batch, in that order."""
        return self._batch(indices)

    def pieces(self, units: Sequence[Sequence[int]], room: Room = ROOM) -> Iterator[Piece]:
        """The examples of ``units``, each exactly once, in physical batches of whole units; only
        a unit that is too large for one is spread over several, which follow each other."""
        if all(len(unit) == 1 for unit in units):
            for batch in self.batches([unit[0] for unit in units], room):
                every = torch.arange(batch.size)
                yield Piece(batch, every, torch.ones_like(every))
            return
        for chunk in chunks_of_units(self._lengths, units, room):
            sizes = torch.tensor([len(units[u]) for u in chunk])
            of = {i: place for place, u in enumerate(chunk) for i in units[u]}
            parts = [list(of)]
            if len(chunk) == 1:
                parts = chunks_by_length(self._lengths, parts[0], replace(room, padding=1.0))
            for number, part in enumerate(parts, start=1):
                places = torch.tensor([of[i] for i in part])
                yield Piece(self._batch(part), places, sizes, whole=number == len(parts))

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


def forward(loaded: LoadedModel, task: Classification, batch: Batch) -> Tensor:
    """Class logits (B, L) of a batch."""
    lower_is_done = "inputs_embeds" in batch.inputs
    with loaded.trunk.arithmetic(), loaded.trunk.upper() if lower_is_done else nullcontext():
        output = loaded.model(**batch.inputs, attention_mask=batch.attention_mask)
    return task.logits(output, batch.attention_mask)
