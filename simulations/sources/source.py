"""What a source of public text is: files of assets, and the function that reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ...common.text.readers import Record


class Split(NamedTuple):
    """Records to train on, and a source's own test records; none where it has no such split."""

    training: list[Record]
    test: list[Record]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Text for a simulation.

    Attributes:
        assets: what must have been fetched; ``read`` takes their folders in this order.
        training, test: how many records there are after cleaning; 0 where nobody has counted.
    """

    assets: tuple[str, ...]
    read: Callable[..., Split]
    training: int = 0
    test: int = 0
