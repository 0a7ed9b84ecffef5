"""Per-example gradients two ways: all examples at once, and the slow reference.

The reference is what a per-example gradient means: plain autograd over one example at a time, on
the model before anything is attached to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from confide.client.training.per_example import PerExample
from tests.client.architectures import FAMILIES, SPREAD, TASKS, Batch, base_model
from tests.client.masks import Masks

EXACT = 1e-5  # relative, float32
DOUBLE = 1e-11  # the same in float64
# Of some tensors (the bias of a key, which softmax does not see) the gradient is rounding and
# nothing else. It is measured against this part of the example's gradient over all tensors.
NEGLIGIBLE = 1e-3
RANK, ALPHA = 4, 6.0

Gradients = dict[str, Tensor]  # (B, *shape) by the parameter's name


def with_adapter(base: Any, config: PeftConfig, frozen: str = "") -> Any:
    """The PeftModel with every trained value moved at random: LoRA's B begins as zero, and behind
    a zero a wrong gradient of A cannot be seen. ``frozen`` is part of a name: of no gradient."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that is going to go.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if frozen and frozen in name:
            parameter.requires_grad_(False)
    move(model)
    return model


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trained(model):
        noise = SPREAD * torch.randn(parameter.shape, generator=generator)
        parameter.data += noise.to(parameter.dtype)


def lora(family: str, task: str, **changes: Any) -> LoraConfig:
    """LoRA on every linear layer of the body, and a plain head."""
    known = FAMILIES[family]
    settings = {
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": known.targets.split(),
        "modules_to_save": list(known.head) if task == "classification" else None,
        "task_type": TASKS[task].peft,
        "fan_in_fan_out": family == "gpt2",
    }
    return LoraConfig(**{**settings, **changes})


def lora_model(family: str, task: str, **changes: Any) -> Any:
    return with_adapter(base_model(family, task), lora(family, task, **changes))


def two_adapters(family: str, **changes: Any) -> Any:
    """Two LoRAs of different rank and scale, both in use and both trained."""
    model = with_adapter(base_model(family, "causal"), lora(family, "causal", **changes))
    second = lora(family, "causal", r=RANK - 1, lora_alpha=2 * ALPHA, **changes)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    move(model)
    assert sum("second" in n for n, _ in trained(model)) == len(trained(model)) // 2
    return model


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def losses_of(model: Any, task: str, batch: Batch) -> Tensor:
    """(B,)."""
    return TASKS[task].losses(model(**batch.inputs).logits, batch.targets)


def one_by_one(
    model: Any, task: str, batch: Batch, before: Callable[[int], None] = lambda index: None
) -> Gradients:
    """The slow reference; ``before`` is called with each example's index."""
    model.train()
    names, values = zip(*trained(model), strict=True)
    rows = []
    for index in range(batch.size):
        before(index)
        loss = losses_of(model, task, batch.example(index)).sum()
        rows.append(torch.autograd.grad(loss, values))
    columns = zip(*rows, strict=True)
    return {n: torch.stack(rows_of_one) for n, rows_of_one in zip(names, columns, strict=True)}


@contextmanager
def attached(model: nn.Module) -> Iterator[PerExample]:
    engine = PerExample(model)
    try:
        yield engine
    finally:
        engine.remove_hooks()


def samples(model: nn.Module) -> Gradients:
    """What hangs on the trained parameters now; one that was not reached is left out."""
    found = {n: getattr(p, "grad_sample", None) for n, p in trained(model)}
    return {n: g.clone() for n, g in found.items() if g is not None}


def per_example(model: Any, task: str, batch: Batch) -> Gradients:
    """What is tested: all examples at once."""
    with attached(model):
        model.train()
        losses_of(model, task, batch).sum().backward()
        summed = [n for n, p in trained(model) if p.grad is not None]
        assert not summed, summed
        return samples(model)


def _norms(gradient: Tensor) -> Tensor:
    norms: Tensor = gradient.flatten(1).norm(dim=1)  # (B,)
    return norms


def _ratio(wrong: Tensor, size: Tensor) -> Tensor:
    """Nothing wrong is 0 of anything; what is not a number is infinitely wrong."""
    ratio: Tensor = (wrong / size).nan_to_num(nan=float("inf"))
    return ratio.masked_fill(wrong == 0, 0.0)


def differences(
    found: Gradients, expected: Gradients, rows: bool = True, negligible: float = NEGLIGIBLE
) -> dict[str, float]:
    """By name, the relative difference of the tensor or, if larger, that of its worst row."""
    whole = torch.stack([_norms(g) for g in expected.values()]).norm(dim=0)  # (B,)
    out = {}
    for name, reference in expected.items():
        if name not in found or found[name].shape != reference.shape:
            out[name] = float("inf")
            continue
        wrong = _norms(found[name] - reference)  # (B,)
        size, floor = _norms(reference), negligible * whole
        parts = [_ratio(wrong.norm(), torch.maximum(size.norm(), floor.norm()))]
        if rows:
            parts.append(_ratio(wrong, torch.maximum(size, floor)).max())
        out[name] = float(torch.stack(parts).max())
    return out


def assert_same(
    found: Gradients, expected: Gradients, tolerance: float = EXACT, rows: bool = True
) -> None:
    """Every trained tensor of the reference was found, and nothing else, and is the same."""
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    wrong = {n: d for n, d in differences(found, expected, rows).items() if not d <= tolerance}
    assert not wrong, wrong


def assert_matches_the_loop(model: PeftModel, task: str, seed: int = 0) -> None:
    batch = TASKS[task].batch(seed)
    expected = one_by_one(model, task, batch)
    assert_same(per_example(model, task, batch), expected)
    assert_exact(model, task, seed)


def assert_exact(model: PeftModel, task: str, seed: int = 0) -> None:
    """In float64, where rounding hides next to nothing, row by row. The model stays float64."""
    batch = TASKS[task].batch(seed)
    model.double()
    expected = one_by_one(model, task, batch)
    found = per_example(model, task, batch)
    assert expected.keys() == found.keys()
    assert {rows.dtype for rows in found.values()} == {torch.float64}
    off = differences(found, expected, negligible=NEGLIGIBLE / 100)
    wrong = {name: difference for name, difference in off.items() if not difference <= DOUBLE}
    assert not wrong, wrong


def assert_matches_the_loop_with_dropout(model: PeftModel, task: str) -> None:
    """All at once as one at a time under the same masks."""
    batch, masks = TASKS[task].batch(0), Masks()
    with masks:
        found = per_example(model, task, batch)
        expected = one_by_one(model, task, batch, before=masks.replay)
    assert masks.drawn
    masks.check_used_up()
    assert_same(found, expected)
