"""A LoRA layer as one autograd function: forward, gradient of the input, per-example gradients.

For a frozen base W, b and branches (A, B, s) the layer is y = x W^T + b + sum s (x A^T) B^T
(Hu et al. 2021). Autograd would keep x, x A^T and both products and sum the gradients of A and B
over the batch; here x alone is kept, and the gradients of an example i,

    dA_i = s (g_i B)^T x_i,    dB_i = s g_i^T (x_i A^T),

cost what their sum would cost. Without dropout, and in float32 or better, the branches are added
to W first: one product instead of three, and equal to rounding. In 16 bits they stay apart, since
an update below 2^-9 of a weight would be rounded away.

DoRA (Liu et al. 2024) scales the rows of the sum to learnt magnitudes m; the norm that they are
divided by is a constant to the gradient, as in PEFT and section 4.3 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .record import examples_first, outer, record


@dataclass(frozen=True)
class Branch:
    """One adapter of a layer: ``a`` (r, in), ``b`` (out, r), maybe ``bias`` (out,); its mask
    repeats the layer's own dropout, and is None without."""

    a: nn.Parameter
    b: nn.Parameter
    bias: nn.Parameter | None
    scale: float
    mask: Tensor | None


@dataclass(frozen=True)
class Layer:
    """Base and branches of one call. ``weight`` is (out, in) whatever way the base stores it;
    ``magnitude`` (out,) makes it DoRA."""

    weight: Tensor
    bias: Tensor | None
    branches: Sequence[Branch]
    magnitude: nn.Parameter | None
    dtype: torch.dtype

    def merged(self) -> bool:
        """Whether the branches are added to the base before the product."""
        return self.magnitude is not None or (
            torch.finfo(self.dtype).bits >= 32
            and all(branch.mask is None for branch in self.branches)
        )

    def sum_of_weights(self) -> Tensor:
        """W + sum s B A, (out, in)."""
        total = self.weight
        for branch in self.branches:
            a, b = branch.a.to(total.dtype), branch.b.to(total.dtype)
            total = torch.addmm(total, b, a, alpha=branch.scale)
        return total


class LoraLinear(torch.autograd.Function):
    """See the module's docstring. ``x`` (B, ..., in) -> (B, ..., out); the parameters are passed
    so that autograd calls ``backward`` even where ``x`` needs no gradient, and get none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *parameters: nn.Parameter) -> Tensor:
        # Parameters stay attributes: gradient checkpointing would hand back detached copies.
        ctx.layer, ctx.count = layer, len(parameters)
        x = x.to(layer.dtype)
        masks = [branch.mask for branch in layer.branches]
        ctx.save_for_backward(x, *masks)
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            return _forward(flat, layer, masks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *masks = ctx.saved_tensors
        layer: Layer = ctx.layer
        g = grads[0].to(layer.dtype).view(*x.shape[:-1], -1)
        gx = _backward(g, x, layer, masks, ctx.needs_input_grad[0])
        return (gx, None, *(None for _ in range(ctx.count)))


def _forward(flat: Tensor, layer: Layer, masks: Sequence[Tensor | None]) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(flat.dtype)
    if layer.merged():
        weight = layer.sum_of_weights()
        if layer.magnitude is not None:
            weight = weight * (layer.magnitude / _norm(weight)).to(weight.dtype).unsqueeze(1)
        y = nn.functional.linear(flat, weight, bias)
    else:
        y = nn.functional.linear(flat, layer.weight, bias)
        for branch, mask in zip(layer.branches, masks, strict=True):
            h = _masked(flat, mask) @ branch.a.to(flat.dtype).t()
            y.addmm_(h, branch.b.to(flat.dtype).t(), alpha=branch.scale)
    for branch in layer.branches:
        if branch.bias is not None:
            y.add_(branch.bias.to(y.dtype), alpha=branch.scale)
    return y


def _backward(
    g: Tensor, x: Tensor, layer: Layer, masks: Sequence[Tensor | None], wanted: bool
) -> Tensor | None:
    if layer.bias is not None and layer.bias.requires_grad:
        record(layer.bias, examples_first(g).sum(1))  # type: ignore[arg-type]
    for branch in layer.branches:
        if branch.bias is not None and branch.bias.requires_grad:
            record(branch.bias, examples_first(g).sum(1).mul_(branch.scale))
    weight = layer.sum_of_weights() if layer.merged() else layer.weight
    if layer.magnitude is not None:
        norm = _norm(weight)
        if layer.magnitude.requires_grad:
            undirected = nn.functional.linear(x, weight).mul_(g)
            record(layer.magnitude, examples_first(undirected).sum(1) / norm)
        # From here on as if the layer were LoRA below a fixed scale.
        g = g * (layer.magnitude / norm).to(g.dtype)
    gx = g.reshape(-1, g.shape[-1]) @ weight if wanted else None
    for branch, mask in zip(layer.branches, masks, strict=True):
        _record_branch(g, x, branch, mask, None if layer.merged() else gx)
    return None if gx is None else gx.view(x.shape)


def _record_branch(
    g: Tensor, x: Tensor, branch: Branch, mask: Tensor | None, gx: Tensor | None
) -> None:
    a, b = branch.a.to(g.dtype), branch.b.to(g.dtype)
    kept = _masked(x, mask)
    if branch.b.requires_grad:
        record(branch.b, outer(g, kept @ a.t(), branch.scale))
    if not branch.a.requires_grad and gx is None:
        return
    inner = g @ b  # (B, ..., r)
    if branch.a.requires_grad:
        record(branch.a, outer(inner, kept, branch.scale))
    if gx is None:
        return
    inner = inner.reshape(-1, inner.shape[-1])
    if mask is None:
        gx.addmm_(inner, a, alpha=branch.scale)
    else:
        gx.add_((inner @ a).mul_(mask.reshape(gx.shape)), alpha=branch.scale)


def _norm(weight: Tensor) -> Tensor:
    """L2 norm of each output's weights, (out,), in float32 or better."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=dtype)
    return norm


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.view(x.shape)
