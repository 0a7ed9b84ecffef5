"""Frozen weights that a run has added to: W + s M for each weight W that LoRA sits on.

M (out, in) is a sum of products B A of past rounds, without their scale s (alpha over the rank). It
goes down beside the adapter as one flat array of float32. The base weights themselves are never
written to: for as long as ``based_on`` is open each layer is lent another weight, and afterwards
has its own again, so that no rounding of one round is left in the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import AdapterSchema
from .encoding import decode_vector
from .errors import ConfideError
from .models import LoadedModel
from .tensors import Shapes, size_of, unflatten

_A, _B = ".lora_A.weight", ".lora_B.weight"


def product_shapes(schema: AdapterSchema) -> Shapes:
    """Each layer that LoRA sits on by its path in the model, and the shape (out, in) of its weight.

    Raises:
        ConfideError: ``aggregate.targets`` for factors of anything but a linear layer.
    """
    shapes = dict(schema.shapes)
    paths = [name.removesuffix(_A) for name in shapes if name.endswith(_A)]
    known = {path + end for path in paths for end in (_A, _B)}
    odd = [name for name in shapes if "lora_" in name and name not in known]
    if odd:
        raise ConfideError(
            "aggregate.targets",
            f"{odd[0]} is no factor of a linear layer's weight, so nothing can be added to that.",
            "Choose lora.targets that are linear layers, or another aggregate.method.",
        )
    return tuple((path, (shapes[path + _B][0], shapes[path + _A][1])) for path in paths)


def products_of(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """B A (out, in) of each layer, float64, by its path."""
    paths = [name.removesuffix(_A) for name in adapter if name.endswith(_A)]
    return {path: adapter[path + _B].double() @ adapter[path + _A].double() for path in paths}


def merged_from(payload: bytes, schema: AdapterSchema) -> Tensor:
    """What a task says was added, (P,); all zeros for an empty payload.

    Raises:
        ConfideError: ``wire.size`` or ``adapter.not-finite``.
    """
    size = size_of(product_shapes(schema))
    vector = decode_vector(payload, "fp32", size) if payload else torch.zeros(size)
    if not torch.isfinite(vector).all():
        raise ConfideError(
            "adapter.not-finite", "What is added to the frozen weights contains NaN or infinity."
        )
    return vector


@contextmanager
def based_on(loaded: LoadedModel, merged: Tensor) -> Iterator[None]:
    """While open, the frozen weights are W + s M for ``merged`` (P,); for an empty one, W."""
    lent: list[tuple[Any, nn.Parameter]] = []
    parts = unflatten(merged, product_shapes(loaded.schema)) if merged.numel() else {}
    try:
        for path, part in parts.items():
            layer: Any = loaded.model.get_submodule(path)
            base, scale = layer.get_base_layer(), layer.scaling["default"]
            lent.append((base, base.weight))
            turned = part.t() if layer.fan_in_fan_out else part
            base.weight = nn.Parameter(base.weight + scale * turned, requires_grad=False)
        yield
    finally:
        for base, weight in lent:
            base.weight = weight
