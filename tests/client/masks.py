"""Dropout masks of a batch, replayed for each example on its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Called random, but on the CPU attention with dropout takes another way.
DRAWS_NOTHING = (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,)


class Masks(TorchDispatchMode):
    """Notes every dropout mask of a batch, and hands each example its own rows of them again.

    A batch and a loop over its examples draw different random numbers, whatever the seed, so the
    masks themselves have to be carried over. They are taken below autograd, where any way of
    drawing ends in a random operation of ATen, so that nothing is assumed of how the tested code
    draws except that it draws once for each mask of the plain model, in the same order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[Tensor] = []  # (B, ...) each
        self._example: int | None = None
        self._next = 0

    def replay(self, example: int) -> None:
        """From here on, the rows of this example."""
        self.check_used_up()
        self._example, self._next = example, 0

    def check_used_up(self) -> None:
        assert self._example is None or self._next == len(self.drawn), "not as many as were noted"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags or func in DRAWS_NOTHING:
            return out
        assert func is torch.ops.aten.bernoulli_.float, f"{func} is no mask that can be replayed"
        if self._example is None:
            self.drawn.append(out.clone())
            return out
        row = self.drawn[self._next][self._example].unsqueeze(0)
        self._next += 1
        assert row.shape == out.shape
        return out.copy_(row)
