"""Physical batches: every example once, padding that counts for nothing, frozen layers once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from confide.common.batches import EncodedText, chunks_by_length
from confide.common.models import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.tasks.classification import Example
from confide.common.trunk import Trunk
from tests import tiny

EXAMPLES = [Example(tuple(range(5, 5 + n)), n % 2) for n in (9, 2, 5, 2, 7)]


def loaded(model: Path, layers: int) -> LoadedModel:
    return load_model(from_flat(tiny.config(model, model, model, lora__layers=layers)))


def test_every_example_comes_once_with_its_own_ids_and_target(tiny_model: Path) -> None:
    text = EncodedText(EXAMPLES, loaded(tiny_model, 0))
    found = []
    for batch in text.batches():
        rows = zip(batch.inputs["input_ids"], batch.attention_mask, batch.targets, strict=True)
        for ids, mask, target in rows:
            assert ids[mask == 0].eq(0).all(), "padding"
            found.append(Example(tuple(ids[mask == 1].tolist()), int(target)))
    assert sorted(found, key=str) == sorted(EXAMPLES, key=str)


def test_only_the_chosen_examples_come(tiny_model: Path) -> None:
    text = EncodedText(EXAMPLES, loaded(tiny_model, 0))
    assert [b.size for b in text.batches([4, 1])] == [2]
    assert list(text.batches([])) == []
    assert len(text) == len(EXAMPLES)


def test_an_example_drawn_twice_is_there_twice(tiny_model: Path) -> None:
    assert [b.size for b in EncodedText(EXAMPLES, loaded(tiny_model, 0)).batches([1, 1])] == [2]


def test_an_empty_text_gives_whole_numbers(tiny_model: Path) -> None:
    text = EncodedText([Example((), 0), Example((), 1)], loaded(tiny_model, 0))
    (batch,) = text.batches()
    assert batch.inputs["input_ids"].dtype == torch.long
    assert batch.attention_mask.sum() == 0


@pytest.mark.parametrize("budget", [1, 10, 18, 100])
def test_chunks_keep_to_the_budget_and_grow_in_length(budget: int) -> None:
    lengths = [len(e.ids) for e in EXAMPLES]
    chunks = chunks_by_length(lengths, range(len(lengths)), budget)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in chunk) for chunk in chunks]
    assert longest == sorted(longest)
    for chunk, length in zip(chunks, longest, strict=True):
        assert len(chunk) == 1 or len(chunk) * length <= budget


def test_frozen_layers_are_computed_once_and_in_memory_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_model, 1)
    computed: list[int] = []
    lower = Trunk.lower

    def counting(self: Trunk, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        computed.append(len(ids))
        return lower(self, ids, mask)

    monkeypatch.setattr(Trunk, "lower", counting)
    text = EncodedText(EXAMPLES, model)
    assert computed == [], "not before it is needed: the charge comes first"
    shapes = [[b.inputs["inputs_embeds"].shape for b in text.batches()] for _ in range(3)]
    assert sum(computed) == len(EXAMPLES)
    assert shapes[0] == shapes[1] == shapes[2] == [torch.Size([5, 9, 16])]
