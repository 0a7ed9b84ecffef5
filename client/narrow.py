"""A warm model for as long as a task lasts: with LoRA of a smaller rank than it was loaded with.

Each pair of factors is lent shorter parameters, whose names, scale (alpha over the run's rank) and
flags are those of the long ones, so that hooks, remembered layers and everything else of the model
stay; afterwards the long ones are back. Nothing is adjusted: a holder trains a smaller rank only
under a method that admits one (``common.ranks``), and the update says so by its digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import nn

from ..common.models import LoadedModel
from ..common.ranks import at_rank, rank_of


@contextmanager
def narrowed(loaded: LoadedModel, rank: int) -> Iterator[LoadedModel]:
    """While open, the model's adapter has ``rank`` components, with values to be written by
    whoever trains; the model that is yielded has the schema of it."""
    if rank == rank_of(loaded.schema):
        yield loaded
        return
    lent: list[tuple[Any, nn.Parameter]] = []
    try:
        for factor, axis in _factors(loaded):
            lent.append((factor, factor.weight))
            short = factor.weight.detach().narrow(axis, 0, rank).clone()
            factor.weight = nn.Parameter(short, requires_grad=factor.weight.requires_grad)
        yield replace(loaded, schema=at_rank(loaded.schema, rank))
    finally:
        for factor, weight in lent:
            factor.weight = weight


def _factors(loaded: LoadedModel) -> Iterator[tuple[Any, int]]:
    """LoRA's A and B of each layer, with the axis that is the rank."""
    for layer in loaded.model.modules():
        if isinstance(layer, Linear):
            for axis, factors in enumerate((layer.lora_A, layer.lora_B)):
                yield from ((factor, axis) for factor in factors.values())
