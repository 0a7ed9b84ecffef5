"""A federation on the tiny model whose noise repeats itself, and transports that misbehave."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from confide.client.guard.policy import SIMULATION, Policy
from confide.client.holder import Holder, Site
from confide.common.adapter.encoding import Parcel, decode_vector, unpack
from confide.common.models.loading import LoadedModel
from confide.common.privacy.noise import SecureGenerator
from confide.common.wire.messages import Reply, TrainRequest
from confide.server.run_folder import RunFolder
from confide.simulations.inprocess import InProcessTransport
from tests import tiny

NOISE = 2.0


class SeededHolder(Holder):
    """Draws the same noise for the same round, so that two runs can be compared bit for bit."""

    def handle(self, task: TrainRequest) -> Reply:
        seed = zlib.crc32(f"{self.site.name}/{task.round}".encode())
        self._generator = SecureGenerator.insecure_seeded(seed)
        return super().handle(task)


def holders(data: Path, ledgers: Path, policy: Policy = SIMULATION) -> list[Holder]:
    return [
        SeededHolder(
            Site(
                name=path.stem,
                data=path,
                ledger=ledgers / path.stem / "ledger.sqlite",
                policy=policy,
                new_ledger=True,
            )
        )
        for path in sorted(data.glob("holder-*.jsonl"))
    ]


class Transport(InProcessTransport):
    """Keeps every task; ``spoil`` may change the replies of a round or raise."""

    def __init__(self, members: Sequence[Holder]) -> None:
        super().__init__(members)
        self.tasks: list[TrainRequest] = []
        self.asked: list[list[int]] = []

    def ask(self, nodes: Sequence[int], task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        self.tasks.append(task)
        self.asked.append(list(nodes))
        return self.spoil(task, dict(super().ask(nodes, task, timeout)))

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return replies


def config(model: Path, data: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    """Three holders, two rounds, noise given rather than calibrated, which is quicker."""
    wanted = {"privacy__noise_multiplier": NOISE, "aggregate__optimizer": "momentum"}
    return tiny.config(model, data, out, **{**wanted, **overrides})


def events(folder: RunFolder | Path, kind: str) -> list[dict[str, Any]]:
    path = folder if isinstance(folder, Path) else folder.path
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def received(task: TrainRequest, loaded: LoadedModel) -> Tensor:
    """The whole adapter (N,) that a holder makes of a task."""
    values = decode_vector(task.adapter, "fp32", len(task.adapter) // 4)
    return unpack(loaded.schema, Parcel(task.sent, values, task.rest), loaded.initial)


def only_folder(out: Path) -> Path:
    (path,) = (p for p in out.iterdir() if p.is_dir())
    return path
