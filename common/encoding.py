"""Vectors as bytes: float32, bfloat16, or blocks of small whole numbers (``blocks``).

Raw and little-endian, since bfloat16 is not a NumPy type; the number of values is the schema's and
never the message's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .blocks import pack, packed_size, rounding, unpack
from .errors import ConfideError

_WIDTH = {"fp32": 4, "bf16": 2}
_BITS = {"int8": 8, "int4": 4}


def encode_vector(vector: Tensor, encoding: str) -> bytes:
    """A float32 vector (N,) as bytes; what ``rounding_of`` says of the encoding is lost.

    Of a change that is private already this is post-processing: it costs no privacy, and what it
    loses takes nothing from the noise that the promise is made of.
    """
    if encoding in _BITS:
        return pack(vector.to(torch.float32), _BITS[encoding])
    if encoding == "bf16":
        return vector.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    if encoding == "fp32":
        return vector.to(torch.float32).numpy().astype("<f4").tobytes()
    raise _unknown_encoding(encoding)


def decode_vector(payload: bytes, encoding: str, size: int) -> Tensor:
    """Undo ``encode_vector`` for exactly ``size`` values.

    Raises:
        ConfideError: ``wire.encoding``, ``wire.size`` or ``wire.malformed``.
    """
    wanted = encoded_size(size, encoding)
    if len(payload) != wanted:
        raise ConfideError(
            "wire.size",
            f"The array has {len(payload)} bytes; {size} {encoding} values take {wanted}.",
        )
    if encoding in _BITS:
        return unpack(payload, _BITS[encoding], size)
    if encoding == "bf16":
        raw = np.frombuffer(payload, dtype="<i2").astype(np.int16)
        return torch.from_numpy(raw).view(torch.bfloat16).to(torch.float32)
    return torch.from_numpy(np.frombuffer(payload, dtype="<f4").astype(np.float32))


def encoded_size(size: int, encoding: str) -> int:
    """Bytes of ``size`` values."""
    if encoding in _BITS:
        return packed_size(size, _BITS[encoding])
    if encoding not in _WIDTH:
        raise _unknown_encoding(encoding)
    return size * _WIDTH[encoding]


def rounding_of(encoding: str) -> float:
    """The most that an encoding moves a vector by, as a share of its L2 norm; bf16 rounds each
    value to nearest even, by at most 2^-8 of it."""
    if encoding in _BITS:
        return rounding(_BITS[encoding])
    return 2.0**-8 if encoding == "bf16" else 0.0


def _unknown_encoding(encoding: str) -> ConfideError:
    known = ", ".join([*_WIDTH, *_BITS])
    return ConfideError("wire.encoding", f"Encoding {encoding[:20]!r} is not one of {known}.")
