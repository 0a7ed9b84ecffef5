"""How much memory an example needs while its gradient is made, so that batches can be cut to fit.

Measured on one made-up example of the greatest length, from what autograd keeps of it: no text,
no privacy cost, and nothing to maintain for each kind of model. Backward holds a few more
tensors of the largest kept size at a time (a language model's logits), which are added. What a
shorter example needs is at most its share of that by length, since nothing in a model grows
slower than its length but the gradient itself, which is counted apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.models.batches import EncodedText, Footprint, forward
from ...common.models.loading import LoadedModel
from ...common.tasks.tokens import vocabulary
from .per_example import PerExample

_IN_BACKWARD = 3  # tensors of the largest size, beyond those that were kept; two were seen


def measure(engine: PerExample, loaded: LoadedModel) -> Footprint:
    """Bytes for each example and for each of its tokens."""
    longest, task = loaded.max_length, loaded.task
    generator = torch.Generator().manual_seed(0)  # of made-up text
    made_up = task.made_up([longest], vocabulary(loaded), generator, loaded)
    batch = EncodedText(made_up, loaded).together([0])
    own = {_place(t) for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    kept: dict[int, int] = {}
    # Held until the pass is over, or their places would be used again.
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    engine.train()
    with torch.autograd.graph.saved_tensors_hooks(note, _as_it_is):
        task.losses(forward(loaded, task, batch), batch.targets).sum()
    engine.forget()
    largest = max(kept.values(), default=0)
    return Footprint(
        example=sum(p.numel() * p.element_size() for p in engine.trained),
        token=(sum(kept.values()) + _IN_BACKWARD * largest) / longest,
    )


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _as_it_is(tensor: Any) -> Any:
    return tensor
