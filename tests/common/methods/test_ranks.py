"""Ranks against dense arithmetic: what is cut and padded, over random ranks and shapes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.common.adapter.schema import AdapterSchema, flatten, unflatten
from confide.common.methods.ranks import at_every_rank, at_rank, cut, padded, rank_of

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "m.classifier.weight"

ranks = st.integers(1, 7)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))  # in, out
seeds = st.integers(0, 2**20)


def schema(rank: int, size: tuple[int, int]) -> AdapterSchema:
    wide, out = size
    shapes = ((A, (rank, wide)), (B, (out, rank)), (HEAD, (3, wide)))
    return AdapterSchema(shapes=shapes, trained=frozenset({B, HEAD}))


def draw(seed: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(whole=ranks, part=ranks, size=sizes, seed=seeds)
def test_what_is_cut_is_the_first_components_and_padding_adds_zeros_alone(
    whole: int, part: int, size: tuple[int, int], seed: int
) -> None:
    part = min(part, whole)
    wide, narrow = schema(whole, size), at_rank(schema(whole, size), part)
    assert narrow == schema(part, size)
    vector = draw(seed, wide.size)
    long, short = (
        unflatten(vector, wide.shapes),
        unflatten(cut(vector, wide.shapes, narrow.shapes), narrow.shapes),
    )
    assert torch.equal(short[A], long[A][:part])
    assert torch.equal(short[B], long[B][:, :part])
    assert torch.equal(short[HEAD], long[HEAD])
    change = draw(seed + 1, narrow.trained_size)
    back = padded(change, narrow.trained_shapes, wide.trained_shapes)
    assert torch.equal(cut(back, wide.trained_shapes, narrow.trained_shapes), change)
    assert float(back.double().norm()) == float(change.double().norm()) or torch.allclose(
        back.double().norm(), change.double().norm()
    )
    assert int((back != 0).sum()) == int((change != 0).sum())


@settings(max_examples=60, deadline=None)
@given(
    whole=ranks, size=sizes, seed=seeds, holders=st.lists(st.integers(1, 7), min_size=1, max_size=5)
)
def test_the_mean_of_padded_changes_is_the_mean_of_the_products_changes(
    whole: int, size: tuple[int, int], seed: int, holders: list[int]
) -> None:
    """Each holder's product changes by its own columns of B times its own rows of A."""
    wide = schema(whole, size)
    start = unflatten(draw(seed, wide.size), wide.shapes)
    changes, products = [], []
    for number, rank in enumerate(holders):
        narrow = at_rank(wide, min(rank, whole))
        change = draw(seed + 1 + number, narrow.trained_size)
        moved = unflatten(change, narrow.trained_shapes)[B].double()
        products.append(moved @ start[A].double()[: moved.shape[1]])
        changes.append(padded(change, narrow.trained_shapes, wide.trained_shapes).double())
    mean = unflatten(torch.stack(changes).mean(0), wide.trained_shapes)[B]
    assert torch.allclose(mean @ start[A].double(), torch.stack(products).mean(0), atol=1e-10)


def test_every_rank_has_a_digest_of_its_own_and_the_largest_is_the_run_s() -> None:
    found = at_every_rank(schema(5, (8, 6)))
    assert [rank_of(one) for one in found.values()] == [1, 2, 3, 4, 5]
    assert found[schema(5, (8, 6)).digest] == schema(5, (8, 6))
    assert not found.keys() & at_every_rank(schema(5, (8, 7))).keys()


def test_an_adapter_without_lora_has_no_rank_to_choose() -> None:
    head = AdapterSchema(shapes=((HEAD, (3, 4)),), trained=frozenset({HEAD}))
    assert rank_of(head) == 0
    assert at_every_rank(head) == {}
    vector = draw(0, head.size)
    assert torch.equal(flatten(unflatten(vector, head.shapes), head.shapes), vector)
