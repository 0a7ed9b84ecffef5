"""The check before training: seen to refuse what it is for, and to leave good models alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from confide.client.training import self_check
from confide.client.training.per_example import PerExample
from confide.client.training.self_check import check_per_example, longest_pair
from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models.batches import Room
from confide.common.models.loading import load_model
from confide.common.models.trunk import Trunk
from confide.common.settings import from_flat
from confide.common.tasks.classification import Classification
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
    folder, pooling = tiny.save_model(tmp_path, kind), tiny.pooling_of(kind)
    check(folder, aggregate__method=method, task__pooling=pooling)


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


def _shorter(self: Any, computed: range, **how: bool) -> Any:
    """What a trunk once lent: only the layers that are computed, so that others change place."""
    layers = self._base.get_submodule(self._family[0]).get_submodule(self._family[2])
    kept = {name: layers._modules.pop(name) for name in [*layers._modules]}
    layers._modules.update({str(i): kept[str(n)] for i, n in enumerate(computed)})
    try:
        with KNOWN_LEND(self, range(len(computed)), **how):
            yield
    finally:
        layers._modules.clear()
        layers._modules.update(kept)


KNOWN_LEND = Trunk._lend


def test_frozen_layers_that_are_not_the_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers#35896: both ways through the frozen layers are wrong in the same way, and only
    for texts longer than the window, so that three short ones, each alone, show nothing."""
    folder = tiny.save_model(tmp_path, "qwen2")
    path = folder / "config.json"
    kinds = {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}
    window = {"sliding_window": 16, "use_sliding_window": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | kinds | window))
    # A mean is refused for another reason; with the model's own head nothing is frozen.
    monkeypatch.setattr(models, "of_texts_alone", lambda _: None)
    check(folder)  # right as it is
    models._load.cache_clear()
    monkeypatch.setattr(Trunk, "_lend", contextmanager(_shorter))
    with pytest.raises(ConfideError, match=r"with frozen layers .* up to 32 tokens") as caught:
        check(folder)
    assert "lora.layers = 0" in caught.value.hint
    assert "qwen2" in caught.value.message
    assert "windows" in caught.value.message


def test_what_only_long_texts_show_is_found(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a limit of experts or a block of attention does: short texts are apart, long ones not."""
    known = Classification.logits

    def mixed(self: Any, output: Any, attention_mask: Tensor) -> Tensor:
        logits = known(self, output, attention_mask)
        return logits - logits.mean(0) if attention_mask.shape[1] > LIMIT else logits

    monkeypatch.setattr(Classification, "logits", mixed)
    check(tiny_model, train__max_length=LIMIT)
    models._load.cache_clear()
    with pytest.raises(ConfideError, match=r"train\.self-check.*alone and beside others") as caught:
        check(tiny_model, train__max_length=LIMIT + 1)
    assert f"up to {LIMIT + 1} tokens" in caught.value.message


LIMIT = 20


@pytest.mark.parametrize(("longest", "tokens", "pair"), [(64, 4096, 64), (64, 100, 50), (8, 4, 2)])
def test_two_texts_lie_beside_each_other_up_to_a_length(
    longest: int, tokens: int, pair: int
) -> None:
    assert longest_pair(longest, Room(tokens=tokens)) == pair
    lengths = self_check._batches(longest, Room(tokens=tokens))
    assert max(max(batch) for batch in lengths) == longest, "the greatest length is always tried"


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
    from confide.client.training.per_example import lora

    known = lora.outer
    monkeypatch.setattr(lora, "outer", lambda *a: torch.roll(known(*a), 1, dims=0))
    with pytest.raises(ConfideError, match=r"train\.self-check"):
        check(tiny_model)
