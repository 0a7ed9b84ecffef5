"""The only way out of a holder: a change becomes an update after the ledger was charged for it.

Under local noise the change is already private, so encoding it is free post-processing. In a secure
sum it has a share of the noise alone, and leaves masked (``client.opening``). A value that is not
finite is refused, never repaired: whether one is there is post-processing, too, since no record but
by the noisy sums can make one (a gradient that is not finite contributes zero).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...common.adapter.encoding import decode_vector, encode_vector
from ...common.errors import ConfideError
from ...common.privacy.ledger import Ledger
from ...common.wire.messages import TrainRequest, Update, reply_to_bytes


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What leaves for a request: the values as bytes, their encoding, the digest of what they are
    of where it is not the request's, and the statement of a contribution to a secure sum."""

    values: bytes = field(repr=False)
    encoding: str
    schema: str = ""
    statement: bytes = field(default=b"", repr=False)


def encoded(change: Tensor, encoding: str, schema: str = "") -> Outgoing:
    """A change that is private by itself.

    Raises:
        ConfideError: ``release.not-finite``.
    """
    values = encode_vector(change, encoding)
    # After the encoding: the largest float32 values are infinite in bf16.
    if not torch.isfinite(decode_vector(values, encoding, change.numel())).all():
        raise ConfideError(
            "release.not-finite",
            "The change of the adapter contains NaN or infinity, so nothing is released.",
            "Lower the learning rate.",
        )
    return Outgoing(values=values, encoding=encoding, schema=schema)


def release(
    outgoing: Outgoing,
    request: TrainRequest,
    ledger: Ledger,
    *,
    holder: str,
    delta: float,
    identity: str,
) -> Update:
    """Write the released entry with the reply's bytes, and hand the update over.

    Args:
        identity: of the text that was read, for the ledger alone.

    Raises:
        ConfideError: the ledger's own codes; nothing leaves then, and the charge stays.
    """
    update = Update(
        holder=holder,
        run=request.run,
        round=request.round,
        task_hash=request.hash,
        schema=outgoing.schema or request.schema,
        encoding=outgoing.encoding,
        receipt=ledger.receipt(delta, request.run).to_json(),
        values=outgoing.values,
        statement=outgoing.statement,
    )
    ledger.release(request.hash, reply_to_bytes(update), identity)
    return update
