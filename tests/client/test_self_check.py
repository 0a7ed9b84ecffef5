"""The check before training: seen to refuse what it is for, and to leave good models alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from confide.client.per_example import PerExample
from confide.client.self_check import check_per_example
from confide.common import models
from confide.common.errors import ConfideError
from confide.common.models import load_model
from confide.common.settings import from_flat
from confide.common.tasks import Classification
from tests import tiny


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


def check(folder: Path, **changes: Any) -> None:
    settings = from_flat(tiny.config(folder, folder, folder, **changes))
    loaded = load_model(settings)
    check_per_example(PerExample(loaded.model), loaded)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("method", ["lora", "ffa"])
def test_models_whose_examples_are_apart_pass(tmp_path: Path, kind: str, method: str) -> None:
    check(tiny.save_model(tmp_path, kind), aggregate__method=method)


def test_dropout_of_the_adapter_does_not_look_like_mixing(tiny_model: Path) -> None:
    check(tiny_model, lora__dropout=0.5, lora__layers=0, privacy__trust="off")


def averaged(self: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """What ``outputs.loss`` is: a mean over the batch."""
    return cross_entropy(logits, targets).unsqueeze(0)


def centred(self: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """A loss that looks at the other examples."""
    return cross_entropy(logits - logits.mean(0), targets, reduction="none")


@pytest.mark.parametrize("losses", [averaged, centred])
def test_a_loss_that_mixes_examples_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, losses: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(Classification, "losses", losses)
    with pytest.raises(ConfideError, match=r"train\.self-check"):
        check(tiny_model)


def test_a_trained_tensor_that_no_layer_reports_is_refused(tiny_model: Path) -> None:
    """Its gradient would be summed over the batch, unclipped."""
    settings = from_flat(tiny.config(tiny_model, tiny_model, tiny_model))
    loaded = load_model(settings)
    engine = PerExample(loaded.model)
    layer, _ = engine._patched[0]
    del vars(layer)["forward"]
    with pytest.raises(ConfideError, match=r"train\.unsupported-layer"):
        check_per_example(engine, loaded)


def test_gradients_of_the_wrong_example_are_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.client.per_example import lora

    known = lora.outer
    monkeypatch.setattr(lora, "outer", lambda *a: torch.roll(known(*a), 1, dims=0))
    with pytest.raises(ConfideError, match=r"train\.self-check"):
        check(tiny_model)
