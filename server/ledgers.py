"""What the coordinator remembers of its holders' ledgers: the newest receipt of each, over runs.

No ledger can show by itself that an older copy was put back, or that it was made anew. A receipt
that goes on from the newest one known can: so within a run each must, and at the start of the next
one the memory of a deployed federation says what it has to go on from. Whoever went back is refused
(``gate.ledger``); a ledger of another number may be that of another text, so it is taken and named
(``gate.new-ledger``) in the log, the report and the status. Imports neither torch nor Flower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..common.privacy.ledger import Receipt
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .gate import Accepted

NEW_LEDGER = "gate.new-ledger"
WENT_BACK = "gate.ledger"  # the code of a holder whose ledger lost what it had booked

logger = logging.getLogger("confide.server")

Faults = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where receipts outlive a run: ``load`` gives the newest of each holder, ``keep`` takes newer
    ones, with what is to be told of whom (a code by name), of the run that is named first."""

    load: Callable[[], Mapping[str, Receipt]]
    keep: Callable[[str, Mapping[str, Receipt], Faults], None]


class Ledgers:
    """The ledgers that a run hears of.

    Args:
        memory: of a deployed federation; None where runs share no ledgers, as in a simulation.
    """

    def __init__(self, folder: RunFolder, memory: Memory | None = None) -> None:
        self._folder, self._memory = folder, memory

    def before(self) -> dict[str, Receipt]:
        """What each known holder's ledger must go on from in a new run, in which it has no steps
        so far."""
        known = self._memory.load() if self._memory else {}
        return {name: replace(receipt, steps_run=()) for name, receipt in known.items()}

    def take(
        self,
        number: int,
        accepted: Mapping[str, Accepted],
        left_out: Sequence[Mapping[str, str]],
        receipts: MutableMapping[str, Receipt],
    ) -> None:
        """Make the receipts of a round the newest, and name whose ledger is another than in the run
        before."""
        newer = {holder: update.receipt for holder, update in accepted.items()}
        faults = {row["holder"]: WENT_BACK for row in left_out if row["code"] == WENT_BACK}
        for holder, receipt in newer.items():
            if holder in receipts and receipts[holder].ledger_id != receipt.ledger_id:
                faults[holder] = NEW_LEDGER
                self._folder.event("ledger", round=number, holder=holder, code=NEW_LEDGER)
                logger.warning("round %d: %s has another ledger, %s", number, holder, NEW_LEDGER)
        receipts.update(newer)
        if self._memory and (newer or faults):
            self._memory.keep(self._folder.id, newer, faults)
