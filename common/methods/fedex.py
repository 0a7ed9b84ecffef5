"""FedEx-LoRA: the means of the factors go down, and what they lack of the mean of the products is
added to the frozen weights (Singhal et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .merging import Merging

if TYPE_CHECKING:
    from torch import Tensor


class FedEx(Merging):
    """The factors are averaged, each by itself."""

    name = "fedex"
    paper = 'Singhal et al. 2025, "FedEx-LoRA", arXiv:2410.09432'

    def after(self, moved: Mapping[str, Tensor], seed: str) -> dict[str, Tensor]:
        return dict(moved)
