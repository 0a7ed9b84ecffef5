"""Adapters of several ranks: which methods admit them, and what rank r is of an adapter of rank R.

The first r components: rows 1..r of LoRA's A (R, in) and columns 1..r of its B (out, R); the head
has no rank. What a holder does not train is zero in its change, so that changes of every rank add
up in the coordinates of rank R. Both sides make the schema of rank r out of the run's own, and a
digest is all that travels of it.

``hetlora`` (Cho et al. 2024, "Heterogeneous LoRA for federated fine-tuning of on-device foundation
models") cuts and pads; ``flexlora`` (Bai et al. 2024, "Federated fine-tuning of large language
models under heterogeneous tasks and client resources") cuts what an SVD has put in order; ``flora``
(Wang et al. 2024, "FLoRA") stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .adapter import AdapterSchema
from .tensors import Shapes, flatten, unflatten

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


def _shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    for word, axis in _AXES.items():
        if word in name:
            return (*shape[:axis], rank, *shape[axis + 1 :])
    return shape


def _first(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(length) for length in shape)
