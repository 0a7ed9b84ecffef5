"""A contributor to secure sums that is killed: the real holder, behind masks, over a tiny model.

``python -m tests.crash.contributor FOLDER MODEL`` reads lines ``ROUND PLACE`` and forks for each a
holder that answers the request of that round and kills itself with SIGKILL when it comes to PLACE,
if it does. What has left is a line on standard output: the round, and the hash of the reply or the
code of a refusal. Each ends in a line ``over``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confide.client.guard.policy import SIMULATION
from confide.client.guard.sum_keys import SumKeys
from confide.client.holder import Holder, Site
from confide.client.opening import SumMember
from confide.client.training.trainer import Trainer
from confide.common.machine.paths import keys_beside
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import (
    Reply,
    TrainRequest,
    Update,
    reply_to_bytes,
    request_from_bytes,
    request_to_bytes,
)
from tests.circle import SHARED, Circle
from tests.client.conftest import Place

NAME, RUN, ROUNDS = "holder-00", "run-1", 100
PLACES = (
    "before the charge",
    "after the charge",
    "after the training",
    "before it is masked",
    "after it is masked",
    "after it is booked",
    "after it left",
    "nowhere",
)


def prepare(folder: Path, model: Path) -> None:
    """The text, the keys, and a request for each round."""
    changes = {**SHARED, "round__count": ROUNDS, "privacy__noise_multiplier": 100.0}
    place = Place(folder, model, SIMULATION, **changes)
    keys = SumKeys(keys_beside(place.site.ledger), NAME, create=True)
    circle = Circle(keys.identity.member)
    one = circle.asking(place.task(run=RUN))
    for number in range(1, ROUNDS + 1):
        task = dataclasses.replace(one, round=number)
        (folder / f"{number}.request").write_bytes(request_to_bytes(task))


def site(folder: Path) -> Site:
    own = folder / "own"
    return Site(
        name=NAME,
        data=own / "text.jsonl",
        ledger=own / "ledger.sqlite",
        policy=SIMULATION,
        new_ledger=True,
    )


def die_at(place: str) -> None:
    """Let this process kill itself there."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, *, before: bool) -> None:
        real = getattr(owner, name)

        def dying(*arguments: Any, **named: Any) -> Any:
            if before:
                die()
            done = real(*arguments, **named)
            die()
            return done

        setattr(owner, name, dying)

    at: dict[str, Callable[[], None]] = {
        PLACES[0]: lambda: around(Ledger, "charge", before=True),
        PLACES[1]: lambda: around(Ledger, "charge", before=False),
        PLACES[2]: lambda: around(Trainer, "train", before=False),
        PLACES[3]: lambda: around(SumMember, "hide", before=True),
        PLACES[4]: lambda: around(SumMember, "hide", before=False),
        PLACES[5]: lambda: around(Ledger, "release", before=False),
    }
    at.get(place, lambda: None)()


def told(reply: Reply) -> str:
    """The hash of an update, or the code of a refusal."""
    if isinstance(reply, Update):
        return hashlib.sha256(reply_to_bytes(reply)).hexdigest()
    return str(getattr(reply, "code", type(reply).__name__))


def answer(folder: Path, number: str, place: str) -> None:
    """In a process of its own: it ends here, one way or the other."""
    die_at(place)
    request = request_from_bytes((folder / f"{number}.request").read_bytes())
    assert isinstance(request, TrainRequest)
    reply = Holder(site(folder)).handle(request)
    os.write(1, f"{number} {told(reply)}\n".encode())
    if place == "after it left":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main(folder: Path) -> None:
    request = request_from_bytes((folder / "1.request").read_bytes())
    assert isinstance(request, TrainRequest)
    os.write(1, b"over\n")
    for line in sys.stdin:
        number, place = line.strip().split(" ", 1)
        child = os.fork()
        if not child:
            answer(folder, number, place)
        os.waitpid(child, 0)
        os.write(1, b"over\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
