"""A noisy sum over a holder's own text: how many records each class has, or how well the adapter
does on it (``common.sums`` says what a run may ask for).

Guarantee: each unit (a record, or the mean over a person's records) is a vector of L2 norm at most
1, so that one unit more or less moves the sum by at most 1; each number of it gets Gaussian noise
of standard deviation ``noise_multiplier`` from the secure source (Dwork and Roth 2014, appendix A).
The plan must have been charged before. Nothing else is returned: no count, no norm, no exact value.

| input | result |
|---|---|
| unit with a NaN or an infinity | contributes exactly zero |
| unit longer than 1 | is shortened to 1 |
| no unit | noise alone |
| noise multiplier 0 | refused by the plan, unless trust is off: then the exact sum |

A record is scored alone, never beside another in a batch, so that no other record changes what it
adds, not even by a rounding. The outcome is rounded to multiples of 2^-10: whole counts show no
trace of how the noise was rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.adapter import set_adapter
from ..common.batches import forward
from ..common.models import LoadedModel
from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Trust, Unit
from ..common.settings import Settings
from ..common.sums import SENSITIVITY, Sum, largest_loss, noise_of
from ..common.tasks import Example
from ..common.tensors import unflatten
from .private_step import check_noise
from .trainer import draws_from

_GRID = 2.0**-10

Shares = NDArray[np.float64]  # (records, numbers of the sum)


def plan_of_sum(settings: Settings) -> Plan:
    """One sum as a plan of one step that uses every unit."""
    return Plan(
        unit=Unit(settings.privacy.unit),
        trust=Trust(settings.privacy.trust),
        clip_norm=SENSITIVITY,
        noise_multiplier=noise_of(settings),
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=settings.privacy.delta,
    )


def noisy_sum(
    shares: Shares, units: Sequence[Sequence[int]], plan: Plan, generator: SecureGenerator
) -> Tensor:
    """The sum over the units with noise, (k,) in float64; see the module's docstring.

    Args:
        shares: (R, k), of each record.
        units: the records of each unit.

    Raises:
        ConfideError: ``train.noise`` for noise that no honest source gives.
    """
    total = clipped_sum(shares, units, plan.clip_norm)
    if plan.trust is not Trust.OFF:
        draw = generator.normal(len(total))
        check_noise(torch.from_numpy(draw))
        total = np.round((total + plan.noise_std * draw) / _GRID) * _GRID
    return torch.from_numpy(total)


def clipped_sum(shares: Shares, units: Sequence[Sequence[int]], most: float) -> Shares:
    """(k,): the sum of the units' means over their records, each of L2 norm at most ``most``."""
    total = np.zeros(shares.shape[1])
    for records in units:
        one = shares[list(records)].mean(axis=0)
        if np.isfinite(one).all():
            total += one * (most / max(float(np.linalg.norm(one)), most))
    return total


def shares_of_classes(classes: Sequence[int], count: int) -> Shares:
    """(R, count): 1 at the class of each record."""
    return np.eye(count)[np.asarray(classes, dtype=np.int64)]


@torch.no_grad()
def shares_of_scores(
    loaded: LoadedModel,
    adapter: Tensor,
    examples: Sequence[Example],
    kind: Sum,
    generator: SecureGenerator,
) -> Shares:
    """(R, 2): how right the adapter (N,) is of each example, and the rest up to 1; of a perplexity
    the loss by the largest that counts, and the rest. What is masked is drawn for each example
    from bits of its own."""
    set_adapter(loaded.model, unflatten(adapter, loaded.schema.shapes))
    loaded.model.eval()
    draws, task, most = draws_from(generator), loaded.task, 1.0
    if kind is Sum.PERPLEXITY:
        most = largest_loss(loaded.model)
    rows = []
    for example in examples:
        used = example if kind is Sum.ACCURACY else task.redraw(example, loaded, draws())
        batch = task.collate([used], loaded)
        logits = forward(loaded, task, batch)
        if kind is Sum.ACCURACY:
            share = float(task.answers(logits) == task.references(batch.targets))
        else:
            share = _share(float(task.losses(logits, batch.targets)[0]), most)
        rows.append((share, 1.0 - share))
    return np.asarray(rows, dtype=np.float64).reshape(-1, 2)


def _share(loss: float, most: float) -> float:
    """A loss as a share of the largest that counts; what is no number counts as that."""
    return 1.0 if math.isnan(loss) else min(max(loss / most, 0.0), 1.0)
