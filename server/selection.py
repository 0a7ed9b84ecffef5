"""Which holders take part in a round.

The choice is no secret from the coordinator, which makes it, so it amplifies no holder's privacy
towards the coordinator, and none is claimed (FACTS A9). It follows the public seed, so that a
resumed run chooses as the first one would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def select(nodes: Sequence[int], count: int, *, seed: int, round_number: int) -> list[int]:
    """``count`` of the connected nodes (0: all), uniformly without replacement, in fixed order."""
    ordered = sorted(nodes)
    if not count or count >= len(ordered):
        return ordered
    generator = random.Random(f"{seed}/{round_number}")  # noqa: S311 - the choice is public
    return sorted(generator.sample(ordered, count))
