"""Weights, focus, rates and copies: the coordinator's, and each unit stays one unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText
from confide.common.models.loading import LoadedModel, load_model
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import Settings, TaskSpec, from_flat
from confide.common.tasks import Example, task_for
from tests import tiny

LOGITS = torch.tensor([[2.0, -1.0], [0.0, 1.0], [3.0, 0.5]])
TARGETS = torch.tensor([0, 0, 1])


def spec(**changes: Any) -> TaskSpec:
    return TaskSpec(labels="no,yes", **changes)


def settings(**changes: Any) -> Settings:
    return from_flat(tiny.config(Path("m"), Path("d"), Path("o"), **changes))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(settings(model__name=str(tiny_model), task__word_dropout=0.4))


def test_a_weight_scales_an_examples_own_loss() -> None:
    plain = cross_entropy(LOGITS, TARGETS, reduction="none")
    weighted = task_for(spec(class_weights="1, 4")).losses(LOGITS, TARGETS)
    assert torch.allclose(weighted, plain * torch.tensor([1.0, 1.0, 4.0]))
    assert torch.equal(
        task_for(spec(class_weights="1,4")).losses(LOGITS[2:], TARGETS[2:]), weighted[2:]
    )


def test_a_focal_loss_attends_to_what_is_wrong() -> None:
    plain = cross_entropy(LOGITS, TARGETS, reduction="none")
    found = task_for(spec(loss="focal", gamma=2.0)).losses(LOGITS, TARGETS)
    sure = LOGITS.softmax(-1)[torch.arange(3), TARGETS]
    assert torch.allclose(found, (1 - sure) ** 2 * plain)
    zero = task_for(spec(loss="focal", gamma=0.0)).losses(LOGITS, TARGETS)
    assert torch.allclose(zero, plain)


def test_a_rate_leaves_out_records_of_its_class_alone(loaded: LoadedModel) -> None:
    examples = [Example((5, 6), n % 2) for n in range(4000)]
    text, chances = EncodedText(examples, loaded), SecureGenerator().uniform(4000).tolist()
    kept = text.thinned([[i] for i in range(4000)], (1.0, 0.25), chances)
    by_class = [sum(examples[u[0]].target == c for u in kept) for c in (0, 1)]
    assert by_class[0] == 2000
    assert by_class[1] == pytest.approx(500, abs=80)


def test_a_unit_of_which_nothing_is_left_is_none(loaded: LoadedModel) -> None:
    text = EncodedText([Example((5,), 0), Example((6,), 1)], loaded)
    assert text.thinned([[0, 1], [1]], (1.0, 1e-9), [0.5] * 3) == [[0]]


def test_copies_of_a_record_differ_and_are_one_unit(loaded: LoadedModel) -> None:
    examples = [Example((2, *range(5, 5 + n), 3), 0) for n in (9, 4)]
    text, generator = EncodedText(examples, loaded), torch.Generator().manual_seed(1)
    (piece,) = text.pieces([[0, 0, 0, 0], [1, 1, 1, 1]], draws=lambda _: generator)
    assert piece.sizes.tolist() == [4, 4]
    assert sorted(piece.units.tolist()) == [0] * 4 + [1] * 4
    rows = {tuple(r) for r in piece.batch.inputs["input_ids"].tolist()}
    assert len(rows) > 4
    ids, mask = piece.batch.inputs["input_ids"], piece.batch.attention_mask
    assert all((row[0], row[m.sum() - 1]) == (2, 3) for row, m in zip(ids, mask, strict=True))
    assert mask.sum(1).min() >= 3, "a word is left besides the frame"


def test_what_is_drawn_for_a_record_does_not_depend_on_the_others(loaded: LoadedModel) -> None:
    examples = [Example((2, *range(5, 5 + n), 3), 0) for n in (9, 9, 9)]
    text = EncodedText(examples, loaded)

    def words_of(units: list[list[int]], first: int) -> set[tuple[int, ...]]:
        asked: list[int] = []

        def draws(place: int) -> torch.Generator:
            asked.append(place)
            return torch.Generator().manual_seed(first + place)

        (piece,) = text.pieces(units, draws=draws)
        assert sorted(asked) == [i for unit in units for i in unit], "each asks for its own"
        return {tuple(row) for row in piece.batch.inputs["input_ids"].tolist()}

    whole = [words_of([[0], [1], [2]], 7), words_of([[1], [2]], 7)]
    assert len(whole[0]) == 3
    assert whole[1] < whole[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task__class_weights": "1"}, ("'1'", "2 numbers")),
        ({"task__class_weights": "1,x"}, ("'1,x'", "labels")),
        ({"task__class_weights": "1,0"}, ("'1,0'", "(0, ")),
        ({"task__class_weights": "1,-2"}, ("'1,-2'", "(0, ")),
        ({"task__class_weights": "1,inf"}, ("'1,inf'", "(0, ")),
        ({"task__class_rates": "1,2"}, ("'1,2'", "(0, 1]")),
        ({"task__copies": 3}, ("task.copies = 3", "word-dropout")),
        (
            {"task__kind": "regression", "task__labels": "", "task__loss": "focal"},
            ("'focal'", "'regression'"),
        ),
        (
            {"task__kind": "causal", "task__labels": "", "task__word_dropout": 0.1},
            ("0.1", "'causal'"),
        ),
        ({"train__weight_decay": 0.1}, ("weight-decay = 0.1", "adamw")),
        ({"train__proximal": 0.1}, ("train.proximal = 0.1", "train.steps = 1", "'steps'")),
        (
            {"train__proximal": 2.0, "train__steps": 2, "round__mode": "steps"},
            ("train.proximal = 2", "train.lr = 1", "at most 1"),
        ),
        ({"train__warmup": 2}, ("train.warmup = 2", "round.count")),
        ({"task__kind": "causal"}, ("'causal'", "task.labels")),
        (
            {"task__kind": "masked", "task__labels": "", "data__target": "label"},
            ("'masked'", "data.target = ''"),
        ),
        ({"data__target": ""}, ("data.target", "column")),
        (
            {"task__kind": "seq2seq", "task__labels": "", "task__template": "sum: {txt}"},
            ("'sum: {txt}'", "{text}"),
        ),
        ({"task__template": "chat"}, ("'chat'", "causal")),
        (
            {"task__kind": "causal", "task__labels": "", "lora__method": "head"},
            ("'head'", "'causal'"),
        ),
        ({"task__low": 2.0}, ("task.low = 2", "task.high = 1")),
        (
            {"task__kind": "causal", "task__labels": "", "task__target_length": 30},
            ("target-length = 30", "max-length = 32"),
        ),
    ],
)
def test_settings_that_make_no_sense_together(changes: Any, says: tuple[str, ...]) -> None:
    with pytest.raises(ConfideError) as caught:
        settings(**changes)
    assert caught.value.code == "settings.combination"
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in says)
