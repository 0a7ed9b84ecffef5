"""The holder at the resident's desk: a task's bytes in, a reply out, under today's policy.

The policy is read anew for each task, as where Flower runs the holder itself: what an
administrator changes counts from the next task on. Model and tokens stay warm meanwhile.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.errors import ConfideError
from ..common.installed import code_hash
from ..common.models import models_in_memory
from ..common.wire import Refusal, Reply, task_from_bytes
from .budget import left_of, read_spending
from .holder import Holder, Site
from .policy_file import load_policy
from .resident_main import Residence
from .scrub import code_of, quiet
from .taken import check_taken


class Desk:
    """Answers tasks for one holder, one at a time."""

    def __init__(self, residence: Residence) -> None:
        self._residence = residence
        self._holder = Holder(self._site())

    def answer(self, data: bytes) -> Reply:
        """The reply to a task's bytes; whatever is wrong with them is a refusal's code."""
        try:
            with quiet():
                task = task_from_bytes(data)
                site = self._site()
                if site != self._holder.site:
                    self._holder = Holder(site)
        except BaseException as error:  # noqa: BLE001 - its text must not leave, whatever it is
            return Refusal(holder=self._residence.name, task_hash="", code=code_of(error))
        return self._holder.handle(task)

    def report(self) -> dict[str, Any]:
        """What the status says of this holder, by what the coordinator may know of it, too (it gets
        a receipt with each update), and what is for this machine's eyes alone."""
        residence = self._residence
        return {
            "version": __version__,
            "name": residence.name,
            "model_loaded": models_in_memory() > 0,
            "ledger": _spent(residence.ledger),
        }

    def own_report(self) -> dict[str, Any]:
        """For root and the resident's own user: what is left, where the files lie, whether the text
        was changed, and how many records the newest task could not use."""
        residence = self._residence
        return {
            "code": code_hash(),
            "left": _left(residence),
            "text": _text(residence),
            "unused_records": self._holder.unused,
            "ledger_file": str(residence.ledger.resolve()),
            "policy_file": str(residence.policy.resolve()),
            "data_file": str(residence.data.resolve()),
        }

    def _site(self) -> Site:
        residence = self._residence
        policy = load_policy(residence.policy)
        return Site(
            name=residence.name,
            data=residence.data,
            ledger=residence.ledger,
            policy=policy,
            bundle=code_hash(),
        )


def _spent(path: Path) -> dict[str, Any]:
    """Rounds and epsilon that the ledger has booked; epsilon is None where it is infinite."""
    try:
        spending = read_spending(path)
        delta = spending.newest_delta
        epsilon = spending.epsilon(delta) if delta else 0.0
    except ConfideError as error:
        return {"problem": error.code}
    return {
        "charged": spending.count("reserved"),
        "released": spending.count("released"),
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": delta,
    }


def _text(residence: Residence) -> str:
    """Whether the text is as it was taken in."""
    try:
        check_taken(residence.data, residence.ledger)
    except ConfideError as error:
        return error.code
    return "as it was taken in"


def _left(residence: Residence) -> list[str]:
    """What is left of the budget, in words."""
    try:
        policy = load_policy(residence.policy)
        return [left.in_words() for left in left_of(read_spending(residence.ledger), policy)]
    except ConfideError as error:
        return [error.code]
