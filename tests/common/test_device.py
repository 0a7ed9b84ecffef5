"""Where the model is computed: chosen by the machine, and everything that it meets lies there.

No accelerator is needed: on the device ``meta`` tensors have a place and no values, and most of
torch's functions refuse one that lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.masking_utils

from confide.client.training.per_example import PerExample
from confide.client.training.private_step import PrivateOptimizer
from confide.common.adapter.schema import chosen_device, get_adapter
from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.models.trunk import Trunk
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from tests import tiny

META = torch.device("meta")
# Shortcuts of transformers that ask a mask for its values.
SHORTCUTS = ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa")


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model can be called with tensors that have none, and whose device has no autocast."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for name in SHORTCUTS:
        monkeypatch.setattr(transformers.masking_utils, name, lambda *_, **__: False)


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


@pytest.mark.parametrize(
    ("named", "there", "expected"),
    [
        (None, True, "cpu"),
        ("", True, "cpu"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_is_chosen_by_name_and_by_what_is_there(
    monkeypatch: pytest.MonkeyPatch, named: str | None, there: bool, expected: str
) -> None:
    monkeypatch.delenv("CONFIDE_DEVICE", raising=False)
    if named is not None:
        monkeypatch.setenv("CONFIDE_DEVICE", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device() == torch.device(expected)


@pytest.mark.parametrize(
    ("named", "code", "says"),
    [
        ("cuda", "device.missing", "auto or cpu"),
        ("cdua", "device.unknown", "'cuda'"),
        ("tpu", "device.unknown", "'cpu'"),
        ("cuda:1", "device.unknown", "'cuda'"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, named: str, code: str, says: str
) -> None:
    monkeypatch.setenv("CONFIDE_DEVICE", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfideError) as caught:
        chosen_device()
    assert caught.value.code == code
    assert says in str(caught.value)


def loaded_for(task: str, folder: Path, **changes: Any) -> LoadedModel:
    model = tiny.save_task_model(folder / "model", task)
    flat = tiny.config(model, Path("federation"), Path("runs"), **{**tiny.TASKS[task], **changes})
    return load_model(from_flat(flat))


def examples_of(loaded: LoadedModel, task: str) -> EncodedText:
    rows = [tiny.for_task(task, row) for row in tiny.rows(3, seed=2)]
    records = [Record(row["text"], row["label"]) for row in rows]
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    generator = torch.Generator().manual_seed(1)
    return EncodedText([loaded.task.redraw(e, loaded, generator) for e in examples], loaded)


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("task", tiny.TASKS)
def test_batches_and_losses_lie_where_the_model_is(tmp_path: Path, task: str) -> None:
    loaded = loaded_for(task, tmp_path)
    loaded.trunk.frozen = 0  # what is remembered has values
    text = examples_of(loaded, task)
    loaded.model.to(META)
    for batch in text.batches():
        tensors = [*batch.inputs.values(), batch.attention_mask, batch.targets]
        assert {tensor.device for tensor in tensors} == {META}
        losses = loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)
        assert losses.device == META
        losses.sum().backward()


def test_class_weights_go_along(tmp_path: Path) -> None:
    loaded = loaded_for("classification", tmp_path, task__class_weights="1,3")
    losses = loaded.task.losses(
        torch.zeros(2, 2, device=META), torch.zeros(2, dtype=torch.long, device=META)
    )
    assert losses.device == META


def test_persons_are_folded_where_their_gradients_are() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, device=META))
    parameter.grad_sample = torch.zeros(3, 4, device=META)
    optimizer = SimpleNamespace(params=[parameter], _held={})
    units, sizes = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    PrivateOptimizer.fold(optimizer, units, sizes)  # type: ignore[arg-type]
    assert parameter.grad_sample.device == META
    assert parameter.grad_sample.shape == (2, 4)


@pytest.mark.usefixtures("without_values")
def test_gradients_of_each_example_are_made_where_the_model_is(tmp_path: Path) -> None:
    loaded = loaded_for("classification", tmp_path)
    loaded.trunk.frozen = 0
    text = examples_of(loaded, "classification")
    loaded.model.to(META)
    engine = PerExample(loaded.model)
    try:
        loaded.model.train()
        (batch,) = text.batches()
        loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets).sum().backward()
        assert {p.grad_sample.device for p in engine.trained} == {META}
    finally:
        engine.remove_hooks()


def test_an_adapter_is_read_on_the_processor(tmp_path: Path) -> None:
    loaded = loaded_for("classification", tmp_path)
    assert {t.device.type for t in get_adapter(loaded.model).values()} == {"cpu"}
    assert {t.device.type for t in loaded.initial.values()} == {"cpu"}


def test_the_arithmetic_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    config = SimpleNamespace(model_type="bert")
    base: Any = SimpleNamespace(config=config, device=torch.device("cuda"))
    assert Trunk(base, 0, "auto").bfloat16
    base.device = torch.device("cpu")
    monkeypatch.setattr("confide.common.models.trunk.fast_bfloat16", lambda: False)
    assert not Trunk(base, 0, "auto").bfloat16
