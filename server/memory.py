"""What of a run outlives it: its holders' newest receipts. Imports neither torch nor Flower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..common.privacy.ledger import Receipt

Faults = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where receipts outlive a run: ``load`` gives the newest of each holder, ``keep`` takes newer
    ones, with what is to be told of whom (a code by name), of the run that is named first."""

    load: Callable[[], Mapping[str, Receipt]]
    keep: Callable[[str, Mapping[str, Receipt], Faults], None]
