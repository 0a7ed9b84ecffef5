"""Per-example gradients under dropout: each example's own mask, in the forward and the backward."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from tests.client.architectures import TASKS, base_model
from tests.client.gradients import (
    assert_matches_the_loop_with_dropout,
    assert_same,
    lora,
    lora_model,
    one_by_one,
    per_example,
    two_adapters,
    with_adapter,
)
from tests.client.masks import Masks

DROPOUT = 0.3


@pytest.mark.parametrize(
    ("family", "task", "changes"),
    [
        ("bert", "classification", {}),
        ("gpt2", "causal", {}),
        ("t5", "seq2seq", {"lora_bias": False, "use_rslora": True}),
        ("llama", "causal", {}),
        ("bert", "classification", {"bias": "all"}),
    ],
)
@pytest.mark.parametrize("inside", [0.0, DROPOUT], ids=["", "and in the base model"])
def test_with_dropout_each_example_has_the_gradient_under_its_own_mask(
    family: str, task: str, changes: dict[str, Any], inside: float
) -> None:
    config = lora(family, task, lora_dropout=DROPOUT, **changes)
    model = with_adapter(base_model(family, task, dropout=inside), config)
    assert_matches_the_loop_with_dropout(model, task)


def test_the_masks_of_a_batch_are_noted_and_differ_between_examples() -> None:
    model, masks = lora_model("bert", "classification", lora_dropout=DROPOUT), Masks()
    batch = TASKS["classification"].batch(0)
    with masks:
        per_example(model, "classification", batch)
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(masks.drawn) == len(layers)
    assert all(not torch.equal(mask[0], mask[1]) for mask in masks.drawn)
    with pytest.raises(AssertionError):  # the loop's own masks are other masks
        assert_same(
            per_example(model, "classification", batch),
            one_by_one(model, "classification", batch),
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_adapters_at_once_have_two_masks(family: str) -> None:
    assert_matches_the_loop_with_dropout(two_adapters(family, lora_dropout=DROPOUT), "causal")
