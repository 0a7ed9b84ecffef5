"""Layers other than LoRA: a linear layer, those that Opacus has samplers for, and any other.

Each is an autograd function around the layer's own forward, so that autograd never sums its
parameters' gradients over the batch. The last resort, ``one_by_one``, goes through the batch one
example at a time: exact for every layer that treats examples apart, and as slow as it sounds,
though for this one layer alone.

Per-example gradients are put down in ``p.grad_sample``, (B, *p.shape), in p's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from ....common.errors import ConfideError


def record(parameter: nn.Parameter, rows: Tensor) -> None:
    """Add ``rows`` (B, *parameter.shape) to the gradients of the batch: a parameter that is used
    twice in one pass has the sum, as in autograd."""
    rows = rows.to(parameter.dtype)
    kept: Any = parameter
    known = kept.grad_sample
    if known is None:
        kept.grad_sample = rows
    elif len(known) == len(rows):
        # Not in place: the rows may be a view that somebody else writes to.
        kept.grad_sample = known + rows
    else:
        raise ConfideError(
            "train.batch-shape",
            f"A second batch of {len(rows)} examples came before the first of {len(known)} was"
            " taken off the model.",
            "Step, or forget, after every physical batch.",
        )


class BatchSize:
    """The number of examples in the batch that is in the model just now."""

    def __init__(self) -> None:
        self.value = 0

    def aligned(self, x: Tensor, layer: str) -> Tensor:
        """``x`` with the examples first. One row for all of them (GPT-2's and BERT's position
        ids) is repeated, so that each example has a gradient of its own."""
        if x.shape[0] == self.value:
            return x
        if x.shape[0] == 1:
            return x.expand(self.value, *x.shape[1:])
        raise ConfideError(
            "train.batch-shape",
            f"{layer} was given {tuple(x.shape)} for a batch of {self.value} examples.",
            "Train another layer: the examples of this one cannot be told apart.",
        )


def examples_first(x: Tensor) -> Tensor:
    """(B, ..., D) as (B, T, D), with T = 1 for (B, D)."""
    return x.unsqueeze(1) if x.dim() == 2 else x.reshape(x.shape[0], -1, x.shape[-1])


def outer(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """For each example the sum over tokens of left_t right_t^T, (B, M, N), of (B, T, M) and
    (B, T, N)."""
    left, right = examples_first(left), examples_first(right)
    rows = torch.bmm(left.transpose(1, 2), right.to(left.dtype))
    return rows if scale == 1.0 else rows.mul_(scale)


Forward = Callable[..., Any]
# Opacus's grad samplers that are used; linear layers and LoRA have faster ones here.
SAMPLED = (nn.LayerNorm, nn.Embedding, nn.RMSNorm)


class Linear(torch.autograd.Function):
    """y = x W^T + b in the weight's own precision, whatever the layers below compute in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> Tensor:
        ctx.weight, ctx.bias, ctx.came_in = weight, bias, x.dtype
        x = x.to(weight.dtype)
        ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.flatten(0, -2), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        g = grads[0].view(*x.shape[:-1], -1)
        weight, bias = ctx.weight, ctx.bias
        if weight.requires_grad:
            record(weight, outer(g, x))
        if bias is not None and bias.requires_grad:
            record(bias, examples_first(g).sum(1))
        gx = (g @ weight).to(ctx.came_in) if ctx.needs_input_grad[0] else None
        return gx, None, None


class Replayed(torch.autograd.Function):
    """A layer whose forward is repeated in the backward pass; ``rule`` records the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, *parameters: nn.Parameter) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule, ctx.count = rule, len(parameters)
        device = x.device.type
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return rule.forward(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,), (g,), rule = ctx.saved_tensors, grads, ctx.rule
        enabled, dtype = ctx.autocast
        with torch.autocast(x.device.type, dtype, enabled=enabled):
            gx = rule.by(rule, x, g, ctx.needs_input_grad[0])
        return (gx, None, *(None for _ in range(ctx.count)))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a replayed layer is computed, and how its per-example gradients are found.

    Attributes:
        layer: the module.
        forward: its own forward, unpatched.
        parameters: those of it that are trained.
        by: records every parameter's rows, given the rule, x (B, ...), the gradient of the output
            and whether that of x is wanted; returns the latter.
    """

    layer: nn.Module
    forward: Forward
    parameters: Sequence[nn.Parameter]
    by: Callable[[Rule, Tensor, Tensor, bool], Tensor | None]


def by_opacus(rule: Rule, x: Tensor, g: Tensor, wanted: bool) -> Tensor | None:
    """By Opacus's grad sampler of the layer's type."""
    sampler = GradSampleModule.GRAD_SAMPLERS[type(rule.layer)]
    for parameter, rows in sampler(rule.layer, [x], g).items():
        padding = getattr(rule.layer, "padding_idx", None)
        if padding is not None:  # autograd gives the padding token no gradient, Opacus does
            rows[:, padding] = 0
        record(parameter, rows)
    if not wanted:
        return None
    with torch.enable_grad():
        copy = x.detach().requires_grad_()
        return torch.autograd.grad(rule.forward(copy), copy, g)[0]


def one_by_one(rule: Rule, x: Tensor, g: Tensor, wanted: bool) -> Tensor | None:
    """By a loop over the examples of the batch, through this layer alone."""
    rows = [p.new_zeros(len(x), *p.shape) for p in rule.parameters]
    gx = torch.empty_like(x) if wanted else None
    for i in range(len(x)):
        with torch.enable_grad():
            one = x[i : i + 1].detach().requires_grad_(wanted)
            inputs = [*rule.parameters, *([one] if wanted else [])]
            found = torch.autograd.grad(rule.forward(one), inputs, g[i : i + 1], allow_unused=True)
        for row, gradient in zip(rows, found, strict=False):
            if gradient is not None:
                row[i] = gradient
        if gx is not None:
            # A layer that does not use its input gives it no gradient.
            gx[i] = 0 if found[-1] is None else found[-1][0]
    for parameter, row in zip(rule.parameters, rows, strict=True):
        record(parameter, row)
    return gx


class Prompt(torch.autograd.Function):
    """A learnt prompt that is the same for all examples: made once, (1, V, H), repeated to
    (B, V, H), and pulled back example by example."""

    @staticmethod
    def forward(ctx: Any, make: Forward, size: int, *parameters: nn.Parameter) -> Tensor:
        ctx.make, ctx.parameters = make, parameters
        one: Tensor = make(1)
        return one.repeat(size, *(1 for _ in one.shape[1:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,), parameters = grads, ctx.parameters
        rows = [p.new_zeros(len(g), *p.shape) for p in parameters]
        with torch.enable_grad():
            one = ctx.make(1)
        for i in range(len(g)):
            found = torch.autograd.grad(
                one, parameters, g[i : i + 1], retain_graph=True, allow_unused=True
            )
            for row, gradient in zip(rows, found, strict=True):
                if gradient is not None:
                    row[i] = gradient
        for parameter, row in zip(parameters, rows, strict=True):
            record(parameter, row)
        return (None, None, *(None for _ in parameters))
