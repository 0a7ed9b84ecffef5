"""Per-example gradients of every kind of adapter against a batch-of-one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import pytest

from tests.client.architectures import INNER, LAYERS, TASKS, base_model
from tests.client.gradients import (
    assert_exact,
    assert_matches_the_loop,
    lora,
    lora_model,
    two_adapters,
    with_adapter,
)

TOKENS = [39, 12, 37, 4]  # in three examples, in two, in two others, in none
VIRTUAL = 4  # tokens in front of the text

# What is trained: family, task, and how the LoRA differs from that of the architectures' test.
LORA: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    # Chosen among architectures and tasks for their conditioning: at rank one the rows of a tensor
    # can nearly cancel, and then the float32 loop itself is more than 1e-5 from a float64 one.
    "rank one": ("roberta", "masked", {"r": 1}),
    "rank one over conv1d": ("gpt2", "tokens", {"r": 1}),
    "rslora": ("llama", "classification", {"use_rslora": True}),
    "rslora over conv1d": ("gpt2", "classification", {"use_rslora": True}),
    "dora": ("bert", "classification", {"use_dora": True}),
    "dora over conv1d": ("gpt2", "causal", {"use_dora": True}),
    "dora, grouped queries": ("qwen2", "classification", {"use_dora": True}),
    "dora with biases": ("qwen2", "causal", {"use_dora": True, "bias": "all"}),
    "every bias": ("roberta", "tokens", {"bias": "all"}),
    "every bias over conv1d": ("gpt2", "classification", {"bias": "all"}),
    "biases of lora": ("distilbert", "classification", {"bias": "lora_only"}),
    "biases of queries": ("qwen2", "classification", {"bias": "lora_only"}),
    # Without the key, whose bias softmax does not see: its gradient is rounding (see NEGLIGIBLE).
    "bias of b": (
        "roberta",
        "tokens",
        {"lora_bias": True, "target_modules": ["query", "value", "intermediate.dense"]},
    ),
    "bias of b over conv1d": ("gpt2", "causal", {"lora_bias": True}),
    "last layer alone": ("bert", "classification", {"layers_to_transform": [LAYERS - 1]}),
    "head of two layers": ("roberta", "classification", {}),
    "pooler": ("bert", "classification", {"modules_to_save": ["pooler", "classifier"]}),
    "language head": ("llama", "causal", {"modules_to_save": ["lm_head"]}),
    "embedding lora": ("bert", "tokens", {"target_modules": ["word_embeddings", "query"]}),
    "embedding lora of a decoder": ("llama", "causal", {"target_modules": ["embed_tokens"]}),
    "embedding lora of positions": (
        "gpt2",
        "classification",
        {"target_modules": ["wpe", "c_attn"]},
    ),
    "trained tokens": ("bert", "classification", {"trainable_token_indices": TOKENS}),
    "trained tokens of a decoder": ("llama", "causal", {"trainable_token_indices": TOKENS}),
    "trained tokens, tied": ("smollm2", "causal", {"trainable_token_indices": TOKENS}),
    "layer norm": ("bert", "classification", {"modules_to_save": ["LayerNorm", "classifier"]}),
    "layer norm of a decoder": ("gpt2", "causal", {"modules_to_save": ["ln_1", "ln_f"]}),
    "rms norm": ("llama", "causal", {"modules_to_save": ["input_layernorm", "norm"]}),
    "rms norm of t5": ("t5", "seq2seq", {"modules_to_save": ["layer_norm"]}),
    "word embedding": ("roberta", "tokens", {"modules_to_save": ["word_embeddings"]}),
    "word embedding of a decoder": ("llama", "causal", {"modules_to_save": ["embed_tokens"]}),
    "word embedding, tied": (
        "smollm2",
        "causal",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "token types": ("bert", "tokens", {"modules_to_save": ["token_type_embeddings"]}),
    # One row of positions is embedded for the whole batch, then broadcast.
    "positions of gpt2": ("gpt2", "causal", {"modules_to_save": ["wpe"]}),
    "positions of bert": ("bert", "masked", {"modules_to_save": ["position_embeddings"]}),
    "positions of roberta": ("roberta", "tokens", {"modules_to_save": ["position_embeddings"]}),
    "positions of distilbert": (
        "distilbert",
        "masked",
        {"modules_to_save": ["position_embeddings"]},
    ),
}

# Rounding in float32 makes the loop itself uncertain by more than 1e-5 in these, or the row is
# rounding altogether; in float64 they are compared like all others.
ILL_CONDITIONED: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"rank one, {family}, {task}": (family, task, {"r": 1})
        for family, task in [
            ("bert", "classification"),
            ("distilbert", "masked"),
            ("gpt2", "causal"),
            ("llama", "causal"),
            ("qwen2", "causal"),
            ("smollm2", "classification"),
            ("t5", "seq2seq"),
            ("t5-gated", "seq2seq"),
        ]
    },
    "bias of b, the key too": ("roberta", "tokens", {"lora_bias": True}),
    "every bias of an encoder": ("roberta", "classification", {"bias": "all"}),
}

OTHERS: Mapping[str, tuple[str, str, type[peft.PeftConfig], dict[str, Any]]] = {
    "ia3": (
        "bert",
        "classification",
        peft.IA3Config,
        {
            "target_modules": ["key", "value", "output.dense"],
            "feedforward_modules": ["output.dense"],
        },
    ),
    "ia3 over conv1d": (
        "gpt2",
        "causal",
        peft.IA3Config,
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": True,
        },
    ),
    "ia3 of t5": (
        "t5",
        "seq2seq",
        peft.IA3Config,
        {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]},
    ),
    "vera": ("bert", "classification", peft.VeraConfig, {"r": 4, "target_modules": ["query"]}),
    "vera of a decoder": (
        "llama",
        "causal",
        peft.VeraConfig,
        {"r": 4, "target_modules": ["q_proj", "o_proj"]},
    ),
    "prompt": ("bert", "classification", peft.PromptTuningConfig, {}),
    "prompt of a decoder": ("llama", "causal", peft.PromptTuningConfig, {}),
    "prompt of t5": ("t5", "seq2seq", peft.PromptTuningConfig, {}),
    "prompt encoder": (
        "gpt2",
        "causal",
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": INNER},
    ),
    "prompt encoder with memory": (
        "bert",
        "classification",
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": INNER, "encoder_reparameterization_type": "LSTM"},
    ),
    "prefix": ("gpt2", "causal", peft.PrefixTuningConfig, {}),
    "prefix of grouped queries": ("qwen2", "causal", peft.PrefixTuningConfig, {}),
    "prefix of t5": ("t5", "seq2seq", peft.PrefixTuningConfig, {}),
    "projected prefix": (
        "llama",
        "classification",
        peft.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": INNER},
    ),
}
PROMPTS = (peft.PromptTuningConfig, peft.PromptEncoderConfig, peft.PrefixTuningConfig)


@pytest.mark.parametrize("name", LORA)
def test_each_variant_of_lora_has_the_gradients_of_the_loop(name: str) -> None:
    family, task, changes = LORA[name]
    assert_matches_the_loop(lora_model(family, task, **changes), task)


@pytest.mark.parametrize("name", ILL_CONDITIONED)
def test_what_float32_cannot_tell_is_exact_in_float64(name: str) -> None:
    family, task, changes = ILL_CONDITIONED[name]
    assert_exact(lora_model(family, task, **changes), task)


@pytest.mark.parametrize("name", OTHERS)
def test_each_other_adapter_has_the_gradients_of_the_loop(name: str) -> None:
    family, task, kind, settings = OTHERS[name]
    virtual: dict[str, Any] = {"num_virtual_tokens": VIRTUAL} if kind in PROMPTS else {}
    config = kind(task_type=TASKS[task].peft, **virtual, **settings)
    assert_matches_the_loop(with_adapter(base_model(family, task), config), task)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_of_a_frozen_factor_there_is_no_gradient_and_of_the_other_the_right_one(
    family: str, frozen: str
) -> None:
    model = with_adapter(
        base_model(family, "classification"), lora(family, "classification"), frozen=frozen
    )
    assert_matches_the_loop(model, "classification")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_adapters_at_once_each_have_their_own_scale(family: str) -> None:
    assert_matches_the_loop(two_adapters(family), "causal")
