"""What a holder trains a round with, whatever ``aggregate.method`` is.

Most methods ask nothing. Where ranks may differ the policy's own is trained; where a run adds to
the frozen weights they are lent for as long as this takes; where a factor stays it is this holder's
own. Training itself, and what it costs, is the same: one private step over all that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from ..adapter.schema import AdapterSchema, flatten, unflatten
from ..errors import ConfideError
from .method import Method, Store, stays
from .products import based_on, merged_from
from .ranks import cut, narrowed, padded, rank_of

# The schema of what is trained, and the adapter (N,) to start from -> the private change (M,).
Train = Callable[[AdapterSchema, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a holder needs to train one round: model, adapter (N,) with this holder's own parts,
    local rank, the update of the frozen weights (P,), and the store of its own parts."""

    method: Method
    model: PeftModel
    schema: AdapterSchema
    adapter: Tensor
    rank: int
    merged: Tensor
    store: Store

    def train(self, train: Train) -> tuple[Tensor, AdapterSchema]:
        """The change that may leave, and the schema that it is of."""
        whole = self.schema
        with (
            based_on(self.model, whole, self.merged),
            narrowed(self.model, whole, self.rank) as schema,
        ):
            change = train(schema, cut(self.adapter, whole.shapes, schema.shapes))
        if not self.method.stays:
            return change, schema
        if torch.isfinite(change).all():  # what is not is never released, nor kept
            self._keep(padded(change, schema.trained_shapes, whole.trained_shapes))
        sent = self.method.sent(schema)
        return flatten(unflatten(change, schema.trained_shapes), sent.trained_shapes), sent

    def _keep(self, change: Tensor) -> None:
        adapter = unflatten(self.adapter, self.schema.shapes)
        moved = unflatten(change, self.schema.trained_shapes)
        self.store.save(adapter | {name: adapter[name] + part for name, part in moved.items()})


def context_of(
    method: Method,
    model: PeftModel,
    schema: AdapterSchema,
    adapter: Tensor,
    most_rank: int,
    merged: bytes,
    store: Store,
) -> Context:
    """As ``Method.context``."""
    if merged and not method.merges:
        raise ConfideError(
            "task.merged", f"aggregate.method = {method.name!r} adds nothing to the frozen weights."
        )
    rank = rank_of(schema)
    return Context(
        method=method,
        model=model,
        schema=schema,
        adapter=_with_own(adapter, schema, method, store) if method.stays else adapter,
        # Where that may not be less, the policy refused the run.
        rank=min(rank, most_rank) if method.ranks else rank,
        merged=merged_from(merged, schema) if method.merges else torch.zeros(0),
        store=store,
    )


def _with_own(adapter: Tensor, schema: AdapterSchema, method: Method, store: Store) -> Tensor:
    """The task's adapter with this holder's own factor in it, at zero in the first round: whatever
    the coordinator may have sent of it is not read."""
    tensors, own = unflatten(adapter, schema.shapes), store.load(schema)
    for name in tensors:
        if stays(name, method.stays):
            tensors[name] = own.get(name, torch.zeros_like(tensors[name]))
    return flatten(tensors, schema.shapes)
