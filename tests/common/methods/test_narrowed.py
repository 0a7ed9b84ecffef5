"""A model lent to a smaller rank: what PEFT computes at that rank, and nothing left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from confide.client.training.per_example import PerExample
from confide.common.adapter.schema import adapter_parameters, get_adapter, set_adapter
from confide.common.errors import ConfideError
from confide.common.methods.ranks import narrowed
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from tests import tiny

RANK, ALPHA = 4, 8


def load(folder: Path, rank: int, alpha: int) -> LoadedModel:
    flat = tiny.config(
        folder, folder, folder, lora__rank=rank, lora__alpha=alpha, aggregate__method="ffa"
    )
    return load_model(from_flat(flat))


def losses(loaded: LoadedModel) -> torch.Tensor:
    rows = tiny.rows(6, seed=1)
    records = [Record(text=row["text"], target=row["label"]) for row in rows]
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    batch = EncodedText(examples, loaded).together(range(len(records)))
    return loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)


def adapter_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in loaded.schema.shapes}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_model_that_peft_makes_at_this_rank_and_scale(
    kind: str, rank: int, tmp_path: Path
) -> None:
    folder = tiny.save_model(tmp_path / "m", kind)
    wide, own = load(folder, RANK, ALPHA), load(folder, rank, ALPHA * rank // RANK)
    adapter = adapter_of(own)
    set_adapter(own.model, adapter)
    with narrowed(wide.model, wide.schema, rank) as schema:
        small = dataclasses.replace(wide, schema=schema)
        assert small.schema == own.schema
        set_adapter(small.model, adapter)
        assert torch.allclose(losses(small), losses(own), rtol=1e-6)
        assert [n for n, p in small.model.named_parameters() if p.requires_grad] == [
            n for n, p in own.model.named_parameters() if p.requires_grad
        ]


def test_gradients_by_example_are_of_the_short_factors(tmp_path: Path) -> None:
    wide = load(tiny.save_model(tmp_path / "m"), RANK, ALPHA)
    engine = PerExample(wide.model)
    try:
        with narrowed(wide.model, wide.schema, 2) as schema:
            small = dataclasses.replace(wide, schema=schema)
            set_adapter(small.model, adapter_of(small))
            engine.forget()  # as before every training
            wide.model.train()
            losses(small).sum().backward()
            engine.check()
            shapes = dict(small.schema.trained_shapes)
            live = adapter_parameters(small.model)
            assert {n: tuple(live[n].grad_sample.shape[1:]) for n in shapes} == shapes
    finally:
        engine.remove_hooks()
        wide.model.eval()


def test_afterwards_the_long_parameters_are_back_whatever_happened(tmp_path: Path) -> None:
    wide = load(tiny.save_model(tmp_path / "m"), RANK, ALPHA)
    before, values = list(wide.model.parameters()), get_adapter(wide.model)
    with (
        pytest.raises(ConfideError, match=r"adapter\.names"),
        narrowed(wide.model, wide.schema, 1),
    ):
        set_adapter(wide.model, {})
    after = list(wide.model.parameters())
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert all(torch.equal(values[n], v) for n, v in get_adapter(wide.model).items())


def test_at_its_own_rank_nothing_is_lent(tmp_path: Path) -> None:
    wide = load(tiny.save_model(tmp_path / "m"), RANK, ALPHA)
    before = list(wide.model.parameters())
    with narrowed(wide.model, wide.schema, RANK) as same:
        assert same is wide.schema
        assert all(one is two for one, two in zip(wide.model.parameters(), before, strict=True))
