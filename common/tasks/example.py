"""What a task makes of text: an encoded record, a padded batch of them, an answer.

Plain values; nothing here knows a model. An example at a holder is private text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = -100  # the target of a position that is none, torch's own value


@dataclass(frozen=True)
class Example:
    """An encoded record: token ids, and what is to be learnt from them.

    ``target`` is a class index, a number, a 0 or 1 for each label, a target for each of the ids
    (IGNORED where there is none), or the ids of a text of its own.
    """

    ids: tuple[int, ...]
    target: int | float | tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One physical batch of B examples, padded to T tokens.

    ``inputs`` is ``input_ids`` (B, T) or, below cached layers, ``inputs_embeds`` (B, T, H), and
    what else the model is called with; ``targets`` is (B,), (B, L), or (B, U) padded with IGNORED.
    ``places`` (B, U) are the tokens of each example of which logits are made; None: of all.
    """

    inputs: dict[str, Tensor]
    attention_mask: Tensor
    targets: Tensor
    places: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.targets)

    def on(self, device: torch.device) -> Batch:
        """The batch on the device where the model is."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        places = None if self.places is None else self.places.to(device)
        return Batch(inputs, self.attention_mask.to(device), self.targets.to(device), places)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a text: a label, several, a number or a text of its own, and the
    probability of each label where there are labels."""

    answer: str | float | tuple[str, ...]
    probabilities: dict[str, float] = field(default_factory=dict)


def padded(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as (B, T), filled up on the right, and the mask (B, T) of what
    is their own."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    filled = pad_sequence(tensors, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in tensors])
    return filled, (torch.arange(filled.shape[1]) < lengths.unsqueeze(1)).long()
