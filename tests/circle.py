"""The members of a secure sum around one real holder: a coordinator that plays all the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from confide.common.masking.keys import Identity, Member, Roster, SealingKey
from confide.common.masking.openers import Call, Opener, contribute
from confide.common.masking.ring import CHECKS, to_words
from confide.common.settings import from_flat
from confide.common.wire.messages import OpenRequest, TrainRequest

OTHERS = ("a", "b", "c")
SHARED = {"privacy__trust": "distributed", "privacy__colluding": 1, "round__min_holders": 3}


class Circle:
    """The holder, three others whose keys the coordinator has, and one opener of theirs.

    Attributes:
        own: the holder as an opener of the run, once its card is known.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.others = {name: Identity(name, Identity.new_secret()) for name in OTHERS}
        self.roster = Roster([member, *(one.member for one in self.others.values())])
        self.key = SealingKey(SealingKey.new_secret())
        self.own: Opener | None = None

    def openers(self, run: str) -> tuple[Opener, ...]:
        """The holder where it is one, and others up to two."""
        others = [Opener.of(one, run, self.key) for one in self.others.values()]
        return tuple([self.own, others[0]] if self.own else others[:2])

    def asking(self, task: TrainRequest) -> TrainRequest:
        return dataclasses.replace(
            task, roster=self.roster.to_bytes(), openers=_joined(self.openers(task.run))
        )

    def call(self, task: TrainRequest, size: int) -> Call:
        """The sum of a request that ``asking`` made; ``size`` is of the masked words."""
        settings = from_flat(task.settings)
        return Call(
            run=task.run,
            request=task.hash,
            roster=self.roster,
            openers=self.openers(task.run),
            least=settings.round.min_holders,
            colluding=settings.privacy.colluding,
            size=size,
        )

    def said(self, call: Call) -> dict[str, bytes]:
        """The statements of the three others, of zeros."""
        words = to_words(np.zeros(call.size - CHECKS), 1.0)
        return {
            name: contribute(one, call, words)[0].to_bytes() for name, one in self.others.items()
        }

    def opening(self, call: Call, statements: Sequence[bytes], **changes: Any) -> OpenRequest:
        known: dict[str, Any] = {
            "run": call.run,
            "task_hash": call.request,
            "least": call.least,
            "colluding": call.colluding,
            "size": call.size,
            "roster": self.roster.to_bytes(),
            "openers": _joined(call.openers),
            "statements": b"".join(statements),
        }
        return OpenRequest(**(known | changes))


def _joined(openers: Sequence[Opener]) -> bytes:
    return b"".join(one.to_bytes() for one in openers)
