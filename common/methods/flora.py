"""FLoRA: the mean of the products is added to the frozen weights, and the factors begin anew (Wang
et al. 2024).

The paper stacks the holders' factors into one of the sum of their ranks. The product of the stack
is the sum of the products, which is what is kept here, and holders of any rank fit (``ranks``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .merging import Merging
from .method import is_factor

if TYPE_CHECKING:
    from torch import Tensor


class Flora(Merging):
    """A is drawn anew and B is zero after each round."""

    name = "flora"
    paper = 'Wang et al. 2024, "FLoRA", arXiv:2409.05976'
    ranks = True

    def after(self, moved: Mapping[str, Tensor], seed: str) -> dict[str, Tensor]:
        following = dict(moved)
        for name, value in moved.items():
            if is_factor(name, "A"):
                following[name] = _new_factor(value, f"{seed}/{name}")
            elif is_factor(name, "B"):
                following[name] = value.new_zeros(value.shape)
        return following


def _new_factor(like: Tensor, seed: str) -> Tensor:
    """A factor A (r, in) from PEFT's distribution: uniform, up to one over the root of ``in``."""
    import torch

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    return (2 * torch.rand(like.shape, generator=generator) - 1) / math.sqrt(like.shape[1])
