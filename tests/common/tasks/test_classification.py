"""Classification: records to token ids and classes, one loss for each example."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from confide.common.errors import ConfideError
from confide.common.settings import TaskSpec
from confide.common.tasks import Example, task_for
from confide.common.tasks.classification import Classification
from confide.common.text.readers import Record

SPEC = TaskSpec(labels="negative, neutral,positive")
LONGEST = 6


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def encode(tokenizer: Any, *records: Record, **options: Any) -> list[Example]:
    return task_for(SPEC).encode(records, tokenizer, LONGEST, **options)


def test_classes_are_numbered_in_the_order_of_the_labels(tokenizer: Any) -> None:
    labels = ("positive", "negative", "neutral")
    examples = encode(tokenizer, *(Record("a day", label) for label in labels))
    assert [e.target for e in examples] == [2, 0, 1]


def test_tokens_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, Record("the day", "neutral"))
    words = tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words == ["[CLS]", "the", "day", "[SEP]"]


def test_a_longer_text_is_cut_and_keeps_its_frame(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, Record("the day " * 50, "neutral"))
    words = tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words == ["[CLS]", "the", "day", "the", "day", "[SEP]"]


def test_a_record_is_encoded_the_same_whatever_stands_beside_it(tokenizer: Any) -> None:
    short, long = Record("a day", "positive"), Record("the town " * 50, "negative")
    assert encode(tokenizer, short, long)[0] == encode(tokenizer, short)[0]


@pytest.mark.parametrize("label", ["Positive", "", None, "0"])
def test_an_undeclared_label_is_named_by_its_place_alone(tokenizer: Any, label: Any) -> None:
    with pytest.raises(ConfideError) as caught:
        encode(tokenizer, Record("a", "neutral"), Record("a private text", label))
    assert caught.value.code == "data.unknown-label"
    assert "record 2" in caught.value.message
    assert "private" not in str(caught.value)


def test_text_to_predict_needs_no_label(tokenizer: Any) -> None:
    assert len(encode(tokenizer, Record("a day"), labelled=False)) == 1


def test_no_records_give_no_examples(tokenizer: Any) -> None:
    assert encode(tokenizer) == []


def test_a_text_that_leaves_no_token_still_has_one(tokenizer: Any) -> None:
    def silent(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[] for _ in texts]}

    silent.pad_token_id = 7  # type: ignore[attr-defined]
    assert encode(silent, Record("...", "neutral")) == [Example((7,), 1)]


def test_each_loss_is_the_cross_entropy_of_its_own_example() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-5.0, 1.0, 3.0]])
    targets = torch.tensor([0, 2, 1])
    losses = task_for(SPEC).losses(logits, targets)
    expected = [
        math.log(sum(math.exp(v) for v in row)) - row[t]
        for row, t in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    assert losses.shape == (3,)
    assert torch.allclose(losses, torch.tensor(expected), atol=1e-6)
    assert torch.equal(task_for(SPEC).losses(logits[:1], targets[:1]), losses[:1])


def test_losses_are_computed_in_float32() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert task_for(SPEC).losses(logits, torch.tensor([0, 1])).dtype == torch.float32


def test_mean_pooling_is_over_a_records_own_tokens() -> None:
    logits = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0]])
    pooled = task_for(SPEC).logits(SimpleNamespace(logits=logits), mask)
    assert torch.equal(pooled, logits[:, :2].mean(1))


def test_the_models_own_pooling_is_left_alone() -> None:
    task = Classification(TaskSpec(labels="a,b", pooling="model"))
    logits = torch.randn(2, 2)
    assert task.logits(SimpleNamespace(logits=logits), torch.ones(2, 5)) is logits
    assert (task.peft_task_type(), Classification(SPEC).peft_task_type()) == (
        "SEQ_CLS",
        "TOKEN_CLS",
    )
