"""What ``aggregate.method`` asks of a holder around its training.

Most methods ask nothing. Where ranks may differ the policy's own is trained (``client.narrow``);
where a run adds to the frozen weights they are lent for as long as this takes (``common.merged``).
Training itself, and what it costs, is the same whatever the method: one private step over all that
is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.adapter import AdapterSchema
from ..common.combinations import MERGING, OF_RANKS
from ..common.errors import ConfideError
from ..common.merged import based_on, merged_from
from ..common.models import LoadedModel
from ..common.ranks import cut, rank_of
from ..common.settings import Settings
from ..common.wire import Task
from .narrow import narrowed
from .policy import Policy

# A model and the adapter (N,) to start from -> the private change (M,) of what is trained.
Train = Callable[[LoadedModel, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A task's adapter (N,), its rank here, and what was added to the frozen weights (P,)."""

    loaded: LoadedModel
    adapter: Tensor
    rank: int
    merged: Tensor

    def train(self, train: Train) -> tuple[Tensor, AdapterSchema]:
        """The change that may leave, and the schema that it is of."""
        wide = self.loaded.schema.shapes
        with based_on(self.loaded, self.merged), narrowed(self.loaded, self.rank) as loaded:
            change = train(loaded, cut(self.adapter, wide, loaded.schema.shapes))
        return change, loaded.schema


def share_of(
    task: Task, loaded: LoadedModel, adapter: Tensor, settings: Settings, policy: Policy
) -> Share:
    """This holder's share of a task.

    Raises:
        ConfideError: ``task.merged`` for weights that the method has no use for, and what
            ``merged_from`` raises.
    """
    method, whole = settings.aggregate.method, rank_of(loaded.schema)
    if task.merged and method not in MERGING:
        raise ConfideError(
            "task.merged", f"aggregate.method = {method!r} adds nothing to the frozen weights."
        )
    return Share(
        loaded=loaded,
        adapter=adapter,
        # Where that may not be less, the policy refused the run.
        rank=min(whole, policy.max_rank) if method in OF_RANKS else whole,
        merged=merged_from(task.merged, loaded.schema) if method in MERGING else torch.zeros(0),
    )
