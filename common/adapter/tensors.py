"""Arithmetic on named tensors: one flat vector in a fixed order, and back.

A vector is what travels; names and shapes live in the schema that both sides derive from the
public settings, so a message has nothing to say about them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ConfideError, nearest

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


# --- the device ---
#
# Where the model is computed on this machine: ``CONFIDE_DEVICE`` = cpu, its default, cuda or auto.
#
# A matter of the machine, never of a run: no coordinator chooses it, and nothing of the promise
# depends on it. Batches, noise and adapters are drawn and kept on the processor everywhere; the
# model and what it computes lie on the device. Before a holder is charged for anything, the
# per-example gradients are held against those of each example alone on that very device
# (``client.training.self_check``). On an accelerator sums come out in another order from time to
# time, so that a run there does not repeat itself bit for bit.


_NAMES = ("cpu", "cuda", "auto")


def chosen_device() -> torch.device:
    """The device of this process.

    Raises:
        ConfideError: ``device.unknown``, or ``device.missing`` for one that is not there.
    """
    name = os.environ.get("CONFIDE_DEVICE") or "cpu"
    if name not in _NAMES:
        raise ConfideError(
            "device.unknown", f"CONFIDE_DEVICE = {name!r:.100}.", nearest(name[:100], _NAMES)
        )
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfideError(
            "device.missing",
            "CONFIDE_DEVICE = 'cuda', but torch finds no such device on this machine.",
            "Set it to auto or cpu, or install a torch that is made for the device.",
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")
