"""Before a model is trained: are its per-example gradients what they should be?

On made-up examples, so that it costs no privacy: several of different lengths in one batch, against
each alone through plain autograd and the *whole* model, nothing of it remembered. That finds a loss
that is averaged over the batch or over its tokens, a layer that mixes examples, a layer whose first
axis is not the batch, padding that matters, and frozen layers whose result, once computed, is not
what the model makes of it. A short text beside one of the greatest length, and that one by itself,
find what only long texts show: windows of attention, blocks, limits of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import ConfideError
from ...common.models.batches import ROOM, EncodedText, Room, forward
from ...common.models.loading import LoadedModel
from ...common.tasks import Example
from ...common.tasks.tokens import vocabulary
from .per_example import PerExample

# Never as many examples as tokens: an axis that is mistaken for the batch shows by its length.
_LENGTHS = (5, 9, 7)
_SHORT = 6  # beside a long one
_SPREAD = 0.05  # of the values tried; at zero most gradients of LoRA vanish
_EXACT, _HALF = 1e-3, 0.1  # relative, allowed in float32 and in bfloat16

# What in a configuration makes a record's gradient depend on others, or on the dice.
_REASONS = (
    ("expert_capacity", "its experts take a limited number of tokens, whosever they are"),
    ("num_hashes", "its attention draws hashes anew in each pass"),
    ("use_expectation", "its attention draws hashes anew in each pass"),
    ("num_landmarks", "its attention goes by means over the padded length"),
    ("tpu_short_seq_length", "it mixes the tokens of a text with the padding behind it"),
    ("block_size", "its attention goes by blocks of the padded length"),
    ("attention_window", "its attention goes by windows of the padded length"),
    ("conv_kernel_size", "its convolutions reach into the padding behind a text"),
    ("downsampling_rate", "it shortens a text by convolutions that reach into the padding"),
    ("sliding_window", "its layers attend to windows of the text"),
    ("num_local_experts", "it sends tokens to experts"),
    ("num_experts", "it sends tokens to experts"),
)


def check_per_example(engine: PerExample, loaded: LoadedModel, room: Room = ROOM) -> None:
    """Refuse a model whose examples do not have gradients of their own. The trained values are
    other ones afterwards.

    Args:
        room: of a physical batch; two texts lie beside each other up to the length that it holds
            twice, since longer ones never do.

    Raises:
        ConfideError: ``train.self-check``, or what the engine refuses.
    """
    engine.forget()
    generator = torch.Generator().manual_seed(0)  # of made-up values: no secret is drawn from it
    for parameter in engine.trained:
        values = _SPREAD * torch.randn(parameter.shape, generator=generator)
        parameter.data = values.to(parameter.device)
    with _without_dropout(loaded.model):
        for lengths in _batches(loaded.max_length, room):
            made_up = loaded.task.made_up(lengths, vocabulary(loaded), generator, loaded)
            _check(engine, loaded, made_up, max(lengths))


def longest_pair(longest: int, room: Room) -> int:
    """The greatest length, of at most ``longest`` tokens, of two texts in one physical batch."""
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room.holds(2, middle) else (low, middle - 1)
    return low


def _batches(longest: int, room: Room) -> list[list[int]]:
    """The lengths of each batch that is tried."""
    out = [[min(length, longest) for length in _LENGTHS]]
    pair = longest_pair(longest, room)
    if pair > max(_LENGTHS):
        out.append([_SHORT, pair])
    if longest > max(pair, *_LENGTHS):
        out.append([longest])
    return out


def _check(
    engine: PerExample, loaded: LoadedModel, examples: Sequence[Example], longest: int
) -> None:
    trained, text = engine.trained, EncodedText(examples, loaded)
    whole = replace(loaded, trunk=loaded.trunk.whole())
    engine.train()
    _backward(loaded, text, range(len(text)))
    engine.check()
    together = [_flat([_rows(p)[i] for p in trained]) for i in range(len(text))]
    engine.forget()
    loaded.model.eval()  # the engine keeps out of the way
    plain = EncodedText(examples, whole)
    for index, found in enumerate(together):
        expected = _alone(engine, whole, plain, index)
        if _off(found, expected) > _allowed(loaded):
            frozen = loaded.trunk.frozen and _alone(engine, loaded, text, index)
            apart = isinstance(frozen, Tensor) and _off(frozen, expected) > _allowed(loaded)
            _refuse(loaded, _off(found, expected), longest, apart=apart)


def _alone(engine: PerExample, loaded: LoadedModel, text: EncodedText, index: int) -> Tensor:
    """An example's gradient by plain autograd."""
    _backward(loaded, text, [index])
    alone = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in engine.trained])
    engine.forget()
    return alone


def _backward(loaded: LoadedModel, text: EncodedText, indices: range | list[int]) -> None:
    task = loaded.task
    # One batch, whatever its padding: that padding does not matter is part of the question.
    batch = text.together(indices)
    task.losses(forward(loaded, task, batch), batch.targets).sum().backward()


def _off(found: Tensor, expected: Tensor) -> float:
    """Relative; what is not a number is infinitely off."""
    difference, size = (found - expected).norm(), expected.norm()
    if not torch.isfinite(difference):
        return float("inf")
    return float(difference / size) if difference > 0 else 0.0


def _allowed(loaded: LoadedModel) -> float:
    return _HALF if loaded.trunk.bfloat16 else _EXACT


def _refuse(loaded: LoadedModel, off: float, longest: int, *, apart: bool) -> None:
    config = loaded.model.config
    why = next((why for name, why in _REASONS if getattr(config, name, None)), "")
    because = f", perhaps because {why}" if why else ""
    where, hint = (
        (
            "with frozen layers computed once and by the whole model",
            "Set lora.layers = 0, which computes every layer each time.",
        )
        if apart
        else (
            "alone and beside others",
            "The model or its loss mixes the examples of a batch; another base model may not"
            " (docs/models.md).",
        )
    )
    raise ConfideError(
        "train.self-check",
        f"The gradient of a made-up example differs by {off:.2g} of its length (allowed:"
        f" {_allowed(loaded):g}) {where}, texts of up to {longest} tokens. The model is of type"
        f" {config.model_type!r:.100}{because}.",
        hint,
    )


def _rows(parameter: Any) -> Tensor:
    rows: Tensor = parameter.grad_sample
    return rows


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    rates = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = 0.0
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate
