"""A holder's part in secure sums: its keys, what it contributes, and what it opens.

The keys lie in a folder beside the ledger that its own user alone may read, and never leave it:

    identity        the signing key, made by `confide client enrol`; in a simulation, when asked
    runs/RUN.key    the sealing key of a run, made when the run asks who can take part
    runs/RUN.opened which file the key is, and the sums that it opened over which contributions

A contribution is hidden in this process before anything is released; an opening answers once for a
call, over one set of contributions, which ledger and key folder have booked before the answer
exists.

What a killed or restored opener may do. The key of a run is durable: an opener that was killed
answers after its restart as it would have before, over the set that was booked, with the same
bytes; otherwise every round under way would be lost with the budget of all who contributed. The key
is destroyed once no call of its run can be open: a day after the longest that a round may wait
since it was last used. An older ledger that is put back finds the sums booked beside the key
(``sum.opened``). A key that is put back from a backup is another file, by its inode and the time of
its last change, which no copy keeps, and is destroyed unread (``sum.no-key``). What nothing here
can notice is a whole machine put back, its file system with all inodes: it may open one call a
second time, if the coordinator asks it to and kept the first answer. Keep the folder out of
backups, and remove ``runs/`` after a machine was put back.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..common.errors import ConfideError
from ..common.masking.keys import Roster
from ..common.masking.openers import (
    Call,
    Card,
    contribute,
    openable,
    openers_from_bytes,
    statements_from_bytes,
)
from ..common.masking.ring import CHECKS, to_words
from ..common.privacy.ledger import Ledger, already_opened
from ..common.settings import Settings
from ..common.wire.messages import Opening, OpenRequest, TrainRequest
from .guard.policy import Policy, review_openers, review_roster, review_sizes
from .guard.release import Outgoing
from .guard.sum_keys import SumKeys

RING = "ring32"  # the encoding of a masked update


class SumMember:
    """A holder as a member of secure sums: every check by its policy, then the cryptography."""

    def __init__(self, keys: SumKeys, name: str, policy: Policy) -> None:
        self._keys, self._name, self._policy = keys, name, policy

    def card(self, request: TrainRequest, settings: Settings) -> bytes:
        """What this holder says of itself to a run that asks who can take part.

        Raises:
            ConfideError: ``policy.roster``, ``sum.stranger``, ``sum.no-identity``.
        """
        if request.roster or not self._policy.allow_any_roster:
            self._roster(request.roster)
        key = self._keys.of_run(request.run, settings.round.timeout)
        return Card.of(self._keys.identity, request.run, key).to_bytes()

    def call(self, request: TrainRequest, settings: Settings, values: int) -> Call:
        """The sum that a request asks for, checked: nothing is contributed to any other.

        Raises:
            ConfideError: ``policy.roster``, ``policy.openers`` or ``sum.`` and what is wrong.
        """
        roster = self._roster(request.roster)
        call = Call(
            run=request.run,
            request=request.hash,
            roster=roster,
            openers=openers_from_bytes(request.openers),
            least=settings.round.min_holders,
            colluding=settings.privacy.colluding,
            size=values + CHECKS,
        )
        call.check()
        review_openers([one.name for one in call.openers], self._name, self._policy)
        return call

    def hide(self, call: Call, values: Tensor, step: float, schema: str = "") -> Outgoing:
        """The values (n,) in float64, with this holder's share of noise, as they leave: rounded to
        multiples of ``step`` and masked.

        Raises:
            ConfideError: ``sum.not-finite``, ``sum.range``.
        """
        words = to_words(values.numpy().astype(np.float64), step)
        statement, masked = contribute(self._keys.identity, call, words)
        return Outgoing(values=masked, encoding=RING, schema=schema, statement=statement.to_bytes())

    def open(self, request: OpenRequest, ledger: Ledger) -> Opening:
        """Answer for a sum: once, over one set of contributions, which is booked first.

        Raises:
            ConfideError: ``policy.`` and the limit, ``sum.`` and what is wrong, or the ledger's.
        """
        roster = self._roster(request.roster)
        review_sizes(request.least, request.colluding, self._policy)
        call = Call(
            run=request.run,
            request=request.task_hash,
            roster=roster,
            openers=openers_from_bytes(request.openers),
            least=request.least,
            colluding=request.colluding,
            size=request.size,
        )
        call.check()
        statements = statements_from_bytes(request.statements, len(call.openers))
        chosen = openable(self._name, self._keys.of_run(call.run), call, statements)
        known = self._keys.opened(call.run)
        if known.get(call.digest, chosen.digest) != chosen.digest:  # the ledger may be an older one
            raise already_opened()
        ledger.open_sum(call.digest, chosen.digest)
        self._keys.book(call.run, call.digest, chosen.digest)
        return Opening(holder=self._name, task_hash=request.task_hash, values=chosen.answer())

    def _roster(self, data: bytes) -> Roster:
        """The run's roster, by the policy the right one, with this holder in it."""
        if not data:
            review_roster("", self._policy)
        roster = Roster.from_bytes(data)
        review_roster(roster.digest, self._policy)
        if roster.member(self._name) != self._keys.identity.member:
            raise ConfideError(
                "sum.stranger",
                f"The roster has another key of {self._name} than this holder's.",
                "Give the coordinator the request that `confide client enrol` wrote, and compare"
                " the new roster.",
            )
        return roster
