"""The step that the coordinator takes along the mean change: plain, with momentum, or adaptive.

Post-processing of private changes costs no privacy. The mean change stands for minus the gradient
(Reddi et al. 2021, "Adaptive federated optimization": FedAvgM, FedAdam, FedYogi, FedAdagrad). The
update rules are torch's, but for Yogi (Zaheer et al. 2018), which torch has not.

How fast a round learns, when a run has learnt enough, and which adapter is the best follow from the
round's number and from what was measured on public text, and cost no privacy either. The rate is
the coordinator's: it steps with it, or sends it in the round's own settings. Both functions look at
the whole history each time, so a resumed run goes on as if never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.settings import Settings, TrainSpec

# Of a plateau: so many measurements without a better one halve the rate.
_PATIENCE, _FACTOR = 2, 0.5
_BETTER = 1e-4  # relative: what is less is no progress


def rate_of(train: TrainSpec, number: int, rounds: int, losses: Sequence[float]) -> float:
    """The rate of round ``number`` (from 1) of ``rounds``; always above 0.

    Args:
        losses: on public text, before the first round and after each one that was not abandoned.
    """
    if number <= train.warmup:
        return train.lr * number / (train.warmup + 1)
    left = (rounds - number + 1) / max(rounds - train.warmup, 1)  # 1 at first, above 0 at last
    if train.schedule == "linear":
        return train.lr * left
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    if train.schedule == "plateau":
        return train.lr * _FACTOR ** _plateaus(losses)
    return train.lr


def measured_after(settings: Settings, number: int) -> tuple[bool, bool]:
    """Whether the public text is scored after round ``number``, and whether the model writes for
    it, too. What is measured after the last round is not decided here: a run always is."""
    after, needed = settings.round, settings.round.patience or settings.train.schedule == "plateau"
    written = _every(after.generate_every, number)
    return bool(needed) or written or _every(after.evaluate_every, number), written


def _every(rounds: int, number: int) -> bool:
    return rounds > 0 and number % rounds == 0


def is_done(losses: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` measurements brought nothing better; never with 0."""
    return patience > 0 and _since_best(losses) >= patience


def best_round(losses: Mapping[int, float]) -> int:
    """The round after which the loss was least, the earliest of equals; where no loss is a number,
    the latest. Before the first (0) nothing was learnt, so it is none.

    Args:
        losses: on public text, by round; at least one.
    """
    known = {number: loss for number, loss in losses.items() if number and not math.isnan(loss)}
    return min(known, key=lambda number: (known[number], number), default=max(losses))


def _plateaus(losses: Sequence[float]) -> int:
    found, since, best = 0, 0, math.inf
    for loss in losses:
        if _is_better(loss, best):
            since, best = 0, loss
            continue
        since += 1
        if since >= _PATIENCE:
            found, since = found + 1, 0
    return found


def _since_best(losses: Sequence[float]) -> int:
    best, since = math.inf, 0
    for loss in losses:
        since = 0 if _is_better(loss, best) else since + 1
        best = min(best, loss) if not math.isnan(loss) else best
    return since


def _is_better(loss: float, best: float) -> bool:
    """False for a loss that is no number."""
    return loss < best - _BETTER * abs(best) if math.isfinite(best) else loss < math.inf


_SECOND, _SMALL = 0.99, 1e-8  # the decay of second moments, and what is added to their roots


class ServerOptimizer:
    """Moves the trained vector (M,) once a round.

    With ``round.mode = gradient`` the step size is the round's rate; with ``steps`` the holders
    have already applied it and the step size is 1 (Adam, Yogi and Adagrad: the rate in both modes,
    since they have a scale of their own).
    """

    def __init__(self, trained: Tensor, settings: Settings) -> None:
        self._vector = torch.nn.Parameter(trained.clone())
        kind, gradient = settings.aggregate.optimizer, settings.round.mode == "gradient"
        self._takes_rate = gradient or kind not in ("none", "momentum")
        rate = settings.train.lr if self._takes_rate else 1.0
        self._optimizer = _optimizer(kind, self._vector, rate, settings.aggregate.momentum)

    def step(self, change: Tensor, rate: float) -> Tensor:
        """Move along ``change`` (M,) at the round's rate and return the new vector (M,)."""
        if self._takes_rate:
            self._optimizer.param_groups[0]["lr"] = rate
        self._vector.grad = -change
        self._optimizer.step()
        return self._vector.detach().clone()

    def rewrite(self, move: Callable[[Tensor], Tensor]) -> None:
        """The vector in other coordinates, and with it all that is kept in them, both (M,).
        ``move`` is linear; second moments cannot follow one, so that adaptive steps are refused
        with methods that do this (``settings.combination``)."""
        with torch.no_grad():
            self._vector.copy_(move(self._vector.detach()))
        for name, value in self._optimizer.state.get(self._vector, {}).items():
            if isinstance(value, Tensor) and value.dim():
                self._optimizer.state[self._vector][name] = move(value)

    def state(self) -> dict[str, Tensor]:
        """A copy of its tensors by name, for the checkpoint."""
        held: dict[str, Any] = self._optimizer.state.get(self._vector, {})
        return {name: value.clone() for name, value in held.items() if isinstance(value, Tensor)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state()`` as if never stopped."""
        if state:
            self._optimizer.state[self._vector] = {n: value.clone() for n, value in state.items()}


def _optimizer(
    kind: str, vector: torch.nn.Parameter, rate: float, momentum: float
) -> torch.optim.Optimizer:
    betas = (momentum, _SECOND)
    if kind == "adam":
        return torch.optim.Adam([vector], lr=rate, betas=betas, eps=_SMALL)
    if kind == "yogi":
        return _Yogi([vector], lr=rate, betas=betas, eps=_SMALL)
    if kind == "adagrad":
        return torch.optim.Adagrad([vector], lr=rate, eps=_SMALL)
    return torch.optim.SGD([vector], lr=rate, momentum=momentum if kind == "momentum" else 0.0)


class _Yogi(torch.optim.Optimizer):
    """Adam whose second moment v goes towards g^2 by (1 - beta2) g^2 at most, so that it forgets a
    large gradient slowly. It starts like Adam: at zero, with both moments corrected for that."""

    def __init__(
        self, params: list[torch.nn.Parameter], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["first"] = torch.zeros_like(parameter)
                    state["second"] = torch.zeros_like(parameter)
                _yogi_step(parameter, state, group["lr"], group["betas"], group["eps"])


def _yogi_step(
    parameter: Tensor,
    state: dict[str, Tensor],
    lr: float,
    betas: tuple[float, float],
    small: float,
) -> None:
    decay, second_decay = betas
    gradient, first, second = parameter.grad, state["first"], state["second"]
    if gradient is None:
        return
    square = gradient.square()
    state["step"] += 1
    number = float(state["step"])
    first.lerp_(gradient, 1 - decay)
    second.sub_((1 - second_decay) * (second - square).sign() * square)
    scale = (second / (1 - second_decay**number)).sqrt() + small
    parameter.sub_(lr * (first / (1 - decay**number)) / scale)
