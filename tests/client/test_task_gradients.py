"""Every task: an example's gradient is its own, whatever stands beside it in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from confide.client.training.per_example import PerExample
from confide.client.training.self_check import check_per_example
from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.tasks import Example, tokens
from confide.common.text.readers import Record
from tests import tiny
from tests.client.gradients import EXACT, Gradients, assert_same, attached, move, samples, trained

# Of different lengths, and more than there are tokens in none of them.
RECORDS = 4


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: tiny.save_task_model(tmp_path_factory.mktemp(task), task) for task in tiny.TASKS}


def load(folder: Path, task: str, **changes: Any) -> LoadedModel:
    """The model with every trained value moved: behind a zero no wrong gradient is seen."""
    wanted = {**tiny.TASKS[task], "aggregate__method": "lora", "lora__layers": 0, **changes}
    loaded = load_model(from_flat(tiny.config(folder, folder, folder, **wanted)))
    move(loaded.model)
    return loaded


def examples(loaded: LoadedModel, task: str) -> list[Example]:
    """Records as they are used once, with whatever is drawn for them."""
    told = [tiny.for_task(task, row) for row in tiny.rows(RECORDS, seed=5)]
    named = loaded.task.spec.kind not in ("masked", "spans") and task != "causal"
    records = [Record(row["text"], row["label"] if named else None) for row in told]
    encoded = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    generator = torch.Generator().manual_seed(3)
    return [loaded.task.redraw(e, loaded, generator) for e in encoded]


def losses(loaded: LoadedModel, text: EncodedText, indices: list[int]) -> Tensor:
    batch = text.together(indices)
    return loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)


def one_by_one(loaded: LoadedModel, text: EncodedText) -> Gradients:
    names, values = zip(*trained(loaded.model), strict=True)
    rows = [torch.autograd.grad(losses(loaded, text, [i]).sum(), values) for i in range(RECORDS)]
    columns = zip(*rows, strict=True)
    return {name: torch.stack(column) for name, column in zip(names, columns, strict=True)}


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_gradients_in_a_batch_are_those_of_the_examples_alone(
    folders: dict[str, Path], task: str, layers: int
) -> None:
    loaded = load(folders[task], task, lora__layers=layers)
    text = EncodedText(examples(loaded, task), loaded)
    expected = one_by_one(loaded, text)
    assert all(g.flatten(1).norm(dim=1).gt(0).all() for n, g in expected.items() if "lora" in n)
    with attached(loaded.model):
        loaded.model.train()
        losses(loaded, text, list(range(RECORDS))).sum().backward()
        found = samples(loaded.model)
    assert_same(found, expected, EXACT)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_loss_does_not_depend_on_its_neighbours(folders: dict[str, Path], task: str) -> None:
    loaded = load(folders[task], task)
    text = EncodedText(examples(loaded, task), loaded)
    with torch.no_grad():
        together = losses(loaded, text, list(range(RECORDS)))
        for index in range(RECORDS):
            alone = losses(loaded, text, [index])
            assert torch.allclose(together[index], alone[0], rtol=1e-4), index
        assert len({round(float(loss), 4) for loss in together}) == RECORDS


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_self_check_passes(folders: dict[str, Path], task: str) -> None:
    loaded = load(folders[task], task, aggregate__method="ffa")
    check_per_example(PerExample(loaded.model), loaded)


def over_the_batch(logits: Tensor, targets: Tensor) -> Tensor:
    """A mean over the batch's tokens, spread over its examples: what one long record rescales."""
    each = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    return each.sum(1) / (targets != -100).sum() * len(targets)


@pytest.mark.parametrize("task", ["seq2seq", "causal", "masked", "spans"])
def test_a_mean_over_the_tokens_of_the_batch_is_refused(
    folders: dict[str, Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "token_losses", over_the_batch)
    loaded = load(folders[task], task)
    with pytest.raises(ConfideError, match=r"train\.self-check"):
        check_per_example(PerExample(loaded.model), loaded)
