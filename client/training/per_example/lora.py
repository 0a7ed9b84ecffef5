"""A LoRA layer as one autograd function: forward, gradient of the input, per-example gradients.

For a frozen base W, b and branches (A, B, s) the layer is y = x W^T + b + sum s (x A^T) B^T
(Hu et al. 2021). Autograd would keep x, x A^T and both products and sum the gradients of A and B
over the batch; here x A^T is kept, and x only where A is trained. The gradients of an example i,

    dA_i = s (g_i B)^T x_i,    dB_i = s g_i^T (x_i A^T),

cost what their sum would cost. Where there are enough tokens for it to pay, the branches are added
to W first: one product instead of two, and equal to rounding. In 16 bits they stay apart, since an
update below 2^-9 of a weight would be rounded away, and so they do under dropout.

DoRA (Liu et al. 2024) scales the rows of the sum to learnt magnitudes m; the norm that they are
divided by is a constant to the gradient, as in PEFT and section 4.3 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import examples_first, outer, record


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

    def merged(self, tokens: int) -> bool:
        """Whether the branches are added to the base before it is multiplied with ``tokens``
        rows. That reads and writes the weights twice (out x in), and spares as much for the
        outputs and for the gradients of the inputs (tokens x out, tokens x in)."""
        if self.magnitude is not None:
            return True
        outputs, inputs = self.weight.shape
        return (
            tokens * (outputs + inputs) > 2 * outputs * inputs
            and torch.finfo(self.dtype).bits >= 32
            and all(branch.mask is None for branch in self.branches)
        )

    def needs_input(self) -> bool:
        """Whether a gradient is made of x itself."""
        scaled = self.magnitude is not None and self.magnitude.requires_grad
        return scaled or any(branch.a.requires_grad for branch in self.branches)

    def sum_of_weights(self) -> Tensor:
        """W + sum s B A, (out, in)."""
        total = self.weight
        for branch in self.branches:
            a, b = branch.a.to(total.dtype), branch.b.to(total.dtype)
            total = torch.addmm(total, b, a, alpha=branch.scale)
        return total


class LoraLinear(torch.autograd.Function):
    """See the module's docstring. ``x`` (B, ..., in) -> (B x ..., out); the parameters are passed
    so that autograd calls ``backward`` even where ``x`` needs no gradient, and get none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *parameters: nn.Parameter) -> Tensor:
        # Parameters stay attributes: gradient checkpointing would hand back detached copies.
        ctx.layer, ctx.count, ctx.leading = layer, len(parameters), x.shape[:-1]
        x = x.to(layer.dtype)
        with torch.autocast(x.device.type, enabled=False):
            inner = [_masked(x, b.mask) @ b.a.to(x.dtype).t() for b in layer.branches]
            masks = [branch.mask for branch in layer.branches]
            ctx.save_for_backward(x if layer.needs_input() else None, *masks, *inner)
            return _forward(x.reshape(-1, x.shape[-1]), layer, inner)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        layer: Layer = ctx.layer
        (x, *others), count = ctx.saved_tensors, len(layer.branches)
        g = grads[0].to(layer.dtype).view(*ctx.leading, -1)
        kept = _Kept(x=x, masks=others[:count], inner=others[count:])
        gx = _backward(g, layer, kept, wanted=ctx.needs_input_grad[0])
        return (gx, None, *(None for _ in range(ctx.count)))


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What a forward pass leaves for the backward pass: ``x`` (B, ..., in) where a gradient is
    made of it, and for each branch its mask like x, if any, and x A^T (B, ..., r)."""

    x: Tensor | None
    masks: Sequence[Tensor | None]
    inner: Sequence[Tensor]


def _forward(flat: Tensor, layer: Layer, inner: Sequence[Tensor]) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(flat.dtype)
    if layer.merged(len(flat)):
        weight = layer.sum_of_weights()
        if layer.magnitude is not None:
            weight = weight * (layer.magnitude / _norm(weight)).to(weight.dtype).unsqueeze(1)
        y = nn.functional.linear(flat, weight, bias)
    else:
        y = nn.functional.linear(flat, layer.weight, bias)
        for branch, h in zip(layer.branches, inner, strict=True):
            y.addmm_(h.flatten(0, -2), branch.b.to(flat.dtype).t(), alpha=branch.scale)
    for branch in layer.branches:
        if branch.bias is not None:
            y.add_(branch.bias.to(y.dtype), alpha=branch.scale)
    return y


def _backward(g: Tensor, layer: Layer, kept: _Kept, *, wanted: bool) -> Tensor | None:
    if layer.bias is not None and layer.bias.requires_grad:
        record(layer.bias, examples_first(g).sum(1))  # type: ignore[arg-type]
    for branch in layer.branches:
        if branch.bias is not None and branch.bias.requires_grad:
            record(branch.bias, examples_first(g).sum(1).mul_(branch.scale))
    merged = layer.merged(g.numel() // g.shape[-1])
    weight = layer.sum_of_weights() if merged and _used(layer, wanted) else layer.weight
    if layer.magnitude is not None:
        g = _scaled(g, kept.x, weight, layer.magnitude)
    gx = g.flatten(0, -2) @ weight if wanted else None
    for number, branch in enumerate(layer.branches):
        _record_branch(g, kept, number, branch, None if merged else gx)
    return None if gx is None else gx.view(*g.shape[:-1], -1)


def _used(layer: Layer, wanted: bool) -> bool:
    """Whether the backward pass looks at the weights at all."""
    return wanted or layer.magnitude is not None


def _scaled(g: Tensor, x: Tensor | None, weight: Tensor, magnitude: nn.Parameter) -> Tensor:
    """Record DoRA's magnitude, and go on as if the layer were LoRA below a fixed scale."""
    norm = _norm(weight)
    if magnitude.requires_grad and x is not None:
        undirected = nn.functional.linear(x, weight).mul_(g)
        record(magnitude, examples_first(undirected).sum(1) / norm)
    return g * (magnitude / norm).to(g.dtype)


def _record_branch(g: Tensor, kept: _Kept, number: int, branch: Branch, gx: Tensor | None) -> None:
    """Record one branch; ``gx`` (B x ..., in) is added to where the branch is not part of it."""
    a, b, mask = branch.a.to(g.dtype), branch.b.to(g.dtype), kept.masks[number]
    if branch.b.requires_grad:
        record(branch.b, outer(g, kept.inner[number], branch.scale))
    if not branch.a.requires_grad and gx is None:
        return
    inner = g @ b  # (B, ..., r)
    if branch.a.requires_grad and kept.x is not None:
        record(branch.a, outer(inner, _masked(kept.x, mask), branch.scale))
    if gx is None:
        return
    inner = inner.flatten(0, -2)
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
