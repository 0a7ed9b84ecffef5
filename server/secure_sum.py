"""Secure sums at the coordinator: who opens, what is opened, and what it adds up to.

A round has two trips. A request names the roster and the openers; what comes back is masked. Then
each opener is shown, in the very same bytes, who contributed, and answers once. The coordinator
learns the sum over these contributors and nothing of any part of it, whatever it does
(``common.masking.openers``); what is written here is how an honest one gets there.

A sum that cannot be opened is lost, and the budget of all who contributed with it: an opener that
was silent, or refused, opens the next ones only if no others are left.

A sum that is wrong names nobody. After three of them in a row the next ones are made without a few
of those that contributed to all: as many as ``round.min-holders`` spares, others each time, until
one is right. Who was left out of that one stays out. It finds one holder that always breaks the
sum, not several at once, and not one that breaks it now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfideError
from ..common.masking.keys import Roster
from ..common.masking.openers import Call, Card, Opener, combine
from ..common.masking.ring import CHECKS, from_words
from ..common.settings import Settings
from ..common.wire.messages import Opening, OpenRequest, Refusal, Reply, TrainRequest
from .checkpoint import MOST_ABANDONED, SumTroubles
from .gate import Accepted, refusal_code
from .senders import Senders
from .transport import Transport

logger = logging.getLogger("confide.server")

SUM = "sum"  # stands for a holder where only the sum of all is known
SUSPECT = "sum.suspect"  # left out, to see whether a sum is right without it
TOO_LONG = "gate.norm"
_SEALED = "sum.sealed"  # an opener's word that a contributor's seed does not open


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What became of a sum.

    Attributes:
        total: (n,) over all contributors, in the unit of the step; None where it was not opened.
        openers: who was asked to open it.
        code: why it was not opened, where nobody can be named; empty otherwise.
        left_out: rows of the openers that did not answer, and why.
        of: who contributed.
    """

    total: NDArray[np.float64] | None
    openers: tuple[str, ...]
    code: str = ""
    left_out: tuple[dict[str, str], ...] = ()
    of: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether a contributor may have spoiled it."""
        return bool(self.code) or any(row["code"] == _SEALED for row in self.left_out)


class SecureSum:
    """The secure sums of one run.

    Args:
        roster: the members that the administrators compared; None in a simulation, where the cards
            that come in make it.

    Attributes:
        troubles: what went wrong; the checkpoint keeps it.
    """

    def __init__(
        self, settings: Settings, transport: Transport, senders: Senders, roster: Roster | None
    ) -> None:
        self._settings, self._transport, self._senders = settings, transport, senders
        self._given, self._roster = roster, roster
        self._openers: dict[int, Opener] = {}
        self.troubles = SumTroubles()

    def asking(self, request: TrainRequest) -> TrainRequest:
        """A request that asks who can take part, with the roster where one was compared."""
        if self._given is None:
            return request
        return replace(request, roster=self._given.to_bytes())

    def meet(self, cards: Mapping[int, bytes], run: str) -> None:
        """Take in what the holders said of their keys for the run. A card that does not fit the
        roster, or is none, makes no opener."""
        met = dict[int, Card]()
        for node, data in sorted(cards.items()):
            try:
                met[node] = Card.from_bytes(data, run)
            except ConfideError as error:
                logger.warning("%s: %s", self._senders.name_of(node), error.code)
        if self._given is None:
            self._roster = Roster({one.member.name: one.member for one in met.values()}.values())
        known = set(self._roster.members) if self._roster else set()
        self._openers = {node: one.opener for node, one in met.items() if one.member in known}

    def call(self, request: TrainRequest, nodes: Iterable[int], values: int) -> Call:
        """The sum that a request is to ask of ``nodes``, with openers among them. What the request
        says of it is ``named``.

        Raises:
            ConfideError: ``sum.too-few-openers``.
        """
        wanted = self._settings.privacy.colluding + 1
        there = [node for node in nodes if node in self._openers]
        chosen = sorted(there, key=self._preference)[:wanted]
        if len(chosen) < wanted or self._roster is None:
            raise ConfideError(
                "sum.too-few-openers",
                f"{len(chosen)} holders can open a sum; privacy.colluding ="
                f" {self._settings.privacy.colluding} needs {wanted}.",
                "Wait for the others, or lower privacy.colluding.",
            )
        openers = tuple(self._openers[node] for node in chosen)
        return Call(
            run=request.run,
            request=named(request, self._roster, openers).hash,
            roster=self._roster,
            openers=openers,
            least=self._settings.round.min_holders,
            colluding=self._settings.privacy.colluding,
            size=values + CHECKS,
        )

    def _preference(self, node: int) -> tuple[int, int, str]:
        """Who failed least; then whom ``privacy.openers`` names, in its order. Nodes may have other
        numbers after a restart, names do not."""
        preferred = self._settings.privacy.opener_names
        name = self._openers[node].name
        place = preferred.index(name) if name in preferred else len(preferred)
        return self.troubles.failed.get(name, 0), place, name

    def open(self, call: Call, accepted: Mapping[str, Accepted], step: float) -> Opened:
        """Have a sum opened over all that was ``accepted``, and add it up."""
        statements = [one.statement for one in accepted.values() if one.statement]
        names = tuple(one.name for one in call.openers)
        if len(statements) < call.least:
            return Opened(total=None, openers=names)
        request = OpenRequest(
            run=call.run,
            task_hash=call.request,
            least=call.least,
            colluding=call.colluding,
            size=call.size,
            roster=call.roster.to_bytes(),
            openers=b"".join(one.to_bytes() for one in call.openers),
            statements=b"".join(one.to_bytes() for one in statements),
        )
        nodes = {node: one.name for node, one in self._openers.items() if one.name in names}
        replies = self._transport.ask(sorted(nodes), request, self._settings.round.timeout)
        opened, silent = self._answers(replies, nodes, call)
        of = tuple(accepted)
        if silent:
            return Opened(total=None, openers=names, left_out=silent, of=of)
        try:
            words = combine(call, (one.masked for one in accepted.values()), opened)
            total = from_words(words, step, len(accepted))
        except ConfideError as error:
            logger.warning("the sum of %d holders: %s", len(accepted), error.code)
            return Opened(total=None, openers=names, code=error.code, of=of)
        return Opened(total=total, openers=names, of=of)

    def spared(self, nodes: Iterable[int]) -> dict[int, str]:
        """Whom of ``nodes`` the next sum is made without, and their names: suspects of sums that
        were wrong, as many as can be spared."""
        there = {node: self._openers[node].name for node in nodes if node in self._openers}
        spare = max(0, len(there) - self._settings.round.min_holders)
        if self.troubles.broken < MOST_ABANDONED:
            return {}
        suspects = {name: node for node, name in there.items() if name in self.troubles.suspects}
        return {suspects[name]: name for name in sorted(suspects)[:spare]}

    def learn(self, opened: Opened) -> None:
        """Who may have spoiled a sum, after one more."""
        known, of = self.troubles, set(opened.of)
        if opened.is_wrong:
            before = set(known.suspects) if known.broken else of
            known.broken += 1
            known.suspects = sorted(before & of)
        elif opened.total is not None:
            known.suspects = sorted(set(known.suspects) - of)
            known.broken = known.broken if known.suspects else 0

    def _answers(
        self, replies: Mapping[int, Reply], nodes: Mapping[int, str], call: Call
    ) -> tuple[dict[str, bytes], tuple[dict[str, str], ...]]:
        """The keystreams of the openers that answered, and a row for each that did not."""
        opened, rows = dict[str, bytes](), list[dict[str, str]]()
        for node, name in sorted(nodes.items()):
            reply = replies.get(node)
            right = isinstance(reply, Opening) and reply.task_hash == call.request
            if right and isinstance(reply, Opening) and reply.holder == name:
                opened[name] = reply.values
                continue
            self.troubles.failed[name] = self.troubles.failed.get(name, 0) + 1
            code = refusal_code(reply) if isinstance(reply, Refusal) else "gate.task"
            rows.append({"holder": name, "code": code})
        return opened, tuple(rows)


def named(request: TrainRequest, roster: Roster, openers: Sequence[Opener]) -> TrainRequest:
    """A request with what it says of its secure sum."""
    return replace(
        request, roster=roster.to_bytes(), openers=b"".join(one.to_bytes() for one in openers)
    )
