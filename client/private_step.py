"""One private step: Opacus's DPOptimizer with noise from a secure source.

Guarantee: the sum of a Poisson batch's per-record gradients, each clipped to ``max_grad_norm`` C
in L2 over all trained parameters together, plus Gaussian noise of standard deviation sigma * C per
coordinate (Abadi et al. 2016), divided by a public constant.

| input | result |
|---|---|
| empty batch | noise alone; the model is not touched; the step counts |
| record with a NaN or infinite gradient | contributes exactly zero; counted locally |
| record with a zero gradient | contributes zero |
| noise multiplier 0 | refused by the plan, unless trust is off |

Opacus differs in three points that matter here: its generator can be seeded and is not
cryptographic, one NaN record turns every parameter NaN, and norms are taken in the gradient's own
precision. Clipping, virtual steps and stepping are Opacus's own.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Trust


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clip, sum, add noise, step; see the module's docstring.

    Args:
        optimizer: any torch optimizer over the trained parameters.
        plan: clip norm and noise multiplier.
        batch: the public constant that sums are divided by (``train.batch``).
        generator: source of the noise.

    Attributes:
        non_finite: how many records contributed nothing; for the holder's eyes only.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: Plan, batch: int, generator: SecureGenerator
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=batch,
            loss_reduction="mean",
        )
        self._noised = plan.trust is not Trust.OFF
        self._secure = generator
        self.non_finite = 0

    def clip_and_accumulate(self) -> None:
        """Drop non-finite records, then clip and sum as Opacus does."""
        self._drop_non_finite()
        super().clip_and_accumulate()

    def _drop_non_finite(self) -> None:
        if not self.params or not len(self.grad_samples[0]):
            return
        # A finite gradient whose norm overflows float32 would be clipped by inf: drop it too.
        squares = sum(g.flatten(1).double().square().sum(1) for g in self.grad_samples)
        bad = ~torch.isfinite(torch.as_tensor(squares).sqrt().float())
        if bad.any():
            self.non_finite += int(bad.sum())
            for parameter in self.params:
                # Assigned, not multiplied: 0 * NaN is NaN.
                parameter.grad_sample[bad] = 0.0

    def add_noise(self) -> None:
        """Add noise of standard deviation sigma * C to each clipped sum."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed: Tensor = parameter.summed_grad
            if self._noised:
                draw = torch.from_numpy(self._secure.normal(summed.numel()))
                summed = (summed.double() + std * draw.view_as(summed)).to(summed.dtype)
            parameter.grad = summed.view_as(parameter)


def empty_step(optimizer: PrivateOptimizer) -> None:
    """A step for an empty batch: pure noise, without a forward pass (which a batch of no
    records crashes in most models)."""
    for parameter in optimizer.params:
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
    optimizer.step()


def trained_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that a private step may change."""
    return [p for p in model.parameters() if p.requires_grad]
