"""Local training: Poisson batches of private steps on a warm model.

The number of steps is the plan's, whatever the batches turn out to be; nothing about a batch (its
loss, its size, its norms) is returned. Sources: Abadi et al. 2016 (DP-SGD); Opacus's grad-sample
hooks compute the per-record gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from peft import PeftModel
from torch import Tensor

from ..common.adapter import get_adapter, set_adapter
from ..common.batches import EncodedText, forward
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Trust
from ..common.settings import Settings
from ..common.tasks import task_for
from ..common.tensors import flatten, unflatten
from .private_step import PrivateOptimizer, empty_step, trained_parameters


class Trainer:
    """A model with Opacus's hooks on; they stay on the model for every task of the process."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._hooked = _hooked(loaded.model)

    def train(
        self,
        adapter: Tensor,
        text: EncodedText,
        settings: Settings,
        plan: Plan,
        generator: SecureGenerator,
        *,
        units: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Train from ``adapter`` (all values, (N,)) and return the change of the trained part (M,).

        The plan must have been charged before. With ``round.mode = gradient`` the change is minus
        the private gradient; otherwise it is the difference after the local steps. Whatever
        happens, nothing of the text stays on the model. ``units`` holds the records of each unit
        of privacy; None: each record is one.
        """
        if units is not None and any(len(unit) != 1 for unit in units):
            raise NotImplementedError("units of several records")
        try:
            return self._train(adapter, text, settings, plan, generator)
        finally:
            _forget(self._hooked)

    def _train(
        self,
        adapter: Tensor,
        text: EncodedText,
        settings: Settings,
        plan: Plan,
        generator: SecureGenerator,
    ) -> Tensor:
        self._hooked.train()
        schema = self._loaded.schema
        set_adapter(self._loaded.model, unflatten(adapter, schema.shapes))
        before = flatten(get_adapter(self._loaded.model), schema.trained_shapes)
        optimizer = PrivateOptimizer(
            self._local_optimizer(settings), plan, settings.train.batch, generator
        )
        for _ in range(plan.steps_per_round):
            self._step(optimizer, text, plan.draw(len(text), generator).tolist(), settings)
        after = flatten(get_adapter(self._loaded.model), schema.trained_shapes)
        if plan.trust is not Trust.OFF:
            sizes = [math.prod(shape) for _, shape in schema.trained_shapes]
            for old, new in zip(before.split(sizes), after.split(sizes), strict=True):
                _check_moved(old, new)
        return after - before

    def _local_optimizer(self, settings: Settings) -> torch.optim.Optimizer:
        parameters = trained_parameters(self._loaded.model)
        if settings.round.mode == "gradient":
            return torch.optim.SGD(parameters, lr=1.0)
        if settings.train.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=settings.train.lr)
        return torch.optim.SGD(parameters, lr=settings.train.lr)

    def _step(
        self, optimizer: PrivateOptimizer, text: EncodedText, drawn: list[int], settings: Settings
    ) -> None:
        optimizer.zero_grad()
        if not drawn:
            empty_step(optimizer)
            return
        task, seen = task_for(settings.task), 0
        for batch in text.batches(drawn):
            logits = forward(self._loaded, task, batch, model=self._hooked)
            with warnings.catch_warnings():
                # True and harmless below cached layers: their output needs no gradient.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                # A sum: Opacus hands out each record's own gradient, unscaled by the batch.
                task.losses(logits, batch.targets).sum().backward()
            seen += batch.size
            optimizer.signal_skip_step(seen < len(drawn))
            optimizer.step()
            optimizer.zero_grad()


def _hooked(model: PeftModel) -> GradSampleModule:
    """The model with its hooks, made once: Opacus refuses to hook a model twice. It is kept with
    the model, so that it goes when the model goes."""
    kept = vars(model)
    if "_confide_hooked" not in kept:
        kept["_confide_hooked"] = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    hooked: GradSampleModule = kept["_confide_hooked"]
    return hooked


def _forget(hooked: GradSampleModule) -> None:
    """Take everything of the last task off the model. After a failure between forward and
    backward, Opacus would otherwise add that task's gradients to those of the next."""
    for module in hooked.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        for name in ("activations", "max_batch_len") if own else ():
            vars(module).pop(name, None)
        for parameter in own:
            parameter.grad = None
            kept: dict[str, Any] = vars(parameter)
            kept.update(grad_sample=None, summed_grad=None, _forward_counter=0)
            kept.pop("_current_grad_sample", None)


def _check_moved(before: Tensor, after: Tensor) -> None:
    """Noise moves every trained tensor; one that stands still was never reached (Opacus #820)."""
    if torch.equal(before, after):
        raise ConfideError(
            "train.no-gradient",
            "A trained tensor did not change in a private step.",
            "The model's adapters are not reached by the gradient; report the model's name.",
        )
