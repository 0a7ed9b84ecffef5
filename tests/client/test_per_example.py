"""Per-example gradients however the model is called: layers used twice, checkpointing, half
precision, one example alone; and Opacus's hooks as a second witness."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from confide.client.training.per_example import PerExample
from confide.client.training.per_example.lora import Layer
from confide.common.errors import ConfideError
from tests.client.architectures import LABELS, LENGTHS, PAD, TASKS, WIDTH, Batch, base_model
from tests.client.gradients import (
    EXACT,
    Gradients,
    assert_matches_the_loop,
    assert_same,
    attached,
    differences,
    lora,
    lora_model,
    losses_of,
    one_by_one,
    per_example,
    samples,
    trained,
    with_adapter,
)

HALF = 5e-2  # relative, bfloat16: 8 bits of mantissa
SEED = 3


class Small(nn.Module):
    """What the modules below are made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, LABELS)


class Twice(Small):
    """Each layer is called on all positions and again on their mean: (B, T, D), then (B, D)."""

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.layer(x)).tanh().mean(1)
        return SimpleNamespace(logits=self.head(self.norm(self.layer(h))))


def numbers() -> Batch:
    """Inputs of ``Twice``."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=generator)
    return Batch({"x": x}, torch.arange(len(LENGTHS)) % LABELS)


TWICE = {
    "lora": peft.LoraConfig(target_modules=["layer"]),
    "lora and head": peft.LoraConfig(target_modules=["layer"], modules_to_save=["head"]),
    "dora": peft.LoraConfig(target_modules=["layer"], use_dora=True),
    "bias": peft.LoraConfig(target_modules=["layer"], bias="all"),
    "linear and norm": peft.LoraConfig(target_modules=["head"], modules_to_save=["layer", "norm"]),
    "ia3": peft.IA3Config(target_modules=["layer"], feedforward_modules=[]),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_layer_that_is_called_twice_adds_up(name: str) -> None:
    model, batch = with_adapter(Twice(), TWICE[name]), numbers()
    expected = one_by_one(model, "classification", batch)
    assert_same(per_example(model, "classification", batch), expected)


@pytest.mark.parametrize("frozen", ["", "lora_A"])
@pytest.mark.parametrize("name", ["lora", "lora and head"])
def test_a_branch_is_the_same_beside_the_weights_and_added_to_them(
    name: str, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways, merged = [], Layer.merged

    def spied(layer: Layer, tokens: int) -> bool:
        ways.append(merged(layer, tokens))
        return ways[-1]

    model, batch = with_adapter(Twice(), TWICE[name], frozen), numbers()
    expected = one_by_one(model, "classification", batch)
    monkeypatch.setattr(Layer, "merged", spied)
    assert_same(per_example(model, "classification", batch), expected)
    assert ways == [True, False, False, True], "all tokens, their mean, and both back again"


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("frozen", ["", "lora_A"])
def test_the_input_of_a_layer_is_kept_only_where_a_gradient_is_made_of_it(
    frozen: str, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = with_adapter(Twice(), TWICE["lora"], frozen), numbers()
    monkeypatch.setattr(Layer, "merged", lambda *_: merged)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    x = batch.inputs["x"]
    with attached(model), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x=x)
    assert (x.data_ptr() in kept) is not bool(frozen)


class Flat(Small):
    """Gives its layer the tokens of all examples in one row, as some mixtures of experts do."""

    def forward(self, x: Tensor) -> Any:
        h = self.layer(x.flatten(0, 1)).view(x.shape)
        return SimpleNamespace(logits=self.head(h.mean(1)))


@pytest.mark.parametrize("name", ["lora", "dora", "bias", "ia3"])
def test_a_layer_that_is_given_all_tokens_in_one_row_is_refused(name: str) -> None:
    model = with_adapter(Flat(), TWICE[name])
    with pytest.raises(ConfideError) as raised:
        per_example(model, "classification", numbers())
    assert raised.value.code == "train.batch-shape"
    assert raised.value.hint


class InPlace(Small):
    """Writes into what its layers return, as DeBERTa and ``nn.ReLU(inplace=True)`` do."""

    def forward(self, x: Tensor) -> Any:
        h = self.layer(x)
        h += x
        h = self.norm(h).tanh_().mean(1)
        logits = self.head(h)
        logits *= 2
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("name", TWICE)
def test_what_a_layer_returns_may_be_written_to_in_place(name: str) -> None:
    model, batch = with_adapter(InPlace(), TWICE[name]), numbers()
    expected = one_by_one(model, "classification", batch)
    assert_same(per_example(model, "classification", batch), expected)


def test_a_layer_shared_by_all_depths_is_called_once_for_each() -> None:
    model = lora_model("albert", "masked")
    calls = count_calls(model)
    per_example(model, "masked", TASKS["masked"].batch(0))
    assert all(count > 1 for count in calls.values())


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_one_example_alone_has_its_gradient(family: str) -> None:
    model = lora_model(family, "classification")
    batch = TASKS["classification"].batch(0).example(1)
    expected = one_by_one(model, "classification", batch)
    assert_same(per_example(model, "classification", batch), expected)


def test_an_example_has_the_same_gradient_whatever_its_neighbours_are() -> None:
    model, task = lora_model("llama", "causal"), "causal"
    batch = TASKS[task].batch(0)
    order = torch.arange(batch.size - 1, -1, -1)
    turned = Batch({k: v[order] for k, v in batch.inputs.items()}, batch.targets[order])
    straight = per_example(model, task, batch)
    found = {n: g[order] for n, g in per_example(model, task, turned).items()}
    assert_same(found, straight)


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
def test_the_padding_row_of_a_table_has_no_gradient_even_where_the_model_looks_at_it(
    table: str,
) -> None:
    model = lora_model("roberta", "classification", modules_to_save=[table, "classifier"])
    text = TASKS["classification"].batch(0)
    batch = Batch({"input_ids": text.inputs["input_ids"]}, text.targets)  # without its mask
    expected = one_by_one(model, "classification", batch)
    (rows,) = [g for n, g in expected.items() if table in n]
    assert not rows[:, PAD].any()
    assert rows.any()
    assert_same(per_example(model, "classification", batch), expected)


def test_a_second_batch_of_other_text_is_again_that_of_the_loop() -> None:
    assert_matches_the_loop(lora_model("t5", "seq2seq"), "seq2seq", seed=1)


def count_calls(model: nn.Module) -> dict[str, int]:
    """How often each LoRA layer is called from now on."""
    calls: dict[str, int] = {}

    def counter(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return count

    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            module.register_forward_pre_hook(counter(name))
    return calls


def checkpointed(model: Any, reentrant: bool) -> Any:
    with warnings.catch_warnings():
        # The name that PEFT's users know; transformers 5.23 has another beside it.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
    model.enable_input_require_grads()
    return model


CHECKPOINTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "classification", {}),
    "roberta": ("roberta", "masked", {}),
    "gpt2": ("gpt2", "causal", {}),
    "llama": ("llama", "causal", {}),
    "tied": ("smollm2", "causal", {}),
    "t5": ("t5", "seq2seq", {}),
    "dropout": ("bert", "classification", {"lora_dropout": 0.3}),
    "dora": ("qwen2", "causal", {"use_dora": True}),
    "biases": ("gpt2", "classification", {"bias": "all"}),
    "norms": ("llama", "causal", {"modules_to_save": ["input_layernorm"]}),
    "layer norms": ("bert", "classification", {"modules_to_save": ["LayerNorm", "classifier"]}),
}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_with_gradient_checkpointing_the_gradients_are_the_same(name: str, reentrant: bool) -> None:
    family, task, changes = CHECKPOINTED[name]
    batch = TASKS[task].batch(0)
    plain = lora_model(family, task, **changes)
    torch.manual_seed(SEED)  # checkpointing draws the same dropout masks a second time
    expected = per_example(plain, task, batch)
    model = checkpointed(lora_model(family, task, **changes), reentrant)
    calls = count_calls(model)
    torch.manual_seed(SEED)
    assert_same(per_example(model, task, batch), expected)
    assert set(calls.values()) == {2}, "each layer is computed again in the backward pass"


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[]),
        peft.VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["ia3", "vera", "prompt"],
)
def test_with_gradient_checkpointing_other_adapters_have_the_gradients_of_the_loop(
    config: peft.PeftConfig, reentrant: bool
) -> None:
    batch = TASKS["causal"].batch(0)
    expected = one_by_one(with_adapter(base_model("llama", "causal"), config), "causal", batch)
    model = checkpointed(with_adapter(base_model("llama", "causal"), config), reentrant)
    assert_same(per_example(model, "causal", batch), expected)


def half_model(family: str, task: str, **changes: Any) -> Any:
    """A base in bfloat16; PEFT keeps the adapter in float32."""
    base = base_model(family, task).to(torch.bfloat16)
    return with_adapter(base, lora(family, task, **changes))


HALVES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "masked", {}),
    "gpt2": ("gpt2", "causal", {}),
    "llama": ("llama", "causal", {}),
    "t5": ("t5-gated", "seq2seq", {}),  # a ReLU near zero is on or off by rounding
    "dora": ("llama", "causal", {"use_dora": True}),
}


@pytest.mark.parametrize("name", HALVES)
def test_over_a_bfloat16_base_the_gradients_are_close_and_in_the_parameters_precision(
    name: str,
) -> None:
    family, task, changes = HALVES[name]
    model, batch = half_model(family, task, **changes), TASKS[task].batch(0)
    precision = {n: p.dtype for n, p in trained(model)}
    assert all(t == torch.float32 for n, t in precision.items() if "lora_" in n)
    expected = one_by_one(model, task, batch)
    found = per_example(model, task, batch)
    assert {n: g.dtype for n, g in found.items()} == precision
    assert_same(found, expected, HALF, rows=False)


def test_a_head_in_bfloat16_is_refused() -> None:
    model = half_model("llama", "tokens")
    with pytest.raises(ConfideError, match=r"train\.precision.*score"):
        PerExample(model)
    assert "_per_example" not in vars(model)


def test_a_float32_head_over_a_bfloat16_body_has_float32_gradients() -> None:
    model, batch = half_model("llama", "classification"), TASKS["classification"].batch(0)
    head = model.base_model.model.score.modules_to_save["default"].float()
    plain = head.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    expected = one_by_one(model, "classification", batch)
    plain.remove()  # the engine computes in the weight's precision by itself
    found = per_example(model, "classification", batch)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert_same(found, expected, HALF, rows=False)


def test_under_autocast_the_gradients_are_close_and_float32() -> None:
    model, batch = lora_model("bert", "classification"), TASKS["classification"].batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = one_by_one(model, "classification", batch)
        found = per_example(model, "classification", batch)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert_same(found, expected, HALF, rows=False)


def by_opacus(model: Any, task: str, batch: Batch) -> Gradients:
    hooked = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    hooked.train()
    with warnings.catch_warnings():
        # True of the first layer, whose input needs no gradient, and harmless.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        losses_of(hooked, task, batch).sum().backward()
    found = samples(model)
    hooked.cleanup()
    return found


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("gpt2", "causal"), ("t5", "seq2seq")]
)
def test_opacus_hooks_find_the_same(family: str, task: str) -> None:
    batch = TASKS[task].batch(0)
    expected = by_opacus(lora_model(family, task), task, batch)
    assert_same(per_example(lora_model(family, task), task, batch), expected)


@pytest.mark.parametrize("wrong", ["mean", "swapped", "one row"])
def test_the_comparison_sees_a_wrong_gradient(wrong: str) -> None:
    model, batch = lora_model("bert", "classification"), TASKS["classification"].batch(0)
    expected = one_by_one(model, "classification", batch)
    spoilt = {n: g.clone() for n, g in expected.items()}
    name = next(iter(spoilt))
    if wrong == "mean":
        spoilt[name] /= batch.size
    elif wrong == "swapped":
        spoilt[name] = spoilt[name].flip(0)
    else:
        spoilt[name][-1] *= 1 + 10 * EXACT
    found = differences(spoilt, expected)
    assert found.pop(name) > EXACT
    assert not any(found.values())


def test_the_loop_is_the_gradient_of_the_sum_taken_apart() -> None:
    model, batch = lora_model("distilbert", "classification"), TASKS["classification"].batch(0)
    rows = one_by_one(model, "classification", batch)
    with attached(model) as engine:
        engine.forget()
    losses_of(model, "classification", batch).sum().backward()
    for name, parameter in trained(model):
        assert parameter.grad is not None
        assert (rows[name].sum(0) - parameter.grad).norm() <= EXACT * parameter.grad.norm()
