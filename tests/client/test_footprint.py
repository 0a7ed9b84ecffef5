"""The memory of a physical batch: what is foreseen holds what is kept, and batches keep to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client.training import trainer as trainer_module
from confide.client.training.per_example import PerExample
from confide.client.training.trainer import Trainer, measure
from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, Footprint, Room, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import Settings, from_flat
from confide.common.tasks import Example, task_for
from tests import tiny
from tests.client.test_private_step import Bench, plan

LONGEST = 32


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


def made(folder: Path, **changes: Any) -> tuple[LoadedModel, Settings]:
    settings = from_flat(tiny.config(folder, folder, folder, **changes))
    return load_model(settings), settings


def kept(loaded: LoadedModel, settings: Settings, examples: int, tokens: int) -> float:
    """Bytes that autograd keeps of a batch, and those of its gradients."""
    text = EncodedText([Example((1,) * tokens, 0)] * examples, loaded)
    batch, found = text.together(range(examples)), {}
    own = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}
    task, alive = task_for(settings.task), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = task.losses(forward(loaded, task, batch), batch.targets).sum()
    loss.backward()
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    rows: Any = [p.grad_sample for p in trained]  # type: ignore[attr-defined]
    return sum(found.values()) + sum(r.numel() * r.element_size() for r in rows)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("layers", [0, 1])
def test_what_is_foreseen_is_enough_and_not_far_too_much(
    tmp_path: Path, kind: str, layers: int
) -> None:
    pooling = tiny.pooling_of(kind)
    loaded, settings = made(
        tiny.save_model(tmp_path, kind), lora__layers=layers, task__pooling=pooling
    )
    engine = PerExample(loaded.model)
    foreseen = measure(engine, loaded)
    assert foreseen.example == sum(4 * p.numel() for p in engine.trained)
    for examples, tokens in [(1, LONGEST), (7, LONGEST), (4, 5), (20, 9)]:
        needed = kept(loaded, settings, examples, tokens)
        engine.forget()
        assert needed <= foreseen.of(examples, tokens) <= 3 * needed


@pytest.mark.parametrize("task", [t for t in tiny.TASKS if t not in ("classification", "chat")])
def test_what_is_foreseen_is_enough_for_every_task(tmp_path: Path, task: str) -> None:
    folder = tiny.save_task_model(tmp_path, task)
    loaded, _ = made(folder, **tiny.TASKS[task], lora__layers=0)
    foreseen = measure(PerExample(loaded.model), loaded)
    generator = torch.Generator().manual_seed(0)
    for lengths in [(loaded.max_length,), (loaded.max_length,) * 5, (5, 9, 7), (6,) * 12]:
        examples = loaded.task.made_up(lengths, len(loaded.tokenizer), generator, loaded)
        text, found, alive = EncodedText(examples, loaded), {}, []
        own = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}

        def note(tensor: torch.Tensor, found: Any = found, alive: Any = alive) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:  # noqa: B023
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                alive.append(tensor)
            return tensor

        loaded.model.train()
        batch = text.together(range(len(lengths)))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets).sum()
        needed = sum(found.values()) + foreseen.example * len(lengths)
        longest = max(text._lengths)
        assert needed <= foreseen.of(len(lengths), longest), lengths


def test_batches_are_cut_to_the_memory_that_is_given(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path)
    text, footprint = bench.text(30), Footprint(example=1000.0, token=100.0)
    room = Room(memory=9000.0, footprint=footprint)
    sizes = [batch.attention_mask.shape for batch in text.batches(room=room)]
    assert sum(examples for examples, _ in sizes) == 30
    assert 1 < max(examples for examples, _ in sizes) < 10
    assert all(footprint.of(*size) <= room.memory for size in sizes)


def test_less_memory_gives_more_batches_and_the_same_change(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_model, tmp_path, train__memory=1)
    text, rooms = bench.text(24), []

    def noted(**given: Any) -> Room:
        rooms.append(Room(**given))
        return rooms[-1]

    monkeypatch.setattr(trainer_module, "Room", noted)
    whole = bench.change(text, plan())
    assert rooms[-1].memory == 2**20
    monkeypatch.setattr(trainer_module, "_MIB", 30_000)
    cut = bench.change(text, plan())
    assert len(list(text.batches(room=rooms[-1]))) > len(list(text.batches(room=rooms[0])))
    assert (cut - whole).norm() <= 1e-6 * whole.norm()


def test_a_record_that_does_not_fit_is_refused_by_the_allowed_length_before_training(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, settings = made(tiny_model, train__memory=1)
    Trainer(loaded).prepare(settings)
    monkeypatch.setattr(trainer_module, "_MIB", 100)
    with pytest.raises(ConfideError, match=r"train\.memory") as raised:
        Trainer(loaded).prepare(settings)
    assert f"A record of {LONGEST} tokens" in raised.value.message
    assert "train.max-length" in raised.value.hint


GROWTH = """
import gc
from pathlib import Path
import torch
from confide.client.training.trainer import Trainer
from confide.common.models.batches import EncodedText
from confide.common.models.loading import load_model
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import from_flat
from confide.common.tasks import Example
from confide.simulations.benchmarks.step import _begin, _highest
from confide.common.adapter.schema import get_adapter
from confide.common.adapter.schema import flatten
from tests.client.test_private_step import plan

torch.set_num_threads(1)
def of(memory):
    return from_flat({
        "model.name": "sentence-transformers/all-MiniLM-L6-v2", "task.labels": "no,yes",
        "lora.rank": 4, "round.mode": "gradient", "train.memory": memory,
    })
loaded = load_model(of(64))
trainer, schema = Trainer(loaded), loaded.schema
adapter = flatten(get_adapter(loaded.model), schema.shapes)
def run(records, tokens, memory):
    text = EncodedText([Example((2000,) * tokens, 0)] * records, loaded)
    generator = SecureGenerator.insecure_seeded(0)
    trainer.train(adapter, text, of(memory), plan(), generator)
run(2, 8, 64)
for memory in (64, 256):
    gc.collect()
    before = _begin("cpu")
    run(32, 128, memory)
    print(_highest("cpu") - before)
"""


def test_the_resident_memory_of_training_stays_within_what_is_given(real_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # freed blocks are given back
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    small, large = (int(line) / 2**20 for line in done.stdout.split())
    assert small <= 64
    assert large <= 256
    assert small < large / 2, "the batch is large enough to fill either"
