"""One private step: Opacus's DPOptimizer with noise from a secure source.

Guarantee: the sum of a Poisson batch's gradients, one for each unit (a record, or the mean over a
person's records, see ``fold``), each clipped to ``max_grad_norm`` C in L2 over all trained
parameters together, plus Gaussian noise of standard deviation sigma * C per coordinate (Abadi et
al. 2016), divided by a public constant.

| input | result |
|---|---|
| sum longer than C times ``most_units(batch)`` | is shortened to that, before the noise |
| empty batch | noise alone; the model is not touched; the step counts |
| unit with a NaN or infinite gradient | contributes exactly zero; counted locally |
| unit with a finite gradient of any size | contributes at most C: norms are float64 |
| unit with a zero gradient | contributes zero |
| noise multiplier 0 | refused by the plan, unless trust is off |

Opacus differs in four points that matter here: its generator can be seeded and is not
cryptographic, one NaN record turns every parameter NaN, norms and sums are taken in the gradient's
own precision, and the unit is always the record. Virtual steps, scaling and stepping are Opacus's.

Alone, without a federation: draw each batch by ``Plan.draw``, ``add`` after the backward pass of
each part of it, ``finish`` once (examples/dp_lora_alone.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from ...common.errors import ConfideError
from ...common.plans import most_units
from ...common.privacy.noise import SecureGenerator
from ...common.privacy.plan import Plan, Trust

_PART = 1 << 16  # values, 512 KiB in float64
_ROUNDING = 1e-12  # relative, of a norm in float64
_TAIL = 40.0  # e^-40 = 4e-18


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clip, sum, add noise, step; see the module's docstring.

    Args:
        optimizer: any torch optimizer over the trained parameters.
        plan: clip norm and noise multiplier.
        batch: the public constant that sums are divided by (``train.batch``).
        generator: source of the noise.

    Attributes:
        non_finite: how many units contributed nothing; for the holder's eyes only.
        released: the newest noisy sum of each parameter, float64, before anything rounds it.
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
        self._shares = math.sqrt(plan.honest)
        self._longest = plan.clip_norm * most_units(batch)
        self._secure = generator
        self._held: dict[torch.nn.Parameter, Tensor] = {}
        self.non_finite = 0
        self.released: dict[Tensor, Tensor] = {}

    def fold(self, units: Tensor, sizes: Tensor, *, whole: bool = True) -> None:
        """Make each unit's mean over its records one row, so that the unit is what is clipped.

        Args:
            units: (B,) which of the U units of this physical batch a record belongs to.
            sizes: (U,) how many records each has in the logical batch.
            whole: False while more records of the same single unit are to come; its rows are
                kept back, and added to those of the next physical batch.
        """
        for parameter in self.params:
            rows: Tensor = parameter.grad_sample
            units, sizes = units.to(rows.device), sizes.to(rows.device)
            shares = rows / sizes[units].view(-1, *(1 for _ in parameter.shape)).to(rows.dtype)
            means = rows.new_zeros(len(sizes), *parameter.shape).index_add_(0, units, shares)
            held = self._held.pop(parameter, None)
            parameter.grad_sample = means if held is None else means + held
            if not whole:
                self._held[parameter] = parameter.grad_sample

    def add(self) -> None:
        """Clip the rows that are there, add them to the sum and take them off the model, without
        a step."""
        self.signal_skip_step(True)
        self.step()
        self.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """A step on what was added before, and on no more: of an empty batch, pure noise, without
        a forward pass (which a batch of no records crashes in most models)."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.step()

    def summed(self) -> list[Tensor | None]:
        """The sum so far, of each parameter."""
        return [parameter.summed_grad for parameter in self.params]

    def go_back(self, summed: Sequence[Tensor | None]) -> None:
        """Forget what came after such a sum, half a unit included."""
        self._held.clear()
        self._step_skip_queue.clear()
        for parameter, known in zip(self.params, summed, strict=True):
            parameter.grad_sample, parameter.summed_grad = None, known

    def clip_and_accumulate(self) -> None:
        """Add each unit's gradient to ``summed_grad``, shortened to norm C if it is longer.

        Norms, factors and sums are float64: in float32 the rounding of a sum over some hundred
        units moves it by more than one part in a million of C.
        """
        if self._held:
            raise ConfideError("train.unit", "A unit was clipped before all of it was there.")
        rows_of: list[Tensor] = [p.grad_sample.flatten(1) for p in self.params]  # (U, n) each
        squares = rows_of[0].new_zeros(len(rows_of[0]), dtype=torch.float64)
        units = len(squares)
        for part in (part for rows in rows_of for part in _parts(rows, units)):
            exact = part.double()
            squares += torch.linalg.vecdot(exact, exact)
        factors, finite = self._factors(squares.sqrt())
        for parameter, rows in zip(self.params, rows_of, strict=True):
            total = squares.new_empty(parameter.numel())
            for part, place in zip(_parts(rows, units), _parts(total, units), strict=True):
                # Left out, not multiplied by zero: 0 * NaN is NaN.
                kept = part if len(factors) == units else part[finite]
                torch.mv(kept.double().t(), factors, out=place)
            known = parameter.summed_grad
            total = total.view(parameter.shape)
            parameter.summed_grad = total if known is None else known + total

    def _factors(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """What each unit with a finite norm is multiplied with, and which units these are (U,)."""
        finite = torch.isfinite(norms)
        self.non_finite += int((~finite).sum())
        kept, most = norms[finite], self.max_grad_norm
        factors = most / kept.clamp(min=most)
        if bool((factors * kept > most * (1 + _ROUNDING)).any()):
            raise ConfideError(
                "train.clip", "A clipped gradient is longer than the clip norm; nothing was sent."
            )
        return factors, finite

    def add_noise(self) -> None:
        """Add noise of standard deviation sigma * C to each clipped sum; in a secure sum this
        holder's share of it (``common.privacy.shares``).

        The sum of all parameters together is first projected onto the ball of norm C times
        ``most_units(batch)``. A projection onto a convex set brings no two points further apart, so
        that one unit still moves it by at most C; and whatever a holder has, no honest sum is
        longer than what the gate takes.
        """
        std = self.noise_multiplier * self.max_grad_norm / self._shares
        squares = [p.summed_grad.double().square().sum() for p in self.params]
        norm = float(torch.stack(squares).sum().sqrt())
        shorter = min(1.0, self._longest / norm) if norm > 0 else 1.0
        for parameter in self.params:
            summed: Tensor = parameter.summed_grad * shorter
            if self._noised:
                draw = torch.from_numpy(self._secure.normal(summed.numel()))
                check_noise(draw)
                summed = summed + std * draw.to(summed.device).view_as(summed)
            self.released[parameter] = summed.double().view_as(parameter)
            parameter.grad = summed.to(parameter.dtype).view_as(parameter)


def noised_update(change: Tensor, plan: Plan, generator: SecureGenerator) -> Tensor:
    """A holder's whole update (M,) as the one term of a private step: clipped to the plan's norm in
    L2 over all values together, in float64, with this holder's share of noise.

    | input | result |
    |---|---|
    | update with a NaN or an infinity | noise alone |
    | update longer than the norm | is shortened to it |
    | no text, or an update of zero | noise alone |

    Source: McMahan et al. 2018, for users. Neighbours differ by the update replaced with zero.

    Raises:
        ConfideError: ``train.noise``.
    """
    if plan.trust is Trust.OFF:
        return change
    draw = torch.from_numpy(generator.normal(change.numel()))
    check_noise(draw)
    return _cut(change, plan.clip_norm)[0] + plan.share_std * draw


def with_bit(change: Tensor, clip: float, bit: float) -> Tensor:
    """An update (M,) cut to ``clip``, and in one more value of length ``bit`` whether it had to be:
    positive if not. (M + 1,) in float64, never longer than the root of the sum of both squares. An
    update that is not finite is zero, and counts as longer."""
    kept, norm = _cut(change, clip)
    return torch.cat([kept, kept.new_tensor([bit if norm <= clip else -bit])])


def _cut(change: Tensor, clip: float) -> tuple[Tensor, float]:
    """An update in float64, cut to ``clip``, and how long it was; zero if it is not finite."""
    whole = change.double()
    norm = float(torch.linalg.vector_norm(whole))
    if not math.isfinite(norm):
        return torch.zeros_like(whole), math.inf
    return whole * (clip / max(norm, clip)), norm


def check_noise(draw: Tensor) -> None:
    """Refuse standard normal noise whose sum of squares no honest source would give: chi-square
    beyond a tail of e^-x each side, by Laurent and Massart 2000 (lemma 1), which holds for every
    size. Conditioning the noise on so rare an event costs less delta than any run asks for.

    Raises:
        ConfideError: ``train.noise``.
    """
    count, square = draw.numel(), float(draw.double().square().sum())
    low = count - 2 * math.sqrt(count * _TAIL)
    high = count + 2 * math.sqrt(count * _TAIL) + 2 * _TAIL
    if not low <= square <= high:
        raise ConfideError(
            "train.noise",
            f"The noise has {square / max(count, 1):.3g} of its variance over {count} values.",
            "Nothing was sent. The source of randomness of this machine is broken.",
        )


def _parts(values: Tensor, units: int) -> Sequence[Tensor]:
    """``values`` (U, n) or (n,) cut across the last axis, so that a part of all units in float64
    stays in the processor's cache: five times as fast, for a head of 600,000 values, as whole."""
    parts: Sequence[Tensor] = values.split(max(1, _PART // max(1, units)), dim=-1)
    return parts


def pull_back(optimizer: PrivateOptimizer, strength: float) -> Callable[[PrivateOptimizer], None]:
    """FedProx (Li et al. 2020): what adds ``strength`` times the way from where the parameters are
    now to the gradient of each step, once that is clipped, summed, noised and scaled.

    It depends on no record but by the private steps before, so that it is post-processing: neither
    clip norm nor noise changes, and it costs nothing. In an example's own gradient it would be
    clipped, and take room from the text.
    """
    start = [parameter.detach().clone() for parameter in optimizer.params]

    def pull(stepping: PrivateOptimizer) -> None:
        for parameter, origin in zip(stepping.params, start, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=strength)

    return pull


def trained_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that a private step may change."""
    return [p for p in model.parameters() if p.requires_grad]
