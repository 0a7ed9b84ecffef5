"""A resident as a process of its own, over the text of one of the tests' holders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from confide.client.app import relay
from confide.client.guard.policy import Policy
from confide.client.site import unix_socket
from confide.client.site.budget import make_ledger
from confide.client.site.join import status
from confide.common.errors import ConfideError
from confide.common.wire.messages import Reply, Request
from tests import tiny
from tests.client.conftest import Place
from tests.client.marked import move_to_marked_folder
from tests.deployment.conftest import ROOT, wait_for


class House:
    """Its text is full of markers; ``received`` is every byte that came through the socket."""

    def __init__(self, folder: Path, model: Path, **settings: Any) -> None:
        policy = Policy(max_delta=1e-2, base_models=(str(model),), allow_unprotected=True)
        self.place = Place(folder, model, policy, round__timeout=240.0, **settings)
        move_to_marked_folder(self.place)
        self.policy = folder / "policy.toml"
        self.policy.write_text(
            f'max-delta = 0.01\nmax-epsilon = 1000\nbase-models = ["{model}"]\n'
            f"allow-unprotected = true\n{tiny.DATA_TABLE}"
        )
        make_ledger(self.place.site.ledger)
        self.socket = folder / "run" / "socket"
        self.log = folder / "resident.log"
        self.received = b""
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *options: str) -> list[str]:
        words = {
            "--name": "ward",
            "--data": self.place.data,
            "--policy": self.policy,
            "--ledger": self.place.site.ledger,
            "--socket": self.socket,
        }
        pairs = [str(word) for pair in words.items() for word in pair]
        return [sys.executable, "-P", "-m", "confide", "client", "resident", *pairs, *options]

    def start(self, *options: str) -> dict[str, Any]:
        """Start it, and wait until it is well."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*options),
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return dict(wait_for(self._well, 100))

    def _well(self) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return status(self.socket)
        except ConfideError:
            return None

    def ask(self, task: Request) -> Reply:
        return relay(task, self.socket)

    def raw(self, data: bytes) -> bytes:
        """Whatever comes back on these bytes."""
        came = b""
        with unix_socket.connect(self.socket, 10) as call:
            try:
                call.sendall(data)
                call.shutdown(1)
                while piece := call.recv(65536):
                    came += piece
            except OSError:
                return came  # hung up on
        return came

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]
