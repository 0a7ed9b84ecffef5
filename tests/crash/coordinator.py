"""A coordinator at work, to be killed: the product's run over holders of its own process.

``python -m tests.crash.coordinator CONFIG DATA LEDGERS PLACE ROUND``, where CONFIG is a file of the
flat settings as JSON. It kills itself with SIGKILL in that round at PLACE; the holders have then
done what they were asked, and their ledgers are on disk. Their noise repeats itself, so that two
runs can be compared bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confide.common.wire.messages import Reply, TrainRequest
from confide.server import rounds
from confide.server.checkpoint import FILE, Checkpoint
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests.server.federated import Transport, holders

# Before anybody is asked; when all have answered; before the checkpoint takes the place of the one
# before; when it has.
PLACES = ("asked", "answered", "written", "saved")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(Transport):
    """Kills the process in a round, before the holders are asked or after."""

    def __init__(self, members: Any, place: str, at: int) -> None:
        super().__init__(members)
        self.place, self.at = place, at

    def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        if (self.place, self.at) == ("asked", task.round):
            die()
        return super().ask(nodes, task, timeout)

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if (self.place, self.at) == ("answered", task.round):
            die()
        return replies


def die_at_the_checkpoint(place: str, at: int) -> None:
    """From now on the checkpoint of round ``at`` is the last thing that happens."""
    save, replace = rounds.save_checkpoint, os.replace

    def dying_replace(new: Any, old: Any) -> None:
        if str(old).endswith(Path(FILE).name):
            die()
        replace(new, old)

    def dying_save(folder: RunFolder, state: Checkpoint) -> None:
        if state.round == at and place == "written":
            vars(os)["replace"] = dying_replace
        save(folder, state)
        if state.round == at:
            die()

    vars(rounds)["save_checkpoint"] = dying_save


def main(config: str, data: str, ledgers: str, place: str, at: str) -> None:
    flat = json.loads(Path(config).read_text(encoding="utf-8"))
    if place in ("written", "saved"):
        die_at_the_checkpoint(place, int(at))
    run(flat, Dying(holders(Path(data), Path(ledgers)), place, int(at)))


if __name__ == "__main__":
    main(*sys.argv[1:])
