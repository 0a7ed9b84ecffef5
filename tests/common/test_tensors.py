"""Named tensors as one vector, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.common.adapter.schema import flatten, unflatten

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@given(SHAPES)
def test_flatten_and_unflatten_are_inverse(shapes: list[tuple[int, ...]]) -> None:
    named = [(f"t{i}", shape) for i, shape in enumerate(shapes)]
    tensors = {name: torch.randn(shape) for name, shape in named}
    back = unflatten(flatten(tensors, named), named)
    assert all(torch.equal(back[name], tensors[name]) for name, _ in named)


def test_the_order_is_that_of_the_shapes() -> None:
    tensors = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    assert flatten(tensors, [("b", (1,)), ("a", (1,))]).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_vector_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="elements"):
        unflatten(torch.zeros(size), [("a", (2, 2))])
