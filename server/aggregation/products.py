"""Methods that average the holders' products themselves, and add to the frozen weights what the
factors cannot hold.

| method | factors after a round | added to the frozen weights | source |
|---|---|---|---|
| fedex | mean of A, mean of B | mean of B A less their product | Singhal et al. 2025 |
| flora | a new A, B at zero | mean of B A | Wang et al. 2024 |

Either way base and adapter together move by exactly the mean of the holders' products. FLoRA stacks
the holders' factors into one of the sum of their ranks; the product of the stack is the sum of the
products, which is what is kept here, and holders of any rank fit (``common.ranks``).

Without noise alone: what is added would be the noise of B times that of A, in every round, and
nothing takes it out again. ``settings.combination`` refuses it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.merged import products_of

_A, _B = "lora_A", "lora_B"


@dataclass(frozen=True)
class Moved:
    """After a round: the adapter by name, and what is added to the frozen weights by layer."""

    adapter: dict[str, Tensor]
    merged: dict[str, Tensor]


def merge(
    method: str,
    adapter: Mapping[str, Tensor],
    changes: Mapping[str, Mapping[str, Tensor]],
    merged: Mapping[str, Tensor],
    *,
    seed: str,
) -> Moved:
    """A round of the method that adds to the frozen weights (``common.combinations.MERGING``)."""
    if method == "flora":
        return flora(adapter, changes, merged, seed)
    return fedex(adapter, changes, merged)


def fedex(
    adapter: Mapping[str, Tensor],
    changes: Mapping[str, Mapping[str, Tensor]],
    merged: Mapping[str, Tensor],
) -> Moved:
    """A round of FedEx-LoRA; ``changes`` are the holders', by their names."""
    moved = _mean_moved(adapter, changes)
    total, kept = _mean_product(adapter, changes), products_of(moved)
    residual = {path: merged[path] + total[path] - kept[path] for path in merged}
    return Moved(moved, {path: value.float() for path, value in residual.items()})


def flora(
    adapter: Mapping[str, Tensor],
    changes: Mapping[str, Mapping[str, Tensor]],
    merged: Mapping[str, Tensor],
    seed: str,
) -> Moved:
    """A round of FLoRA. ``seed``, of the new A, is public and another one in each round."""
    moved = _mean_moved(adapter, changes)
    total = _mean_product(adapter, changes)
    for name, value in moved.items():
        if _A in name:
            moved[name] = _new_factor(value, f"{seed}/{name}")
        elif _B in name:
            moved[name] = torch.zeros_like(value)
    return Moved(moved, {path: (merged[path] + total[path]).float() for path in merged})


def _mean_moved(
    adapter: Mapping[str, Tensor], changes: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Each tensor moved by the mean of its changes."""
    moved = {}
    for name, value in adapter.items():
        total = value.double() * len(changes)
        for holder in sorted(changes):
            total += changes[holder].get(name, torch.zeros_like(value))
        moved[name] = (total / len(changes)).float()
    return moved


def _mean_product(
    adapter: Mapping[str, Tensor], changes: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The mean over the holders of B A with their own factors, (out, in) float64 by layer."""
    total: dict[str, Tensor] = {}
    for holder in sorted(changes):
        own = {name: value.double() for name, value in adapter.items()}
        own |= {name: own[name] + change for name, change in changes[holder].items()}
        for path, product in products_of(own).items():
            total[path] = total.get(path, torch.zeros_like(product)) + product
    return {path: product / len(changes) for path, product in total.items()}


def _new_factor(like: Tensor, seed: str) -> Tensor:
    """A factor A (r, in) from PEFT's distribution: uniform, up to one over the root of ``in``."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    return (2 * torch.rand(like.shape, generator=generator) - 1) / math.sqrt(like.shape[1])
