"""What ``aggregate.method`` asks of a holder around its training.

Most methods ask nothing. Where ranks may differ the policy's own is trained (``client.narrow``);
where a run adds to the frozen weights they are lent for as long as this takes (``common.merged``);
under ``fedsa`` B is this holder's own and stays (``client.personal``). Training itself, and what it
costs, is the same whatever the method: one private step over all that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..common.adapter import AdapterSchema
from ..common.combinations import MERGING, OF_RANKS
from ..common.errors import ConfideError
from ..common.leaving import PERSONAL, is_personal, leaving
from ..common.merged import based_on, merged_from
from ..common.models import LoadedModel
from ..common.ranks import cut, rank_of
from ..common.settings import Settings
from ..common.tensors import flatten, unflatten
from ..common.wire import Task
from .narrow import narrowed
from .personal import Personal, load_personal, personal_file, save_personal
from .policy import Policy

# A model and the adapter (N,) to start from -> the private change (M,) of what is trained.
Train = Callable[[LoadedModel, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A task's adapter (N,) with whatever of it is this holder's own, its rank here, what was
    added to the frozen weights (P,), and where this holder's own is kept, if anything is."""

    task: Task
    loaded: LoadedModel
    adapter: Tensor
    rank: int
    merged: Tensor
    own: Path | None

    def train(self, train: Train) -> tuple[Tensor, AdapterSchema]:
        """The change that may leave, and the schema that it is of."""
        wide = self.loaded.schema.shapes
        with based_on(self.loaded, self.merged), narrowed(self.loaded, self.rank) as loaded:
            start = cut(self.adapter, wide, loaded.schema.shapes)
            change = train(loaded, start)
        if self.own is None:
            return change, loaded.schema
        moved = unflatten(change, self.loaded.schema.trained_shapes)
        if torch.isfinite(change).all():  # what is not is never released, nor kept
            self._keep(self.own, moved)
        schema = leaving(self.loaded.schema, PERSONAL)
        return flatten(moved, schema.trained_shapes), schema

    def _keep(self, path: Path, moved: Mapping[str, Tensor]) -> None:
        adapter = unflatten(self.adapter, self.loaded.schema.shapes)
        adapter |= {name: adapter[name] + change for name, change in moved.items()}
        task = self.task
        save_personal(path, Personal(adapter=adapter, round=task.round, settings=task.settings))


def share_of(
    task: Task,
    loaded: LoadedModel,
    adapter: Tensor,
    settings: Settings,
    policy: Policy,
    ledger: Path,
) -> Share:
    """This holder's share of a task.

    Raises:
        ConfideError: ``task.merged`` for weights that the method has no use for, and what
            ``merged_from`` and ``load_personal`` raise.
    """
    method, whole = settings.aggregate.method, rank_of(loaded.schema)
    if task.merged and method not in MERGING:
        raise ConfideError(
            "task.merged", f"aggregate.method = {method!r} adds nothing to the frozen weights."
        )
    own = personal_file(ledger, task.run) if method == PERSONAL else None
    return Share(
        task=task,
        loaded=loaded,
        adapter=adapter if own is None else _with_own(adapter, loaded.schema, own),
        # Where that may not be less, the policy refused the run.
        rank=min(whole, policy.max_rank) if method in OF_RANKS else whole,
        merged=merged_from(task.merged, loaded.schema) if method in MERGING else torch.zeros(0),
        own=own,
    )


def _with_own(adapter: Tensor, schema: AdapterSchema, path: Path) -> Tensor:
    """The task's adapter with this holder's B in it, at zero in the first round: whatever B the
    coordinator may have sent is not read."""
    tensors = unflatten(adapter, schema.shapes)
    known = load_personal(path, schema).adapter if path.exists() else {}
    for name in tensors:
        if is_personal(name):
            tensors[name] = known.get(name, torch.zeros_like(tensors[name]))
    return flatten(tensors, schema.shapes)
