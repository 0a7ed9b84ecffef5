"""The gate: what an update must be before the coordinator looks at its values.

Everything a holder could choose freely is fixed here: it answers this task of this run, has
exactly the schema's values in the agreed encoding, all finite, and states a receipt under the
plan's terms. Weights are never taken from a holder: every accepted update counts the same. What
fails is left out of the round and named with a code; the round goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.adapter import AdapterSchema
from ..common.errors import ConfideError
from ..common.settings import Settings
from ..common.wire import Task, Update, decode_vector


@dataclass(frozen=True)
class Accepted:
    """An update that passed: who sent it, its change (M,), its receipt and its size in bytes."""

    holder: str
    change: Tensor
    receipt: dict[str, Any]
    size: int


def check(update: Update, task: Task, settings: Settings, schema: AdapterSchema) -> Accepted:
    """Let an update pass or say why not.

    Raises:
        ConfideError: ``gate.task``, ``gate.schema``, ``gate.encoding``, ``gate.not-finite``,
            ``gate.receipt``, ``gate.noise``, ``wire.size``.
    """
    if (update.task_hash, update.run, update.round) != (task.hash, task.run, task.round):
        raise ConfideError("gate.task", "The update answers another task.")
    if update.schema != schema.digest:
        raise ConfideError("gate.schema", "The update was made for another adapter.")
    if update.encoding != settings.wire.encoding:
        raise ConfideError("gate.encoding", f"The update is {update.encoding[:20]!r}.")
    change = decode_vector(update.values, update.encoding, schema.trained_size)
    if not torch.isfinite(change).all():
        raise ConfideError("gate.not-finite", "The update contains NaN or infinity.")
    receipt = dict(update.receipt)
    _check_receipt(receipt, settings)
    return Accepted(update.holder, change, receipt, len(update.values))


def _check_receipt(receipt: dict[str, Any], settings: Settings) -> None:
    steps = receipt.get("steps_run")
    if not isinstance(receipt.get("head"), str) or not isinstance(steps, list) or not steps:
        raise ConfideError("gate.receipt", "The update carries no receipt of a charge.")
    if settings.privacy.trust == "off":
        return
    for run in steps:
        numbers = [run.get(k) for k in ("noise_multiplier", "sampling_rate", "steps")]
        if not all(isinstance(x, (int, float)) and math.isfinite(x) and x > 0 for x in numbers):
            raise ConfideError("gate.noise", "The receipt states steps without noise.")
        if run["noise_multiplier"] < settings.privacy.noise_multiplier:
            raise ConfideError("gate.noise", "The receipt states less noise than the plan.")
