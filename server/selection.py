"""Which holders take part in a round.

The choice is no secret from the coordinator, which makes it, so it amplifies no holder's privacy
towards the coordinator, and none is claimed (FACTS A9). To whoever sees the final adapter alone it
is one: it is uniform, anew in each round, and follows a secret key that lies beside the checkpoint,
so that a resumed run chooses as the first one would have. A choice by the public ``run.seed`` could
be worked out by anybody.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence

from ..common.errors import ConfideError
from .run_folder import RunFolder

KEY = "checkpoint/selection.key"
_KEY_BYTES = 32


def select(nodes: Sequence[int], count: int, *, key: bytes, round_number: int) -> list[int]:
    """``count`` of the connected nodes (0: all), in fixed order.

    Those with the smallest HMAC-SHA256 of round and node under ``key``: to whoever does not have
    the key a uniform draw without replacement, independent of all other rounds.
    """
    ordered = sorted(nodes)
    if not count or count >= len(ordered):
        return ordered

    def lot(node: int) -> bytes:
        return hmac.digest(key, f"{round_number}/{node}".encode(), "sha256")

    return sorted(sorted(ordered, key=lot)[:count])


def selection_key(folder: RunFolder) -> bytes:
    """The run's key: drawn once from the operating system, readable by its owner alone.

    Raises:
        ConfideError: ``run.resume`` when it is there and damaged.
    """
    path = folder.path / KEY
    if not path.is_file():
        folder.write(KEY, secrets.token_bytes(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfideError(
            "run.resume", f"{path} is no key of {_KEY_BYTES} bytes.", "Start a new run."
        )
    return key
