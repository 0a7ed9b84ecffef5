"""Per-example gradients of every supported architecture against a batch-of-one loop."""

from __future__ import annotations

import pytest

from tests.client.architectures import FAMILIES
from tests.client.gradients import assert_matches_the_loop, lora_model

DECODERS = ("gpt2", "llama", "qwen2", "smollm2")
ENCODERS = ("bert", "distilbert", "roberta", "albert")
PAIRED = ("t5", "t5-gated")
CASES = [
    *((family, "classification") for family in FAMILIES),
    *((family, "tokens") for family in FAMILIES),
    *((family, "causal") for family in DECODERS),
    *((family, "masked") for family in ENCODERS),
    *((family, "seq2seq") for family in PAIRED),
]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_gradients_of_all_examples_at_once_are_those_of_one_at_a_time(
    family: str, task: str
) -> None:
    assert_matches_the_loop(lora_model(family, task), task)
