"""The adapter that a run leaves. One that added to the frozen weights is written as an adapter of
them, so that plain PEFT loads it.

The sum M + B A of each layer is factored by SVD, and the adapter has the largest rank that one of
them needs, up to the width of the layer; its scale is one. Nothing is cut but what float32 cannot
hold beside the largest singular value. Where such an adapter could be absurdly large, the run is
refused before it begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..common.adapter import AdapterSchema, set_adapter
from ..common.combinations import MERGING
from ..common.errors import ConfideError
from ..common.merged import product_shapes, products_of
from ..common.models import LoadedModel
from ..common.settings import Settings
from ..common.tensors import size_of, unflatten
from .aggregation.methods import whole
from .checkpoint import load_checkpoint
from .run_folder import RunFolder

MOST_BYTES = 2**30  # of an adapter with the full rank of every layer
_A, _B = ".lora_A.weight", ".lora_B.weight"
_CUT = 2.0**-24  # of the largest singular value: half a unit in the last place of float32


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


def final_adapter(folder: RunFolder, loaded: LoadedModel, method: str) -> dict[str, Tensor] | None:
    """Put the adapter that the run leaves into the model, ready to be saved. For a run that has
    added to the frozen weights: the adapter of the weights as they were, to be saved instead."""
    shapes = product_shapes(loaded.schema) if method in MERGING else ()
    stepped = whole(loaded.schema, method).trained_size
    state = load_checkpoint(folder, loaded.schema, size_of(shapes), stepped)
    adapter = unflatten(state.outcome, loaded.schema.shapes)
    with torch.no_grad():
        set_adapter(loaded.model, adapter)
    if not shapes:
        return None
    config: Any = loaded.model.peft_config["default"]
    return factored(adapter, unflatten(state.merged, shapes), config.lora_alpha / config.r)


def factored(
    adapter: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """An adapter of scale one whose products are ``scale`` times (M + B A), in float32."""
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


def as_saved(settings: Settings, adapter: Mapping[str, Tensor]) -> Settings:
    """The settings with the rank and scale of the adapter that such a run has written."""
    if settings.aggregate.method not in MERGING:
        return settings
    rank = next(len(value) for name, value in adapter.items() if name.endswith(_A))
    return replace(settings, lora=replace(settings.lora, rank=rank, alpha=float(rank)))


def _rows(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows, float32, with zeros where there are fewer."""
    out = torch.zeros(count, rows.shape[1])
    kept = rows[:count]
    out[: len(kept)] = kept.float()
    return out
