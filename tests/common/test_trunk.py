"""Frozen layers computed once give the whole model's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, Room, chunks_by_length, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.tasks import task_for
from confide.common.text.readers import Record
from tests import tiny

CLOSE = 1e-5


WINDOW = 5
# What kind of attention each of three layers has goes by its place.
TWO_KINDS = {
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
ONE_WINDOW = {"sliding_window": WINDOW}


def loaded_and_text(
    kind: str, folder: Path, *, config: dict[str, Any] | None = None, **overrides: object
) -> tuple[LoadedModel, EncodedText, list[torch.Tensor]]:
    tiny.save_model(folder, kind)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    settings = from_flat(tiny.config(folder, folder, folder, **overrides))
    loaded, task = load_model(settings), task_for(settings.task)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    records = [Record(r["text"], r["label"], None) for r in tiny.rows(9, seed=5, length=28)]
    examples = task.encode(records, loaded.tokenizer, loaded.max_length)
    whole = []
    with torch.no_grad():
        for example in examples:  # the slow, obvious reference: one record at a time, all layers
            ids = torch.tensor([example.ids])
            output = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            whole.append(task.logits(output, torch.ones_like(ids))[0])
    return loaded, EncodedText(examples, loaded), whole


@pytest.mark.parametrize("layers", [1, 2, 0])
@pytest.mark.parametrize(
    ("kind", "pooling"),
    tiny.poolings("bert", "roberta", "distilbert", "llama", "qwen2", "gpt2"),
)
def test_cached_layers_give_the_whole_models_logits(
    kind: str, layers: int, pooling: str, tmp_path: Path
) -> None:
    loaded, text, whole = loaded_and_text(
        kind, tmp_path, lora__layers=layers, task__pooling=pooling
    )
    task = task_for(
        from_flat(tiny.config(tmp_path, tmp_path, tmp_path, task__pooling=pooling)).task
    )
    for index, expected in enumerate(whole):
        (batch,) = text.batches([index])
        with torch.no_grad():
            found = forward(loaded, task, batch)[0]
        assert torch.allclose(found, expected, atol=CLOSE), kind
    # And together, padded: a record does not depend on its neighbours.
    chunks = chunks_by_length([len(e.ids) for e in text._examples], range(len(text)))
    for chunk, batch in zip(chunks, text.batches(), strict=True):
        with torch.no_grad():
            found = forward(loaded, task, batch)
        assert torch.allclose(found, torch.stack([whole[i] for i in chunk]), atol=CLOSE)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "config"), [("qwen2", TWO_KINDS), ("mistral", ONE_WINDOW)])
def test_a_layer_keeps_its_place_in_the_model(
    kind: str,
    config: dict[str, Any],
    layers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers#35896: masks go by the layer's number; a shorter list of layers lends layers
    the masks of others, which only texts longer than the window show."""
    # A mean is refused for another reason, and makes the comparison short.
    monkeypatch.setattr(models, "of_texts_alone", lambda _: None)
    loaded, text, whole = loaded_and_text(kind, tmp_path, config=config, lora__layers=layers)
    assert loaded.trunk.frozen == 3 - layers
    assert max(text._lengths) > 2 * WINDOW
    for index, expected in enumerate(whole):
        with torch.no_grad():
            found = forward(loaded, loaded.task, text.together([index]))[0]
        assert torch.allclose(found, expected, atol=CLOSE)


def test_a_model_without_frozen_layers_is_the_whole_one(tmp_path: Path) -> None:
    loaded, _, _ = loaded_and_text("bert", tmp_path, lora__layers=1)
    assert (loaded.trunk.frozen, loaded.trunk.whole().frozen) == (2, 0)


def test_a_head_alone_needs_no_layer_twice(tmp_path: Path) -> None:
    loaded, text, whole = loaded_and_text("bert", tmp_path, lora__method="head", lora__layers=0)
    assert loaded.trunk.frozen == 3
    assert all("classifier" in name for name in loaded.schema.trained)
    (batch,) = text.batches([0])
    assert "inputs_embeds" in batch.inputs
    assert len(whole) == len(text)


def test_chunks_hold_each_index_once_and_keep_to_the_budget() -> None:
    lengths = [3, 50, 7, 7, 20, 1, 50, 200]
    chunks = chunks_by_length(lengths, range(8), Room(tokens=100))
    assert sorted(i for chunk in chunks for i in chunk) == list(range(8))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(lengths[i] for i in chunk) <= 100
    assert chunks_by_length(lengths, [], Room(tokens=100)) == []


class _Attended(TorchDispatchMode):
    """In which precision attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.kinds |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_attention_is_trained_in_float32_where_the_model_is_bfloat16(
    kind: str, tmp_path: Path
) -> None:
    loaded, text, whole = loaded_and_text(
        kind,
        tmp_path,
        model__dtype="bfloat16",
        lora__layers=0,
        task__pooling=tiny.pooling_of(kind),
    )
    (batch,) = text.batches([0])
    with _Attended() as trained:
        found = forward(loaded, loaded.task, batch)
        found.sum().backward()
    with _Attended() as read, torch.no_grad():
        forward(loaded, loaded.task, batch)
    assert trained.kinds == {torch.float32}
    assert torch.bfloat16 in read.kinds
    assert torch.allclose(found[0], whole[0], atol=0.1)


def test_attention_is_precise_however_it_is_called(tmp_path: Path) -> None:
    loaded, _, _ = loaded_and_text("bert", tmp_path, model__dtype="bfloat16")
    query = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    attend = torch.nn.functional.scaled_dot_product_attention
    with loaded.trunk.arithmetic(), _Attended() as seen:
        found = attend(query=query, key=query, value=query, attn_mask=mask)
    assert found.dtype == torch.bfloat16
    assert seen.kinds == {torch.float32}
