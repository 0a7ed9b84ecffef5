"""Adapters of several ranks: what rank r is of an adapter of rank R, and a model lent to that rank.

The first r components: rows 1..r of LoRA's A (R, in) and columns 1..r of its B (out, R); the head
has no rank. What a holder does not train is zero in its change, so that changes of every rank add
up in the coordinates of rank R. Both sides make the schema of rank r out of the run's own, and a
digest is all that travels of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from ..adapter.schema import AdapterSchema, Shapes, flatten, unflatten

# Which axis of a tensor is the rank, by what is in its name.
_AXES = {"lora_A": 0, "lora_B": 1}


def rank_of(schema: AdapterSchema) -> int:
    """The rank of an adapter's LoRA; 0 where it has none."""
    return next((shape[0] for name, shape in schema.shapes if "lora_A" in name), 0)


def at_rank(schema: AdapterSchema, rank: int) -> AdapterSchema:
    """The schema of the first ``rank`` components."""
    return replace(schema, shapes=tuple((n, _shape(n, s, rank)) for n, s in schema.shapes))


def at_every_rank(schema: AdapterSchema) -> Mapping[str, AdapterSchema]:
    """The schemas of rank 1 to R by their digests."""
    found = (at_rank(schema, rank) for rank in range(1, rank_of(schema) + 1))
    return {one.digest: one for one in found}


def cut(vector: Tensor, wide: Shapes, narrow: Shapes) -> Tensor:
    """The first components of an adapter: (N,) in the shapes ``wide`` to those of ``narrow``."""
    tensors = unflatten(vector, wide)
    return flatten({name: tensors[name][_first(shape)] for name, shape in narrow}, narrow)


def padded(vector: Tensor, narrow: Shapes, wide: Shapes) -> Tensor:
    """Undo ``cut``, with zeros for what was cut off."""
    tensors = {name: torch.zeros(shape) for name, shape in wide}
    for name, part in unflatten(vector, narrow).items():
        tensors[name][_first(tuple(part.shape))] = part
    return flatten(tensors, wide)


@contextmanager
def narrowed(model: PeftModel, schema: AdapterSchema, rank: int) -> Iterator[AdapterSchema]:
    """While open, the model's adapter has ``rank`` components, with values to be written by
    whoever trains, and the schema that is yielded.

    Each pair of factors is lent shorter parameters, whose names, scale (alpha over the run's rank)
    and flags are those of the long ones, so that hooks, remembered layers and everything else of
    the model stay; afterwards the long ones are back.
    """
    if rank == rank_of(schema):
        yield schema
        return
    lent: list[tuple[Any, nn.Parameter]] = []
    try:
        for factor, axis in _factors(model):
            lent.append((factor, factor.weight))
            short = factor.weight.detach().narrow(axis, 0, rank).clone()
            factor.weight = nn.Parameter(short, requires_grad=factor.weight.requires_grad)
        yield at_rank(schema, rank)
    finally:
        for factor, weight in lent:
            factor.weight = weight


def _factors(model: PeftModel) -> Iterator[tuple[Any, int]]:
    """LoRA's A and B of each layer, with the axis that is the rank."""
    for layer in model.modules():
        if isinstance(layer, Linear):
            for axis, factors in enumerate((layer.lora_A, layer.lora_B)):
                yield from ((factor, axis) for factor in factors.values())


def _shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    for word, axis in _AXES.items():
        if word in name:
            return (*shape[:axis], rank, *shape[axis + 1 :])
    return shape


def _first(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(length) for length in shape)
