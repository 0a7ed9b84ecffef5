"""Before a model is trained: are its per-example gradients what they should be?

On made-up examples, so that it costs no privacy: three of different lengths in one batch, against
each alone through plain autograd. That finds a loss that is averaged over the batch or over its
tokens, a layer that mixes examples, a layer whose first axis is not the batch, and padding that
matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..common.batches import EncodedText, forward
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.tasks import Example
from .per_example import PerExample

# Never as many examples as tokens: an axis that is mistaken for the batch shows by its length.
_LENGTHS = (5, 9, 7)
_SPREAD = 0.05  # of the values tried; at zero most gradients of LoRA vanish
_EXACT, _HALF = 1e-3, 0.1  # relative, allowed in float32 and in bfloat16


def check_per_example(engine: PerExample, loaded: LoadedModel) -> None:
    """Refuse a model whose examples do not have gradients of their own. The trained values are
    other ones afterwards.

    Raises:
        ConfideError: ``train.self-check``, or what the engine refuses.
    """
    engine.forget()
    generator = torch.Generator().manual_seed(0)  # of made-up values: no secret is drawn from it
    trained: list[Any] = list(engine.trained)
    for parameter in trained:
        values = _SPREAD * torch.randn(parameter.shape, generator=generator)
        parameter.data = values.to(parameter.device)
    text = EncodedText(_made_up(loaded, generator), loaded)
    with _without_dropout(loaded.model):
        loaded.model.train()
        _backward(loaded, text, range(len(text)))
        engine.check()
        together = [_flat([p.grad_sample[i] for p in trained]) for i in range(len(text))]
        engine.forget()
        loaded.model.eval()  # the engine keeps out of the way
        for index in range(len(text)):
            _backward(loaded, text, [index])
            alone = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in trained])
            engine.forget()
            _compare(together[index], alone, _HALF if loaded.trunk.bfloat16 else _EXACT)


def _backward(loaded: LoadedModel, text: EncodedText, indices: range | list[int]) -> None:
    task = loaded.task
    # One batch, whatever its padding: that padding does not matter is part of the question.
    batch = text.together(indices)
    task.losses(forward(loaded, task, batch), batch.targets).sum().backward()


def _compare(together: Tensor, alone: Tensor, tolerance: float) -> None:
    difference, size = (together - alone).norm(), alone.norm()
    if not torch.isfinite(difference) or difference > tolerance * size:
        raise ConfideError(
            "train.self-check",
            f"A made-up example's gradient in a batch is off by {difference / size:.2g} from its"
            f" gradient alone (allowed: {tolerance:g}).",
            "The model or its loss mixes the examples of a batch; another base model may not.",
        )


def _made_up(loaded: LoadedModel, generator: torch.Generator) -> list[Example]:
    lengths = [min(length, loaded.max_length) for length in _LENGTHS]
    return loaded.task.made_up(lengths, len(loaded.tokenizer), generator, loaded)


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
