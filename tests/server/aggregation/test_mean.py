"""The mean of the holders' changes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from confide.common.errors import ConfideError
from confide.server.aggregation import mean_change

SIZE = 1000
HOLDERS = 7


def changes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-8, 8, HOLDERS)
    return {
        f"holder-{i:02d}": scales[i] * torch.randn(SIZE, generator=generator)
        for i in range(HOLDERS)
    }


def test_every_holder_counts_the_same() -> None:
    found = mean_change({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, -6.0])})
    assert torch.equal(found, torch.tensor([2.0, -2.0]))
    assert found.dtype == torch.float32


def test_the_order_of_arrival_does_not_change_one_bit() -> None:
    first, names = changes(), list(changes())
    expected = mean_change(first)
    for seed in range(20):
        random.Random(seed).shuffle(names)
        assert torch.equal(mean_change({name: first[name] for name in names}), expected)


def test_even_where_the_order_of_a_sum_decides_the_result_it_is_the_same() -> None:
    values = {"a": 1e20, "b": 1.0, "c": -1e20, "d": 3.0}
    found = set()
    for names in itertools.permutations(values):
        found.add(float(mean_change({name: torch.tensor([values[name]]) for name in names})))
    assert len(found) == 1


def test_the_sum_is_made_in_double_precision() -> None:
    cancelling = {"a": torch.tensor([1e8]), "b": torch.tensor([1.0]), "c": torch.tensor([-1e8])}
    assert torch.equal(mean_change(cancelling), torch.tensor([1.0 / 3]))


def test_the_changes_themselves_stay_as_they_are() -> None:
    given, kept = changes(), changes()
    mean_change(given)
    assert all(torch.equal(given[name], kept[name]) for name in kept)


def test_nothing_accepted_has_no_mean() -> None:
    with pytest.raises(ConfideError, match=r"aggregate\.empty"):
        mean_change({})
