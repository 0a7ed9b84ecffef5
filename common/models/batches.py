"""Encoded examples as padded batches of similar length; frozen layers are computed once.

Each batch is cut by tokens and bytes, not by records, so memory is bounded and padding stays
small. One logical (Poisson) batch is cut into physical ones only to fit into memory: losses are per
example, so the result does not depend on the cuts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..tasks import Batch, Example, Task
from ..tasks.example import padded
from .loading import LoadedModel

# Tokens in one physical batch: more are no faster on a processor.
TOKENS_PER_BATCH = 4096
# Computed for nothing; less would cut the batches into ever smaller pieces.
MOST_PADDING = 0.15
# Tokens that are not worth a pass of their own, padding or not.
SMALL = 512


# The source of random numbers of an example, by its place; independent of every other's.
Draws = Callable[[int], torch.Generator]

# Hidden states (T, H) of an example, or why there are none.
_Hidden = Tensor | Exception

# Hidden states by model and text while ``frozen_layers_shared`` is open, else None.
_shared: dict[str, list[_Hidden]] | None = None


@contextmanager
def frozen_layers_shared() -> Iterator[None]:
    """While open, the runs of this process share the frozen layers' output for equal texts under
    equal frozen layers, whatever their adapters. Whole texts are shared, so every value is the one
    that each run would have computed itself. Never open it at a holder: its text would stay in
    memory until this closes.
    """
    global _shared
    kept, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = kept


@dataclass(frozen=True)
class Piece:
    """One physical batch of a logical one.

    ``units`` (B,) says to which of U units each example belongs, ``sizes`` (U,) how many examples
    each unit has in the logical batch. If ``whole`` is False, the batch is a part of one unit, and
    more of it follows.
    """

    batch: Batch
    units: Tensor
    sizes: Tensor
    whole: bool = True


@dataclass(frozen=True)
class Footprint:
    """Bytes that an example takes while its gradient is computed: a fixed part, and a part for each
    token."""

    example: float = 0.0
    token: float = 0.0

    def of(self, examples: int, longest: int) -> float:
        """The bytes of this many examples, padded to ``longest`` tokens."""
        return examples * (self.example + longest * self.token)


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much goes into one physical batch.

    Attributes:
        tokens: the most tokens, padding included.
        memory: the most bytes, counted by ``footprint``.
        padding: the largest share of padding among the tokens, in batches of more than SMALL.
    """

    tokens: int = TOKENS_PER_BATCH
    memory: float = math.inf
    footprint: Footprint = Footprint()
    padding: float = MOST_PADDING

    def holds(self, examples: int, longest: int) -> bool:
        """Whether this many examples, padded to ``longest`` tokens, fit in."""
        needed = self.footprint.of(examples, longest)
        return examples * longest <= self.tokens and needed <= self.memory


ROOM = Room()


def chunks_by_length(
    lengths: Sequence[int], indices: Sequence[int], room: Room = ROOM
) -> list[list[int]]:
    """Cut ``indices`` into chunks of similar length that fit into ``room``. An example that does
    not fit is a chunk of its own."""
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
    """Like ``chunks_by_length``, for units of several examples that stay together: chunks of
    positions in ``units``. A unit that is too large is a chunk of its own."""
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

    The hidden states below the adapters are computed at the first use and kept in memory only. If
    the task draws masks, ``draws`` gives each use of a record its own generator. With a common one,
    a record more or less would change the masks of all others, and no clip norm bounds that.
    Without ``draws`` the examples are used as they are.
    """

    def __init__(self, examples: Sequence[Example], loaded: LoadedModel) -> None:
        self._examples, self._loaded = list(examples), loaded
        self._lengths = [loaded.task.length(e, loaded.max_length) for e in self._examples]
        self._hidden: list[_Hidden] | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def batches(
        self,
        indices: Sequence[int] | None = None,
        room: Room = ROOM,
        draws: Draws | None = None,
    ) -> Iterator[Batch]:
        """The examples of ``indices`` (all by default) in physical batches; each exactly once."""
        chosen = range(len(self)) if indices is None else indices
        for chunk in chunks_by_length(self._lengths, chosen, room):
            yield self._batch(chunk, draws)

    def together(self, indices: Sequence[int]) -> Batch:
        """The examples of ``indices`` in one physical batch, in that order."""
        return self._batch(indices)

    def thinned(
        self, units: Sequence[Sequence[int]], rates: Sequence[float], chances: Sequence[float]
    ) -> list[list[int]]:
        """The units without the records that are left out this time: each record is used with the
        rate of its class, and an empty unit is dropped. ``chances`` are independent uniform numbers
        in (0, 1), one for each record of the units."""
        coins = iter(chances)
        kept = [[i for i in unit if next(coins) < rates[self._class(i)]] for unit in units]
        return [unit for unit in kept if unit]

    def pieces(
        self,
        units: Sequence[Sequence[int]],
        room: Room = ROOM,
        draws: Draws | None = None,
    ) -> Iterator[Piece]:
        """The examples of ``units``, each exactly once, in physical batches of whole units. Only a
        unit that is too large for one batch is split over several consecutive ones."""
        if all(len(unit) == 1 for unit in units):
            for batch in self.batches([unit[0] for unit in units], room, draws):
                every = torch.arange(batch.size)
                yield Piece(batch, every, torch.ones_like(every))
            return
        for chunk in chunks_of_units(self._lengths, units, room):
            sizes = torch.tensor([len(units[u]) for u in chunk])
            parts = [[i for u in chunk for i in units[u]]]
            of = torch.tensor([place for place, u in enumerate(chunk) for _ in units[u]])
            if len(chunk) == 1:
                parts = chunks_by_length(self._lengths, parts[0], replace(room, padding=1.0))
            for number, part in enumerate(parts, start=1):
                places = of[: len(part)]  # all of it, or of a single unit, where all are 0
                yield Piece(self._batch(part, draws), places, sizes, whole=number == len(parts))

    def _class(self, index: int) -> int:
        target = self._examples[index].target
        if not isinstance(target, int):
            raise TypeError("only classes have rates")
        return target

    def _batch(self, chunk: Sequence[int], draws: Draws | None = None) -> Batch:
        loaded, examples = self._loaded, [self._examples[i] for i in chunk]
        if draws is not None and not loaded.task.fixed:
            pairs = zip(chunk, examples, strict=True)
            examples = [loaded.task.redraw(e, loaded, draws(i)) for i, e in pairs]
        batch = loaded.task.collate(examples, loaded)
        device = loaded.model.device
        if not loaded.trunk.frozen:
            return batch.on(device)
        hidden = self._cached_hidden()
        rows = []
        for row in (hidden[i] for i in chunk):
            if isinstance(row, Exception):
                raise row
            rows.append(row)
        states = pad_sequence(rows, batch_first=True)
        others = {name: x for name, x in batch.inputs.items() if name != "input_ids"}
        return replace(batch, inputs={"inputs_embeds": states, **others}).on(device)

    def _cached_hidden(self) -> list[_Hidden]:
        if self._hidden is None:
            shared = _shared if self._loaded.sha256 else None
            key = "" if shared is None else self._frozen_key()
            known = None if shared is None else shared.get(key)
            self._hidden = self._make_hidden() if known is None else known
            if shared is not None:
                shared[key] = self._hidden
        return self._hidden

    def _make_hidden(self) -> list[_Hidden]:
        hidden: dict[int, _Hidden] = {}
        for chunk in chunks_by_length(self._lengths, range(len(self))):
            try:
                hidden |= self._lower(chunk)
            except Exception:  # noqa: BLE001 - whose it is decides of no other
                for index in chunk:
                    hidden |= self._lower_alone(index)
        return [hidden[i] for i in range(len(self))]

    def _lower(self, chunk: Sequence[int]) -> dict[int, _Hidden]:
        pad = self._loaded.tokenizer.pad_token_id or 0
        ids, mask = padded([self._examples[i].ids for i in chunk], pad)
        device = self._loaded.model.device
        states = self._loaded.trunk.lower(ids.to(device), mask.to(device)).cpu()
        return {
            index: states[row, : len(self._examples[index].ids)].clone()
            for row, index in enumerate(chunk)
        }

    def _lower_alone(self, index: int) -> dict[int, _Hidden]:
        try:
            return self._lower([index])
        except Exception as error:  # noqa: BLE001 - raised where the example is used
            return {index: error.with_traceback(None)}

    def _frozen_key(self) -> str:
        """Everything that decides the hidden states: base weights, number of layers, precision, and
        every record's tokens, in order, with the lengths that batches are cut by."""
        trunk = self._loaded.trunk
        ids = [example.ids for example in self._examples]
        pad = self._loaded.tokenizer.pad_token_id
        known = (self._loaded.sha256, trunk.frozen, trunk.bfloat16, pad, self._lengths, ids)
        return hashlib.sha256(repr(known).encode()).hexdigest()


def forward(loaded: LoadedModel, task: Task, batch: Batch) -> Tensor:
    """The task's logits (B, ...) of a batch."""
    lower_is_done = "inputs_embeds" in batch.inputs
    with (
        loaded.trunk.arithmetic(),
        loaded.trunk.upper() if lower_is_done else nullcontext(),
        nullcontext() if batch.places is None else _output_only_of(loaded.model, batch.places),
    ):
        output = loaded.model(**batch.inputs, attention_mask=batch.attention_mask)
    logits, places = task.logits(output, batch.attention_mask), batch.places
    if places is not None and logits.shape[1] != places.shape[1]:
        return _at(logits, places)  # of a model that does not call its output layer as a module
    return logits


@contextmanager
def _output_only_of(model: PeftModel, places: Tensor) -> Iterator[None]:
    """While open, the model's output layer sees only these places (B, U) of each example: its
    ``logits_to_keep`` takes the same places of all examples, and the learnt tokens are at different
    ones."""

    def gathered(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return _at(args[0], places), *args[1:]

    handle = model.get_output_embeddings().register_forward_pre_hook(gathered)
    try:
        yield
    finally:
        handle.remove()


def _at(values: Tensor, places: Tensor) -> Tensor:
    """(B, T, X) and (B, U) -> (B, U, X)."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
