"""Vectors as whole numbers modulo 2^32, and the keystreams that hide them.

A vector is rounded to multiples of a public step and taken modulo 2^32, with check words behind it.
Sums of such vectors are exact, whatever the order: no rounding of floating point can tell who is in
them. A keystream is ChaCha20 (RFC 8439) under a seed of 256 bits that hides one vector and no
other; added modulo 2^32 it makes the vector uniform to whoever lacks the seed.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from ..errors import ConfideError

Words = NDArray[np.uint32]

CHECKS = 4  # words behind a vector: one counts the vectors, three stay 0; 128 bits together
SEED_BYTES = 32
WORD_BYTES = 4
MOST_WORDS = 2**27  # what a message may carry
_HALF = 2**31
_PIECE = 1 << 18  # words; a piece of the keystream stays in the processor's cache


def to_words(values: NDArray[np.float64], step: float) -> Words:
    """``(n + CHECKS,)``: the nearest multiples of ``step`` (ties to even), the check words behind.

    Raises:
        ConfideError: ``sum.not-finite``, or ``sum.range`` for a value that alone would wrap; no
            step that ``shares.step_of`` chose lets an honest one come near.
    """
    if not np.isfinite(values).all():
        raise ConfideError("sum.not-finite", "A sum contains NaN or infinity; nothing was sent.")
    whole = np.rint(values / step)
    if len(whole) and float(np.abs(whole).max()) >= _HALF:
        raise ConfideError("sum.range", f"A value is {_HALF} steps of {step:g} or more.")
    words = np.zeros(len(whole) + CHECKS, dtype=np.int64)
    words[: len(whole)] = whole
    words[len(whole)] = 1
    return words.astype(np.uint32)  # modulo 2^32


def from_words(total: Words, step: float, count: int) -> NDArray[np.float64]:
    """``(n,)``: the sum of ``count`` vectors in the unit of ``step``.

    Raises:
        ConfideError: ``sum.broken`` for a sum in which a mask is left or missing, or that is of
            another number of vectors; unnoticed with a probability of 2^-128.
    """
    if len(total) < CHECKS or total[-CHECKS:].tolist() != [count, 0, 0, 0]:
        raise ConfideError(
            "sum.broken",
            f"What was opened is not the sum of {count} vectors.",
            "A holder sent something else than it should have, and nobody can say which.",
        )
    return total[:-CHECKS].astype(np.int32).astype(np.float64) * step


def add_mask(total: Words, seed: bytes) -> None:
    """Add the keystream of ``seed`` to ``total`` (n,), in place."""
    if len(seed) != SEED_BYTES:
        raise ConfideError("sum.sealed", f"A seed has {len(seed)} bytes, not {SEED_BYTES}.")
    stream = Cipher(ChaCha20(seed, nonce=bytes(16)), mode=None).encryptor()
    most = WORD_BYTES * min(len(total), _PIECE)
    zeros, out = memoryview(bytes(most)), bytearray(most)
    for start in range(0, len(total), _PIECE):
        part = total[start : start + _PIECE]
        stream.update_into(zeros[: WORD_BYTES * len(part)], out)
        part += np.frombuffer(out, dtype="<u4", count=len(part))


def to_bytes(words: Words) -> bytes:
    """Little-endian, whatever the machine."""
    return words.astype("<u4").tobytes()


def from_bytes(data: bytes, count: int) -> Words:
    """Undo ``to_bytes`` for exactly ``count`` words.

    Raises:
        ConfideError: ``wire.size``.
    """
    if len(data) != WORD_BYTES * count:
        raise ConfideError(
            "wire.size", f"The array has {len(data)} bytes; {count} words take {4 * count}."
        )
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)
