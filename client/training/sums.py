"""A noisy sum over a holder's own text: how many records each class has, or how well the adapter
does on it (``common.plans`` says what a run may ask for).

Guarantee: each unit (a record, or the mean over a person's records) is a vector of L2 norm at most
1, so that one unit more or less moves the sum by at most 1; each number of it gets Gaussian noise
of standard deviation ``noise_multiplier`` from the secure source (Dwork and Roth 2014, appendix A).
The plan must have been charged before. Nothing else is returned: no count, no norm, no exact value.

| input | result |
|---|---|
| unit with a NaN or an infinity, or of which nothing can be used | contributes exactly zero |
| record that cannot be scored | is none of its unit |
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
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.adapter.schema import set_adapter, unflatten
from ...common.models.batches import forward
from ...common.models.loading import LoadedModel
from ...common.plans import Sum, largest_loss
from ...common.privacy.noise import SecureGenerator
from ...common.privacy.plan import Plan, Trust
from ...common.tasks import Example
from ...common.text.readers import Record
from ...common.text.rows import label_places
from ..guard.scrub import tried
from .private_step import check_noise
from .trainer import draws_from

_GRID = 2.0**-10

Share = NDArray[np.float64]  # (numbers of the sum,), of one record
Shares = NDArray[np.float64]  # (records, numbers of the sum)


def noisy_sum(
    shares: Sequence[Share],
    size: int,
    units: Sequence[Sequence[int]],
    plan: Plan,
    generator: SecureGenerator,
    longest: float = math.inf,
) -> Tensor:
    """The sum over the units with noise, (k,) in float64; see the module's docstring.

    Args:
        shares: (k,) of each record that can be used.
        size: k, which is public.
        units: the places in ``shares`` of each unit's records.
        longest: what the sum is cut to (L2) before the noise, for a secure sum.

    Raises:
        ConfideError: ``train.noise`` for noise that no honest source gives.
    """
    rows = np.asarray(shares, dtype=np.float64).reshape(-1, size)
    total = clipped_sum(rows, units, plan.clip_norm)
    if plan.trust is Trust.OFF:
        return torch.from_numpy(total)
    draw = generator.normal(len(total))
    check_noise(torch.from_numpy(draw))
    if plan.trust is Trust.DISTRIBUTED:  # the ring rounds it
        shorter = min(1.0, longest / max(float(np.linalg.norm(total)), longest))
        return torch.from_numpy(total * shorter + plan.share_std * draw)
    return torch.from_numpy(np.round((total + plan.noise_std * draw) / _GRID) * _GRID)


def clipped_sum(shares: Shares, units: Sequence[Sequence[int]], most: float) -> Shares:
    """(k,): the sum of the units' means over their records, each of L2 norm at most ``most``."""
    total = np.zeros(shares.shape[1])
    for records in filter(None, units):
        one = shares[list(records)].mean(axis=0)
        if np.isfinite(one).all():
            total += one * (most / max(float(np.linalg.norm(one)), most))
    return total


def classes_of(records: Sequence[Record | None], labels: Sequence[str]) -> list[int | None]:
    """The class of each record by its place among the labels; None for one that has none."""
    place_of = label_places(labels)
    return [None if r is None or r.target is None else place_of(r.target) for r in records]


def shares_of_classes(classes: Sequence[int | None], count: int) -> list[Share | None]:
    """(count,) for each record: 1 at its class; None for a record that has none."""
    return [None if c is None else np.eye(count)[c] for c in classes]


@torch.no_grad()
def shares_of_scores(
    loaded: LoadedModel,
    adapter: Tensor,
    examples: Sequence[Example | None],
    kind: Sum,
    generator: SecureGenerator,
) -> list[Share | None]:
    """(2,) for each example: how right the adapter (N,) is of it, and the rest up to 1; of a
    perplexity the loss by the largest that counts, and the rest. What is masked is drawn for each
    example from bits of its own. None for an example that is none, or cannot be scored."""
    set_adapter(loaded.model, unflatten(adapter, loaded.schema.shapes))
    loaded.model.eval()
    draws, task, most = draws_from(generator, len(examples)), loaded.task, 1.0
    if kind is Sum.PERPLEXITY:
        most = largest_loss(loaded.model)

    def scored(place: int, example: Example) -> Share:
        used = example if kind is Sum.ACCURACY else task.redraw(example, loaded, draws(place))
        batch = task.collate([used], loaded)
        logits = forward(loaded, task, batch)
        if kind is Sum.ACCURACY:
            share = float(task.answers(logits) == task.references(batch.targets))
        else:
            share = _share(float(task.losses(logits, batch.targets)[0]), most)
        return np.array((share, 1.0 - share))

    return [None if e is None else tried(partial(scored, i, e)) for i, e in enumerate(examples)]


def _share(loss: float, most: float) -> float:
    """A loss as a share of the largest that counts; what is no number counts as that."""
    return 1.0 if math.isnan(loss) else min(max(loss / most, 0.0), 1.0)
