"""Per-example gradients of every supported architecture against a batch-of-one loop."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType

from tests.client.architectures import FAMILIES, TASKS, VOCABULARY, WIDTH
from tests.client.gradients import assert_matches_the_loop, lora_model, with_adapter

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


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "targets", ["query_proj value_proj", "query_proj key_proj value_proj dense", "key_proj",
                "value_proj", "query_proj pos_key_proj"],
)  # fmt: skip
def test_positions_that_all_examples_share_give_each_its_own_gradient(
    targets: str, shared: bool
) -> None:
    """opacus#841: DeBERTa-v3 puts one table of relative positions through query and key."""
    if shared and "pos_key_proj" in targets:
        return  # it has no such layer
    config = transformers.DebertaV2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=24, num_labels=3, initializer_range=0.1,
        relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm", share_att_key=shared, position_biased_input=False,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    base = TASKS["classification"].auto.from_config(config)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=targets.split(), task_type=TaskType.SEQ_CLS)
    assert_matches_the_loop(with_adapter(base, lora), "classification")
