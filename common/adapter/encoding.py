"""What of an adapter travels, and vectors as bytes: float32, bfloat16, or blocks of small whole
numbers.

Raw and little-endian, since bfloat16 is not a NumPy type; the number of values is the schema's and
never the message's. A block has 64 values, with a float32 scale of its own.

A block's scale is its largest absolute value by 127 (8 bits) or by 7 (4 bits), and each value is
the nearest multiple of it (ties to even). Nearest, not stochastic: it has the smaller error and
repeats itself bit for bit; and under local noise it is as good as unbiased, since noise of a third
of a step or more already spreads the values evenly between the steps.

Error, for a block x of finite values:

- each value by at most scale / 2 = max|x| / 254 or max|x| / 14;
- in L2 by at most 4 / 127 = 3.2 % or 4 / 7 = 58 % of the block's norm, whatever the values, and by
  about 0.6 % or 11 % where they are normally distributed.

A block with NaN or infinity comes back as NaN throughout, which the release and the gate refuse;
values below 1e-42 come back as zero. Source: block-wise absmax quantisation (Dettmers et al. 2022,
"8-bit optimizers via block-wise quantization").

**What of an adapter goes down** (``pack``). An adapter's initial values are a function of model,
settings and the public seed (``LoadedModel.initial``), so a tensor that still has them need not be
sent: a factor of LoRA that a method lets rest, and in the first round nearly everything. Which
these are is seen from the values themselves, bit by bit, whatever the method; a holder needs no
memory of earlier rounds.

The seed gives the same values under the same software alone. So the digest of what was not sent
goes along, and a holder whose own values have another one refuses before anything is charged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfideError
from .schema import AdapterSchema, Shapes, flatten, unflatten

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


_WIDTH = {"fp32": 4, "bf16": 2}
_BITS = {"int8": 8, "int4": 4}
BLOCK = 64
_LARGEST = {8: 127, 4: 7}


def encode_vector(vector: Tensor, encoding: str) -> bytes:
    """A float32 vector (N,) as bytes; what ``rounding_of`` says of the encoding is lost.

    Of a change that is private already this is post-processing: it costs no privacy, and what it
    loses takes nothing from the noise that the promise is made of.
    """
    if encoding in _BITS:
        return pack_blocks(vector.to(torch.float32), _BITS[encoding])
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
        return unpack_blocks(payload, _BITS[encoding], size)
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


def packed_size(size: int, bits: int) -> int:
    """Bytes of ``size`` values: a scale of 4 bytes for each block begun, and the numbers."""
    return 4 * _blocks(size) + (size * bits + 7) // 8


def rounding(bits: int) -> float:
    """The most by which L2 norm of what comes back may differ from it, as a share."""
    return math.sqrt(BLOCK) / (2 * _LARGEST[bits])


def pack_blocks(vector: Tensor, bits: int) -> bytes:
    """A float32 vector (N,) as ``packed_size(N, bits)`` bytes: all scales, then all numbers."""
    count, largest = vector.numel(), _LARGEST[bits]
    blocks = torch.zeros(_blocks(count) * BLOCK, dtype=torch.float32)
    blocks[:count] = vector
    blocks = blocks.view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1) / largest  # NaN and infinity stay what they are
    steps = (blocks / scales[:, None]).nan_to_num(0, 0, 0).round().clamp(-largest, largest)
    numbers = steps.view(-1)[:count].to(torch.int8).numpy()
    head = scales.numpy().astype("<f4").tobytes()
    return head + (numbers.tobytes() if bits == 8 else _nibbles(numbers))


def unpack_blocks(payload: bytes, bits: int, size: int) -> Tensor:
    """Undo ``pack_blocks`` for exactly ``size`` values; the length was checked by the caller.

    Raises:
        ConfideError: ``wire.malformed`` for a number that ``pack_blocks`` does not write.
    """
    scales = torch.from_numpy(np.frombuffer(payload, "<f4", _blocks(size)).astype(np.float32))
    body = np.frombuffer(payload, np.uint8, offset=4 * _blocks(size))
    numbers = body.view(np.int8) if bits == 8 else _from_nibbles(body, size)
    if numbers.size and int(numbers.min()) < -_LARGEST[bits]:
        raise ConfideError("wire.malformed", f"A number is below -{_LARGEST[bits]}.")
    values = torch.from_numpy(numbers.astype(np.float32))
    return values * scales.repeat_interleave(BLOCK)[:size]


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _nibbles(numbers: np.ndarray[tuple[int], np.dtype[np.int8]]) -> bytes:
    """Two's complement, the first of two in the low half; an odd last half is zero."""
    halves = np.zeros(numbers.size + numbers.size % 2, dtype=np.uint8)
    halves[: numbers.size] = numbers.view(np.uint8) & 0x0F
    return (halves[0::2] | (halves[1::2] << 4)).tobytes()


def _from_nibbles(
    body: np.ndarray[tuple[int], np.dtype[np.uint8]], size: int
) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    halves = np.empty(2 * body.size, dtype=np.uint8)
    halves[0::2], halves[1::2] = body & 0x0F, body >> 4
    if halves[size:].any():
        raise ConfideError("wire.malformed", "The last half byte is not zero.")
    return ((halves[:size] ^ 8).astype(np.int8) - 8).astype(np.int8)
