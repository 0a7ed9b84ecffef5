"""Physical batches: every example once, padding that counts for nothing, frozen layers once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from confide.common.machine.paths import local_or_cached
from confide.common.models.batches import (
    MOST_PADDING,
    SMALL,
    TOKENS_PER_BATCH,
    EncodedText,
    Room,
    chunks_by_length,
    chunks_of_units,
)
from confide.common.models.loading import LoadedModel, load_model
from confide.common.models.trunk import Trunk
from confide.common.settings import from_flat
from confide.common.tasks import Example
from confide.simulations.scenario import load_scenario, prepare
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
    chunks = chunks_by_length(lengths, range(len(lengths)), Room(tokens=budget))
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in chunk) for chunk in chunks]
    assert longest == sorted(longest)
    for chunk, length in zip(chunks, longest, strict=True):
        assert len(chunk) == 1 or len(chunk) * length <= budget


def padding(lengths: list[int]) -> float:
    """The share of the tokens that is padding."""
    chunks = chunks_by_length(lengths, range(len(lengths)))
    return 1 - sum(lengths) / sum(len(c) * max(lengths[i] for i in c) for c in chunks)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_worth_a_pass_have_little_padding(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [min(512, int(chance.lognormvariate(3.2, 0.8)) + 2) for _ in range(700)]
    for chunk in chunks_by_length(lengths, range(len(lengths))):
        size = len(chunk) * max(lengths[i] for i in chunk)
        assert size <= SMALL or sum(lengths[i] for i in chunk) >= (1 - MOST_PADDING) * size


def test_padding_of_the_demos_text_is_at_most_15_percent(real_cache: Path) -> None:
    data = prepare(load_scenario("nyt"))
    model = local_or_cached("sentence-transformers/all-MiniLM-L6-v2", "models")
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    files = sorted(data.glob("holder-*.jsonl"))
    assert len(files) == 10
    for file in files:
        texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=128).input_ids]
        assert padding(lengths) <= MOST_PADDING


UNITS = [[0, 3], [1], [2, 4]]  # of EXAMPLES


@pytest.mark.parametrize("budget", [1, 10, 18, 100])
def test_units_stay_together_within_the_budget(budget: int) -> None:
    lengths = [len(e.ids) for e in EXAMPLES]
    chunks = chunks_of_units(lengths, UNITS, Room(tokens=budget))
    assert sorted(u for chunk in chunks for u in chunk) == list(range(len(UNITS)))
    for chunk in chunks:
        records = [i for u in chunk for i in UNITS[u]]
        assert len(chunk) == 1 or len(records) * max(lengths[i] for i in records) <= budget


@pytest.mark.parametrize("budget", [8, 18, TOKENS_PER_BATCH])
def test_pieces_say_whose_every_example_is_and_when_a_unit_is_whole(
    tiny_model: Path, budget: int
) -> None:
    text = EncodedText(EXAMPLES, loaded(tiny_model, 0))
    found, sizes, open_unit = [], [], 0
    for piece in text.pieces(UNITS, Room(tokens=budget)):
        assert len(piece.units) == piece.batch.size
        open_unit += piece.batch.size
        found += piece.batch.attention_mask.sum(1).tolist()
        if piece.whole:
            assert open_unit == piece.sizes.sum(), "nothing of a unit comes later"
            sizes += piece.sizes.tolist()
            open_unit = 0
        else:
            assert len(piece.sizes) == 1
    assert open_unit == 0
    assert sorted(found) == sorted(len(e.ids) for e in EXAMPLES)
    assert sorted(sizes) == sorted(len(u) for u in UNITS)


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
