"""Randomness that privacy rests on: a ChaCha20 keystream turned into uniform and normal numbers.

Never seeded from a run's settings: whoever knows the seed can subtract the noise. The key comes
from the operating system, is replaced after every call by fresh keystream (so that a later look
into memory does not give back earlier noise) and never leaves the object, which can be neither
copied nor pickled. A forked child takes a new key of its own.

ChaCha20 as in RFC 8439, Box and Muller 1958 in float64. Two limits, for honesty: a draw never
exceeds 8.6 standard deviations (the tail beyond has mass 1e-17), and the spacing of floating
point numbers is not hidden (Mironov 2012); rounding the noisy sum to float32 blurs it.
"""

from __future__ import annotations

import math
import os
import secrets
from hashlib import sha256
from threading import Lock
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from ..errors import ConfideError

_KEY_BYTES = 32


class SecureGenerator:
    """Independent draws that nobody can predict; safe to share between threads.

    | call | n = 0 | range |
    |---|---|---|
    | ``uniform(n)`` | empty | the open interval (0, 1), multiples of 2^-53 |
    | ``normal(n)`` | empty | finite, mean 0, variance 1 |
    | ``bernoulli(n, q)`` | empty | True with probability q; q = 1 always, q = 0 never |
    | ``subset(n, k)`` | empty | k of n indices, ascending, every subset as likely; k <= n |
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._process = os.getpid()
        self._lock = Lock()

    @classmethod
    def insecure_seeded(cls, seed: int) -> SecureGenerator:
        """Repeatable draws for tests. What they protect is protected from nobody."""
        generator = cls()
        generator._key = sha256(f"confide insecure seed {seed}".encode()).digest()
        return generator

    def uniform(self, n: int) -> NDArray[np.float64]:
        """``(n,)`` uniform numbers, never 0 and never 1."""
        return _open_interval(self._words(n))

    def normal(self, n: int) -> NDArray[np.float64]:
        """``(n,)`` standard normal numbers."""
        pairs = (n + 1) // 2
        words = self._words(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(_open_interval(words[:pairs])))  # (pairs,)
        angle = (2.0 * math.pi) * _open_interval(words[pairs:])  # (pairs,)
        draws = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=draws[:pairs])
        np.multiply(radius, np.sin(angle), out=draws[pairs:])
        return draws[:n]

    def bernoulli(self, n: int, q: float) -> NDArray[np.bool_]:
        """``(n,)`` independent coins."""
        if not 0 <= q <= 1:  # nan included
            raise ConfideError("privacy.rate", f"probability = {q!r} is outside [0, 1].")
        return self.uniform(n) < q

    def subset(self, n: int, k: int) -> NDArray[np.int64]:
        """``(k,)`` different indices below ``n``, ascending; each of the subsets of that size is
        as likely as any other. (The k smallest of n random words; the chance that two words are
        equal, which alone could favour an index, is below n^2 / 2^65.)"""
        if not 0 <= k <= n:
            raise ConfideError(
                "privacy.subset", f"Cannot draw {k!r} of {n!r} indices: k must be between 0 and n."
            )
        order = np.argsort(self._words(n), kind="stable")
        return np.sort(order[:k]).astype(np.int64)

    def _words(self, n: int) -> NDArray[np.uint64]:
        """``(n,)`` words of keystream, each given out once."""
        with self._lock:
            if os.getpid() != self._process:  # a fork: the parent goes on with the old key
                self._key, self._process = secrets.token_bytes(_KEY_BYTES), os.getpid()
            cipher = Cipher(ChaCha20(self._key, nonce=bytes(16)), mode=None).encryptor()
            self._key = cipher.update(bytes(_KEY_BYTES))
            return np.frombuffer(cipher.update(bytes(8 * n)), dtype="<u8").astype(np.uint64)

    def __reduce__(self) -> NoReturn:
        raise ConfideError(
            "privacy.generator",
            "A secure generator cannot be copied: both copies would draw the same noise.",
            "Make a new one where it is needed.",
        )


def _open_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Odd multiples of 2^-53. With one bit more the largest would round to 1.0."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
