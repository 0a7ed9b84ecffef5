"""What of an adapter goes down: the tensors that are not as every place has them anyway.

An adapter's initial values are a function of model, settings and the public seed
(``LoadedModel.initial``), so a tensor that still has them need not be sent: a factor of LoRA that a
method lets rest, and in the first round nearly everything. Which these are is seen from the values
themselves, bit by bit, whatever the method; a holder needs no memory of earlier rounds.

The seed gives the same values under the same software alone. So the digest of what was not sent
goes along, and a holder whose own values have another one refuses before anything is charged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfideError
from .schema import AdapterSchema
from .tensors import Shapes, flatten, unflatten

OTHER_START = "task.initial"
HINT = (
    "One seed gave coordinator and holder different initial values, as different versions of torch,"
    " PEFT or transformers may: install the coordinator's at the holder; the run's report has them."
)


@dataclass(frozen=True)
class Parcel:
    """``sent`` has a 1 for each tensor of the schema, in order, whose ``values`` (S,) are there;
    ``rest`` is the sha256 of all others."""

    sent: str
    values: Tensor
    rest: str


def pack(schema: AdapterSchema, adapter: Tensor, initial: Mapping[str, Tensor]) -> Parcel:
    """An adapter (N,) without what it has in common with ``initial``."""
    tensors = unflatten(adapter, schema.shapes)
    same = [_bits(tensors[name]).equal(_bits(initial[name])) for name, _ in schema.shapes]
    sent = "".join("0" if alike else "1" for alike in same)
    there, rest = _split(schema, sent)
    return Parcel(sent, flatten(tensors, there), _digest(initial, rest))


def sent_size(schema: AdapterSchema, sent: str) -> int:
    """How many values a parcel has.

    Raises:
        ConfideError: ``task.schema`` if ``sent`` is of other tensors.
    """
    return sum(int(torch.Size(shape).numel()) for _, shape in _split(schema, sent)[0])


def unpack(schema: AdapterSchema, parcel: Parcel, initial: Mapping[str, Tensor]) -> Tensor:
    """The whole adapter (N,) again, with this place's own ``initial`` for what was not sent.

    Raises:
        ConfideError: ``task.schema``, or ``task.initial`` where that is not the sender's.
    """
    there, rest = _split(schema, parcel.sent)
    if _digest(initial, rest) != parcel.rest:
        raise ConfideError(
            "task.initial", "The initial values here are not those of the coordinator.", HINT
        )
    return flatten({**initial, **unflatten(parcel.values, there)}, schema.shapes)


def _split(schema: AdapterSchema, sent: str) -> tuple[Shapes, Shapes]:
    """The tensors that are sent, and the others."""
    if len(sent) != len(schema.shapes) or set(sent) - {"0", "1"}:
        raise ConfideError("task.schema", "The coordinator's adapter does not fit the model here.")
    marked = list(zip(schema.shapes, sent, strict=True))
    return [s for s, mark in marked if mark == "1"], [s for s, mark in marked if mark == "0"]


def _digest(tensors: Mapping[str, Tensor], shapes: Shapes) -> str:
    """sha256 over names, shapes and float32 values."""
    digest = hashlib.sha256(json.dumps([[name, list(shape)] for name, shape in shapes]).encode())
    for name, _ in shapes:
        digest.update(_bits(tensors[name]).numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def _bits(values: Tensor) -> Tensor:
    """As they are in memory: minus zero is not zero here, and NaN is equal to itself."""
    return values.to(torch.float32).contiguous().view(torch.int32)
