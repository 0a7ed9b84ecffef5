"""Regression: a number in a range that the coordinator chose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from confide.common.errors import ConfideError
from confide.common.settings import TaskSpec
from confide.common.tasks import Example, task_for
from confide.common.text.readers import Record

SPEC = TaskSpec(kind="regression", low=0.0, high=5.0)


def encode(*targets: str | None) -> list[Example]:
    def words(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1, 2] for _ in texts]}

    words.pad_token_id = 0  # type: ignore[attr-defined]
    return task_for(SPEC).encode([Record("a day", t) for t in targets], words, 8)


def test_targets_are_numbers() -> None:
    assert [e.target for e in encode("0", "2.5", "5")] == [0.0, 2.5, 5.0]


@pytest.mark.parametrize("target", ["5.1", "-0.1", "nan", "inf", "many", "", None])
def test_what_is_no_number_in_the_range_is_named_by_its_place(target: str | None) -> None:
    with pytest.raises(ConfideError, match=r"data\.bad-number.*record 2.*\[0, 5\]") as caught:
        encode("1", target)
    assert "many" not in str(caught.value)


def test_each_loss_is_the_squared_error_of_its_own_example() -> None:
    task = task_for(SPEC)
    losses = task.losses(torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 4.5]))
    assert losses.tolist() == [4.0, 0.25]


def test_an_answer_is_the_mean_over_the_tokens() -> None:
    output = SimpleNamespace(logits=torch.tensor([[[2.0], [4.0], [99.0]]]))
    logits = task_for(SPEC).logits(output, torch.tensor([[1, 1, 0]]))
    assert [p.answer for p in task_for(SPEC).tell(logits)] == [3.0]
