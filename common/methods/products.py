"""Products B A of LoRA's factors, and frozen weights that a run has added to: W + s M for each
weight W that LoRA sits on.

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
from peft import PeftModel
from torch import Tensor, nn

from ..adapter.encoding import decode_vector
from ..adapter.schema import AdapterSchema, Shapes, size_of, unflatten
from ..errors import ConfideError

MOST_BYTES = 2**30  # of an adapter with the full rank of every layer
_A, _B = ".lora_A.weight", ".lora_B.weight"
_CUT = 2.0**-24  # of the largest singular value: half a unit in the last place of float32


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
            f"{odd[0]} is not a factor of a linear layer's weight, so the method cannot add to that"
            " weight.",
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


def mean_moved(
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


def mean_product(
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


@contextmanager
def based_on(model: PeftModel, schema: AdapterSchema, merged: Tensor) -> Iterator[None]:
    """While open, the frozen weights are W + s M for ``merged`` (P,); for an empty one, W."""
    lent: list[tuple[Any, nn.Parameter]] = []
    parts = unflatten(merged, product_shapes(schema)) if merged.numel() else {}
    try:
        for path, part in parts.items():
            layer: Any = model.get_submodule(path)
            base, scale = layer.get_base_layer(), layer.scaling["default"]
            lent.append((base, base.weight))
            turned = part.t() if layer.fan_in_fan_out else part
            base.weight = nn.Parameter(base.weight + scale * turned, requires_grad=False)
        yield
    finally:
        for base, weight in lent:
            base.weight = weight


def check_size(schema: AdapterSchema) -> None:
    """Refuse a run whose adapter may not fit anywhere.

    Raises:
        ConfideError: ``aggregate.size``.
    """
    shapes = [shape for _, shape in product_shapes(schema)]
    size = 4 * sum(min(shape) * sum(shape) for shape in shapes)
    if size > MOST_BYTES:
        raise ConfideError(
            "aggregate.size",
            f"What is added to the frozen weights may need an adapter of {size / 2**30:.1f} GiB"
            f" (allowed: {MOST_BYTES / 2**30:.0f}).",
            "Lower lora.layers, name fewer lora.targets, or choose another aggregate.method.",
        )


def factored(
    adapter: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """An adapter of scale one whose products are ``scale`` times (M + B A), in float32.

    The sum of each layer is factored by SVD, and the adapter has the largest rank that one of them
    needs, up to the width of the layer. Nothing is cut but what float32 cannot hold beside the
    largest singular value.
    """
    totals = {
        path: merged[path].double() + product for path, product in products_of(adapter).items()
    }
    parts = {path: torch.linalg.svd(total, full_matrices=False) for path, total in totals.items()}
    rank = max(1, *(int((s > _CUT * s[0]).sum()) for _, s, _ in parts.values()))
    out = {name: value for name, value in adapter.items() if not name.endswith((_A, _B))}
    for path, (left, values, right) in parts.items():
        roots = (scale * values).sqrt()
        out[path + _A] = _rows(roots[:, None] * right, rank)
        out[path + _B] = _rows((left * roots).t(), rank).t().contiguous()
    return out


def _rows(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows, float32, with zeros where there are fewer."""
    out = torch.zeros(count, rows.shape[1])
    kept = rows[:count]
    out[: len(kept)] = kept.float()
    return out
