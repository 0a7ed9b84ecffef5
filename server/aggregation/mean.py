"""The mean of the holders' changes, for ``aggregate.method`` ``lora`` and ``ffa`` alike.

With ``ffa`` (Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning") A is
frozen and the mean of B is the mean of the product BA exactly; with ``lora`` A and B are averaged
apart, which is not the mean of the products and has noise squared in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...common.errors import ConfideError


def mean_change(changes: Mapping[str, Tensor]) -> Tensor:
    """Uniform mean (M,) of the changes by holder; empty input is refused."""
    if not changes:
        raise ConfideError("aggregate.empty", "No update was accepted, so there is no mean.")
    # A running sum: a stack of a thousand holders in float64 would be the largest thing here.
    total = torch.zeros_like(next(iter(changes.values())), dtype=torch.float64)
    for holder in sorted(changes):
        total += changes[holder]
    return (total / len(changes)).float()
