"""The step that the coordinator takes along the mean change: plain, with momentum, or Adam.

Post-processing of private changes costs no privacy. The update rules are torch's; the mean change
stands for minus the gradient (Reddi et al. 2021, "Adaptive federated optimization").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.settings import Settings


class ServerOptimizer:
    """Moves the trained vector (M,) once a round.

    With ``round.mode = gradient`` the step size is the round's rate; with ``steps`` the holders
    have already applied it and the step size is 1 (Adam: the rate in both modes, since it has a
    scale of its own).
    """

    def __init__(self, trained: Tensor, settings: Settings) -> None:
        self._vector = torch.nn.Parameter(trained.clone())
        lr = settings.train.lr
        kind, momentum = settings.aggregate.optimizer, settings.aggregate.momentum
        self._takes_rate = kind == "adam" or settings.round.mode == "gradient"
        self._optimizer: torch.optim.Optimizer
        if kind == "adam":
            self._optimizer = torch.optim.Adam([self._vector], lr=lr, betas=(momentum, 0.99))
        else:
            step = lr if settings.round.mode == "gradient" else 1.0
            used = momentum if kind == "momentum" else 0.0
            self._optimizer = torch.optim.SGD([self._vector], lr=step, momentum=used)

    def step(self, change: Tensor, rate: float) -> Tensor:
        """Move along ``change`` (M,) at the round's rate and return the new vector (M,)."""
        if self._takes_rate:
            self._optimizer.param_groups[0]["lr"] = rate
        self._vector.grad = -change
        self._optimizer.step()
        return self._vector.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """A copy of its tensors by name, for the checkpoint."""
        held: dict[str, Any] = self._optimizer.state.get(self._vector, {})
        return {name: value.clone() for name, value in held.items() if isinstance(value, Tensor)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state()`` as if never stopped."""
        if state:
            self._optimizer.state[self._vector] = {n: value.clone() for n, value in state.items()}
