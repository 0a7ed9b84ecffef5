"""The only way out of a holder: a change becomes an update after the ledger was charged for it.

Under local noise the change is already private, so encoding it is free post-processing. A value
that is not finite is refused, never repaired: whether one is there is post-processing, too, since
no record but by the noisy sums can make one (a gradient that is not finite contributes zero).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.adapter.encoding import decode_vector, encode_vector
from ...common.errors import ConfideError
from ...common.privacy.ledger import Ledger
from ...common.wire.messages import TrainRequest, Update, reply_to_bytes


def release(
    change: Tensor,
    request: TrainRequest,
    ledger: Ledger,
    *,
    holder: str,
    encoding: str,
    delta: float,
    identity: str,
    schema: str = "",
) -> Update:
    """Encode, write the released entry with the reply's bytes, and hand the update over.

    Args:
        identity: of the text that was read, for the ledger alone.
        schema: the digest of what the change is of, where it is not the task's.

    Raises:
        ConfideError: ``release.not-finite``, or the ledger's own codes; nothing leaves then, and
            the charge stays.
    """
    values = encode_vector(change, encoding)
    # After the encoding: the largest float32 values are infinite in bf16.
    if not torch.isfinite(decode_vector(values, encoding, change.numel())).all():
        raise ConfideError(
            "release.not-finite",
            "The change of the adapter contains NaN or infinity, so nothing is released.",
            "Lower the learning rate.",
        )
    update = Update(
        holder=holder,
        run=request.run,
        round=request.round,
        task_hash=request.hash,
        schema=schema or request.schema,
        encoding=encoding,
        receipt=ledger.receipt(delta, request.run).to_json(),
        values=values,
    )
    ledger.release(request.hash, reply_to_bytes(update), identity)
    return update
