"""Arithmetic on named tensors: one flat vector in a fixed order, and back.

A vector is what travels; names and shapes live in the schema that both sides derive from the
public settings, so a message has nothing to say about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def size_of(shapes: Shapes) -> int:
    """Number of values in tensors of these shapes."""
    return sum(int(torch.Size(shape).numel()) for _, shape in shapes)


def flatten(tensors: Mapping[str, Tensor], shapes: Shapes) -> Tensor:
    """The named tensors as one float32 vector (N,), in the order of ``shapes``."""
    parts = [tensors[name].detach().reshape(-1).to(torch.float32) for name, _ in shapes]
    return torch.cat(parts) if parts else torch.zeros(0)


def unflatten(vector: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Undo ``flatten``; the tensors are views of ``vector`` (N,)."""
    sizes = [size_of([shape]) for shape in shapes]
    if sum(sizes) != vector.numel():
        raise ValueError(f"vector has {vector.numel()} elements, the shapes need {sum(sizes)}")
    parts = vector.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
