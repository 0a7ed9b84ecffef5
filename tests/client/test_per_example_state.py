"""What the engine leaves on a model, takes off it again, and refuses to be put on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from confide.client.training.per_example import PerExample
from confide.common.errors import ConfideError
from tests.client.architectures import INNER, LABELS, TASKS, WIDTH, base_model
from tests.client.gradients import (
    EXACT,
    assert_same,
    attached,
    lora_model,
    losses_of,
    one_by_one,
    per_example,
    samples,
    trained,
    with_adapter,
)
from tests.client.test_private_step import clipped_sum, optimizer_for, plan

DROPOUT = 0.1
MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: lora_model("bert", "classification"),
    "gpt2": lambda: lora_model("gpt2", "classification", modules_to_save=["wpe", "score"]),
    "llama": lambda: lora_model("llama", "classification", use_dora=True),
    "t5": lambda: lora_model("t5", "classification", bias="all"),
    "ia3": lambda: with_adapter(
        base_model("bert", "classification"),
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["value"], feedforward_modules=[]),
    ),
    "prompt": lambda: with_adapter(
        base_model("bert", "classification"),
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ),
}
TASK = "classification"


def backward(model: Any, seed: int = 0, examples: int | None = None) -> None:
    batch = TASKS[TASK].batch(seed)
    if examples is not None:
        batch = type(batch)(
            {k: v[:examples] for k, v in batch.inputs.items()}, batch.targets[:examples]
        )
    losses_of(model, TASK, batch).sum().backward()


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that could be hung on a model: types, attributes, how many hooks of each kind."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        kept = vars(module)
        hooks = {k: len(v) for k, v in kept.items() if k.endswith("_hooks") and v is not None}
        found[name] = (type(module), sorted(kept), hooks, kept.get("forward"))
    for name, parameter in model.named_parameters():
        found[name] = (
            type(parameter),
            id(parameter),
            sorted(vars(parameter)),
            parameter.requires_grad,
            parameter._backward_hooks,
            parameter.grad is None,
        )
    return found


def changes(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    names = after.keys() | before.keys()
    return {n: after.get(n) for n in names if after.get(n) != before.get(n)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]().train()


def test_the_keys_and_values_of_the_state_are_pefts_own_while_attached(model: Any) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [n for n, _ in model.named_parameters()]
    with attached(model):
        backward(model)
        after = model.state_dict()
        assert [n for n, _ in model.named_parameters()] == names
        assert list(after) == list(before)
        assert all(torch.equal(after[k], before[k]) for k in before)


def test_no_gradient_is_summed_over_the_batch(model: Any) -> None:
    with attached(model):
        backward(model)
        assert all(p.grad is None for p in model.parameters())
        for _, parameter in trained(model):
            assert parameter.grad_sample.dtype == torch.float32  # type: ignore[attr-defined]


def test_once_removed_nothing_is_left_on_modules_and_parameters(model: Any) -> None:
    before = state(model)
    engine = PerExample(model)
    backward(model)
    engine.remove_hooks()
    assert changes(state(model), before) == {}


def test_after_a_private_step_and_a_clean_up_nothing_is_left_either(model: Any) -> None:
    before = state(model)
    engine = PerExample(model)
    optimizer = optimizer_for([p for _, p in trained(model)], plan())
    backward(model)
    optimizer.step()
    engine.forget()
    engine.cleanup()
    assert changes(state(model), before) == {}


def test_once_removed_the_model_trains_as_it_did(model: Any) -> None:
    batch = TASKS[TASK].batch(0)
    expected = one_by_one(model, TASK, batch)
    per_example(model, TASK, batch)
    found = one_by_one(model, TASK, batch)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_it_can_be_attached_again_once_it_was_removed(model: Any) -> None:
    batch = TASKS[TASK].batch(0)
    first = per_example(model, TASK, batch)
    assert_same(per_example(model, TASK, batch), first)


def test_a_second_engine_on_the_same_model_is_refused_and_the_first_goes_on(model: Any) -> None:
    batch = TASKS[TASK].batch(0)
    expected = one_by_one(model, TASK, batch)
    with attached(model):
        with pytest.raises(ConfideError) as raised:
            PerExample(model)
        assert raised.value.code == "train.attached-twice"
        assert raised.value.hint
        backward(model)
        assert_same(samples(model), expected)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**TASKS[TASK].batch(0).inputs).logits
    return out


def test_in_evaluation_the_outputs_are_those_of_the_plain_model_bit_for_bit(model: Any) -> None:
    expected = logits(model.eval())
    with attached(model):
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), expected)


def test_while_it_trains_the_outputs_are_those_of_the_plain_model_to_rounding(model: Any) -> None:
    expected = logits(model)
    with attached(model):
        without_graph = logits(model)
        with_graph = model(**TASKS[TASK].batch(0).inputs).logits
    for found in (without_graph, with_graph):
        assert (found - expected).norm() <= EXACT * expected.norm()


def test_with_the_adapter_switched_off_the_outputs_are_the_bases_own() -> None:
    model = lora_model("llama", "causal").train()
    inputs = TASKS["causal"].batch(0).inputs
    with torch.no_grad(), model.disable_adapter():
        expected = model(**inputs).logits
    with attached(model), torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(**inputs).logits, expected)


def test_after_forget_the_next_batch_does_not_see_the_last(model: Any) -> None:
    second = TASKS[TASK].batch(1)
    expected = one_by_one(model, TASK, second)
    with attached(model) as engine:
        backward(model, seed=0, examples=second.size - 1)
        engine.forget()
        assert samples(model) == {}
        backward(model, seed=1)
        assert_same(samples(model), expected)


def test_a_forward_pass_without_a_backward_leaves_nothing_for_the_next_batch(model: Any) -> None:
    expected = one_by_one(model, TASK, TASKS[TASK].batch(1))
    with attached(model) as engine:
        losses_of(model, TASK, TASKS[TASK].batch(0))
        engine.forget()
        backward(model, seed=1)
        assert_same(samples(model), expected)


def test_a_second_backward_of_the_same_batch_adds_to_the_same_rows(model: Any) -> None:
    expected = one_by_one(model, TASK, TASKS[TASK].batch(0))
    with attached(model):
        backward(model)
        backward(model)
        assert_same(samples(model), {n: 2 * g for n, g in expected.items()})


def test_a_second_batch_of_another_size_is_refused_until_the_first_is_taken_off() -> None:
    model = MODELS["bert"]().train()
    with attached(model):
        backward(model)
        with pytest.raises(ConfideError) as raised:
            backward(model, examples=2)
    assert raised.value.code == "train.batch-shape"
    assert raised.value.hint


def test_a_private_step_takes_the_clipped_sum_of_the_loops_gradients(model: Any) -> None:
    parameters = [p for _, p in trained(model)]
    rows = one_by_one(model, TASK, TASKS[TASK].batch(0))
    flat = torch.cat([g.flatten(1) for g in rows.values()], dim=1)  # (B, trained values)
    before = [p.detach().clone() for p in parameters]
    with attached(model):
        optimizer = optimizer_for(parameters, plan())
        backward(model)
        optimizer.step()
    moved = [(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)]
    expected = -clipped_sum(flat)  # the optimizer divides by one
    assert (torch.cat(moved) - expected).norm() <= EXACT * expected.norm()


def test_while_it_trains_all_that_is_frozen_is_at_rest(model: Any) -> None:
    """transformers#29429: in training mode a frozen router draws noise, and a layer leaves itself
    out; neither is any record's doing."""
    engine = PerExample(model)
    engine.train()
    layers = [module for module, name in engine._patched if name == "forward"]
    own = {id(m) for module in layers for m in module.modules()}
    assert all(module.training for module in layers)
    frozen = [m for m in model.modules() if id(m) not in own and m is not model]
    assert len(frozen) > 9
    assert not any(module.training for module in frozen)
    engine.remove_hooks()


def test_a_batch_that_reached_every_trained_parameter_passes_the_check(model: Any) -> None:
    with attached(model) as engine:
        backward(model)
        engine.check()


def untouched() -> Any:
    """T5 looks words up in its encoder's and decoder's own tables; a copy of this one is dead."""
    return lora_model("t5", TASK, modules_to_save=["shared", "classification_head"])


class Aside(nn.Module):
    """Uses the weight of its head once more, outside of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, x: Tensor) -> Any:
        weight = next(p for p in self.head.parameters() if p.requires_grad)
        return SimpleNamespace(logits=self.head(self.first(x)) + weight.sum())


def aside() -> Any:
    return with_adapter(
        Aside(), peft.LoraConfig(target_modules=["first"], modules_to_save=["head"])
    )


def test_a_trained_parameter_that_nothing_uses_fails_the_check() -> None:
    model = untouched().train()
    with attached(model) as engine:
        backward(model)
        with pytest.raises(ConfideError) as raised:
            engine.check()
    assert raised.value.code == "train.no-gradient"
    assert raised.value.hint


def test_a_parameter_that_is_used_outside_its_layer_fails_the_check() -> None:
    model = aside().train()
    with attached(model) as engine:
        model(torch.ones(2, WIDTH)).logits.sum().backward()
        with pytest.raises(ConfideError) as raised:
            engine.check()
    assert raised.value.code == "train.unsupported-layer"
    assert raised.value.hint


def test_a_trained_layer_left_in_evaluation_fails_the_check() -> None:
    model = MODELS["bert"]().train()
    with attached(model) as engine:
        model.base_model.model.classifier.eval()
        backward(model)
        with pytest.raises(ConfideError) as raised:
            engine.check()
    assert raised.value.code == "train.unsupported-layer"


class Net(nn.Module):
    """A small network of the layer kinds that are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, INNER)
        self.norm = nn.BatchNorm1d(INNER)
        self.head = nn.Linear(INNER, LABELS)

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.norm(self.first(x))))


def t5_positions() -> Any:
    return lora_model("t5", "seq2seq", modules_to_save=["relative_attention_bias"])


def dropout_in(**changes: Any) -> Callable[[], Any]:
    return lambda: lora_model("bert", TASK, lora_dropout=DROPOUT, **changes)


def vera_dropout() -> Any:
    config = peft.VeraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query"], vera_dropout=DROPOUT
    )
    return with_adapter(base_model("bert", TASK), config)


def batch_norm() -> Any:
    return with_adapter(Net(), peft.LoraConfig(target_modules=["first"], modules_to_save=["norm"]))


REFUSED: dict[str, Callable[[], Any]] = {
    "t5's table of relative positions": t5_positions,
    "dropout in dora": dropout_in(use_dora=True),
    "dropout in lora on an embedding": dropout_in(target_modules=["word_embeddings", "query"]),
    "dropout in vera": vera_dropout,
    "batch normalisation": batch_norm,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_told_apart_by_example_is_refused_with_a_hint(name: str) -> None:
    model = REFUSED[name]()
    before = state(model)
    with pytest.raises(ConfideError) as raised:
        PerExample(model)
    assert raised.value.code == "train.unsupported-layer"
    assert raised.value.hint
    assert changes(state(model), before) == {}, "a refused model is left as it was"


def test_dropout_of_rate_zero_is_not_refused() -> None:
    model = lora_model("bert", TASK, use_dora=True, lora_dropout=0.0)
    with attached(model) as engine:
        backward(model)
        engine.check()
        assert all(p.grad_sample.any() for p in engine.trained if p.grad_sample.dim() == 2)


def test_an_adapter_that_was_merged_meanwhile_is_not_added_twice() -> None:
    model = lora_model("bert", TASK).train()
    inputs = TASKS[TASK].batch(0).inputs
    expected = model(**inputs).logits
    with attached(model) as engine:
        model.merge_adapter()
        model.train()
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
        backward(model)
        with pytest.raises(ConfideError, match=r"train\.no-gradient"):
            engine.check()
        model.unmerge_adapter()
