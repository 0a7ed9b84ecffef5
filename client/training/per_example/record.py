"""Where per-example gradients are put down: ``p.grad_sample``, (B, *p.shape), in p's own dtype."""

from __future__ import annotations

from typing import Any

import torch
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
