"""An opener of secure sums that is killed: asked for one sum after the other, over sets of
contributions that its coordinator chooses anew each time.

``python -m tests.crash.opener FOLDER SEED PLACE COUNT`` goes on until it is killed, at a named
place of its own the COUNTth time or from outside. It says each answer that left: call and set.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from confide.client.guard.policy import SIMULATION
from confide.client.guard.sum_keys import SumKeys
from confide.client.opening import SumMember
from confide.common.errors import ConfideError
from confide.common.masking.keys import Roster
from confide.common.masking.openers import Call, Opener, contribute
from confide.common.masking.ring import CHECKS, to_words
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import OpenRequest, request_from_bytes, request_to_bytes

PLACES = ("before the ledger", "before the key folder", "before the answer", "after the answer")
NAMES, LEAST, CALLS, RUN = ("a", "b", "c", "d"), 3, 40, "run"
AFTER: list[Callable[[], None]] = []  # an answer has left


def prepare(folder: Path) -> None:
    """The first member's keys, and for each call a request over every set that is large enough."""
    keys = {name: SumKeys(folder / name, name, create=True) for name in NAMES}
    members = {name: own.identity for name, own in keys.items()}
    roster = Roster([one.member for one in members.values()])
    openers = tuple(
        Opener.of(members[name], RUN, keys[name].of_run(RUN, 600.0)) for name in NAMES[:2]
    )
    told = b"".join(one.to_bytes() for one in openers)
    with Ledger.open(folder / "ledger.sqlite"):
        pass
    for number in range(CALLS):
        call = Call(
            run=RUN,
            request=f"{number:064x}",
            roster=roster,
            openers=openers,
            least=LEAST,
            colluding=1,
            size=8 + CHECKS,
        )
        said = [contribute(members[n], call, to_words(np.ones(8), 1.0))[0] for n in NAMES]
        for left_out in (*range(len(NAMES)), None):
            request = OpenRequest(
                run=RUN,
                task_hash=call.request,
                least=LEAST,
                colluding=1,
                size=call.size,
                roster=roster.to_bytes(),
                openers=told,
                statements=b"".join(s.to_bytes() for i, s in enumerate(said) if i != left_out),
            )
            (folder / f"{number}-{left_out}.request").write_bytes(request_to_bytes(request))


def die_at(place: str, count: int) -> None:
    """Arrange for a death at the ``count``th time of a place."""
    left = [count]

    def die() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def first(*arguments: Any) -> Any:
            die()
            return real(*arguments)

        setattr(owner, name, first)

    if place == PLACES[0]:
        before(Ledger, "open_sum")
    elif place == PLACES[1]:
        before(SumKeys, "book")
    elif place == PLACES[2]:
        from confide.common.masking.openers import Openable

        before(Openable, "answer")
    elif place == PLACES[3]:
        AFTER.append(die)


def say(line: str) -> None:
    print(line, flush=True)
    for then in AFTER:
        then()


def work(folder: Path, chance: random.Random) -> None:
    member = SumMember(SumKeys(folder / "a", "a"), "a", SIMULATION)
    while True:
        number, left_out = chance.randrange(CALLS), chance.choice((*range(len(NAMES)), None))
        data = (folder / f"{number}-{left_out}.request").read_bytes()
        request = request_from_bytes(data)
        assert isinstance(request, OpenRequest)
        try:
            with Ledger.open(folder / "ledger.sqlite", create=False) as ledger:
                member.open(request, ledger)
        except ConfideError as error:
            if error.code != "sum.opened":
                raise
        else:
            say(f"{number} {left_out}")


if __name__ == "__main__":
    where, seed, place, count = sys.argv[1:]
    print("ready", flush=True)
    die_at(place, int(count))
    work(Path(where), random.Random(int(seed)))
