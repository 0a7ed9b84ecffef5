"""Which metrics a task reports, and their values on public text.

``perplexity`` is made here from the losses: exp of the mean over all target tokens. Every other
metric is one of ``common.metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfideError, nearest
from ..metrics import compute

if TYPE_CHECKING:
    from ..settings import TaskSpec

PERPLEXITY = "perplexity"


def chosen(spec: TaskSpec, known: Sequence[str], *, shown: int) -> tuple[str, ...]:
    """The metrics of a task, the main one first: ``task.metric``, or else the first of ``known``;
    then as many of these as are shown without being asked for.

    Raises:
        ConfideError: ``settings.combination`` for a metric that the task does not have.
    """
    if spec.metric and spec.metric not in known:
        raise ConfideError(
            "settings.combination",
            f"task.metric = {spec.metric!r:.100}, but task.kind = {spec.kind!r} has"
            f" {', '.join(known)}.",
            nearest(spec.metric[:100], known),
        )
    return tuple(dict.fromkeys([spec.metric or known[0], *known[:shown]]))


def needs_answers(metrics: Sequence[str]) -> bool:
    """Whether the losses alone are not enough."""
    return any(name != PERPLEXITY for name in metrics)


def values(
    metrics: Sequence[str], answers: Sequence[Any], references: Sequence[Any], token_loss: float
) -> dict[str, float]:
    """Each metric's value; ``token_loss`` is the mean loss of a target token in nats."""
    return {
        name: perplexity(token_loss) if name == PERPLEXITY else compute(name, answers, references)
        for name in metrics
    }


def perplexity(token_loss: float) -> float:
    """exp of the loss; a loss too large for a float gives infinity."""
    try:
        return math.exp(token_loss)
    except OverflowError:
        return math.inf
