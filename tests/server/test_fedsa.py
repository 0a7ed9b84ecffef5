"""fedsa in a federation: A and the head are shared, B stays, and one private step covers both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confide.client.training.personal import load_personal, personal_file
from confide.common.adapter.encoding import pack
from confide.common.adapter.schema import flatten, unflatten
from confide.common.errors import ConfideError
from confide.common.methods import method_of
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.wire.messages import Reply, TrainRequest, Update
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests import tiny
from tests.server.federated import Transport, config, events, holders
from tests.server.test_methods import (
    OFF,
    first_adapter,
    last_adapter,
)

STEPS, ROUNDS = 2, 3
SHARED = {
    "aggregate__method": "fedsa",
    "aggregate__optimizer": "none",
    "round__mode": "steps",
    "round__count": ROUNDS,
    "train__steps": STEPS,
}
OPEN = {**OFF, **SHARED}


class Keeping(Transport):
    """Keeps every reply."""

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        self.replies = [*getattr(self, "replies", []), replies]
        return replies


def run_it(
    model: Path, data: Path, out: Path, kind: Any = Keeping, **wanted: Any
) -> tuple[RunFolder, Any, LoadedModel]:
    transport = kind(holders(data, out / "ledgers"))
    flat = config(model, data, out / "runs", **wanted)
    return run(flat, transport), transport, load_model(from_flat(flat))


def own(out: Path, folder: RunFolder, number: int) -> dict[str, torch.Tensor]:
    """The adapter that a holder keeps."""
    ledger = out / "ledgers" / f"holder-{number:02d}" / "ledger.sqlite"
    return dict(load_personal(personal_file(ledger, folder.id)).adapter)


def test_nothing_of_b_leaves(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> None:
    folder, transport, loaded = run_it(tiny_model, tiny_federation, tmp_path, **SHARED)
    schema = method_of("fedsa").sent(loaded.schema)
    assert not any("lora_B" in name for name, _ in schema.trained_shapes)
    (start,) = events(folder, "start")
    assert [4 * n for n in start["model"]["sent"]] == [events(folder, "round")[0]["bytes_up"]]
    for task, replies in zip(transport.tasks, transport.replies, strict=True):
        assert task.schema == schema.digest
        start = first_adapter(task, loaded)
        assert not any(v.any() for n, v in start.items() if "lora_B" in n)
        for number, reply in replies.items():
            assert isinstance(reply, Update)
            change = unflatten(
                torch.from_numpy(np.frombuffer(reply.values, "<f4").copy()), schema.trained_shapes
            )
            if task.round == ROUNDS:
                mine = own(tmp_path, folder, number)
                assert all(torch.equal(mine[n], start[n] + c) for n, c in change.items())
                bytes_of_b = [v.numpy().tobytes() for n, v in mine.items() if "lora_B" in n]
                assert bytes_of_b
                assert not any(b in reply.values for b in bytes_of_b)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_one_private_step_covers_a_b_and_head(
    noise: float, tiny_model: Path, tmp_path: Path
) -> None:
    """Clipped together, and noise on what stays as on what leaves."""
    data = tiny.save_federation(tmp_path / "data", holders=1, records=1)
    clip = 1e-3  # below any gradient's length
    wanted = {**OPEN, "privacy__clip": clip, "train__batch": 1, "train__lr": 1.0}
    wanted |= {"train__steps": 1, "round__count": 3}
    if noise:
        wanted |= {"privacy__trust": "local", "privacy__noise_multiplier": noise}
    kept = []

    class Copying(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            (path,) = (tmp_path / "ledgers").rglob("*.safetensors")
            kept.append(dict(load_personal(path).adapter))
            return replies

    _, transport, loaded = run_it(tiny_model, data, tmp_path, Copying, **wanted)
    start = first_adapter(transport.tasks[2], loaded)
    start |= {name: value for name, value in kept[1].items() if "lora_B" in name}
    moved = {name: (kept[2][name] - value).double().flatten() for name, value in start.items()}
    assert all(part.any() for name, part in moved.items() if "lora_A" not in name)
    length = float(torch.cat(list(moved.values())).norm())
    if not noise:
        assert length == pytest.approx(clip, rel=1e-3)
        return
    for factor in ("lora_A", "lora_B"):
        values = torch.cat([part for name, part in moved.items() if factor in name])
        assert float(values.std()) == pytest.approx(noise * clip, rel=0.5)


def test_a_holder_that_is_restarted_goes_on_with_its_b_bit_for_bit(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Restarting(Keeping):
        def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
            self._holders = [type(h)(h.site) for h in self._holders]
            return super().ask(nodes, task, timeout)

    ends = []
    for kind in (Keeping, Restarting):
        out = tmp_path / kind.__name__
        folder, _, loaded = run_it(tiny_model, tiny_federation, out, kind, **SHARED)
        ends.append({**last_adapter(folder, loaded), **own(out, folder, 1)})
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


def test_a_b_that_the_coordinator_sends_is_not_read_and_another_run_begins_anew(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Sending(Keeping):
        def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
            flat = config(tiny_model, tiny_federation, tmp_path, **SHARED)
            loaded = load_model(from_flat(flat))
            adapter = first_adapter(task, loaded)
            adapter |= {n: torch.ones_like(v) for n, v in adapter.items() if "lora_B" in n}
            sent = flatten(adapter, loaded.schema.shapes).numpy().tobytes()
            every = "1" * len(loaded.schema.shapes)
            rest = pack(loaded.schema, flatten(adapter, loaded.schema.shapes) + 1, adapter).rest
            other = dataclasses.replace(task, adapter=sent, sent=every, rest=rest)
            replies = super().ask(nodes, other, timeout)
            return {
                node: dataclasses.replace(reply, task_hash=task.hash)
                for node, reply in replies.items()
            }

    ledgers, ends = tmp_path / "same", []
    for kind in (Keeping, Sending, Keeping):
        folder, _, loaded = run_it(
            tiny_model, tiny_federation, ledgers, kind, **SHARED, run__name=kind.__name__
        )
        ends.append(last_adapter(folder, loaded))
    for end in ends[1:]:
        assert all(torch.equal(end[name], value) for name, value in ends[0].items())


def test_b_is_kept_before_the_update_leaves_and_after_the_charge(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise ConfideError("release.not-finite", "stopped by the test")

    monkeypatch.setattr("confide.client.holder.release", stop)
    with pytest.raises(ConfideError, match=r"run\.no-round"):
        run_it(tiny_model, tiny_federation, tmp_path, Transport, **SHARED)
    (path,) = (tmp_path / "runs").iterdir()
    assert own(tmp_path, RunFolder(path), 0)


def test_what_is_not_finite_is_not_kept(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(trainer: Any, adapter: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((trainer._loaded.schema.trained_size,), torch.nan)

    monkeypatch.setattr("confide.client.holder.Trainer.train", train)
    with pytest.raises(ConfideError, match=r"release\.not-finite"):
        run_it(tiny_model, tiny_federation, tmp_path, Transport, **SHARED)
    assert not list(tmp_path.rglob("*.safetensors")) or all(
        "personal" not in str(path) for path in tmp_path.rglob("*.safetensors")
    )
