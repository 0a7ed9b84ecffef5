"""The methods against dense arithmetic on random adapters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.common.errors import ConfideError
from confide.common.methods import method_of
from confide.common.methods.fedsvd import orthonormal
from confide.server.aggregation import mean_change

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "m.classifier.weight"
EXACT = 1e-12  # of float64, for the few values here

shapes = st.tuples(st.integers(1, 6), st.integers(6, 20), st.integers(1, 20))  # r, in, out
seeds = st.integers(0, 2**20)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(shape=shapes, seed=seeds, rank=st.integers(0, 6), size=st.integers(-6, 6))
def test_fedsvd_leaves_the_product_alone_and_makes_the_rows_of_a_orthonormal(
    shape: tuple[int, int, int], seed: int, rank: int, size: int
) -> None:
    r, wide, out = shape
    a, b = 10.0**size * draw(seed, r, wide), draw(seed + 1, out, r)
    b[:, min(rank, r) :] = 0  # a product of a smaller rank, or none at all
    found = orthonormal(a, b)
    product = b @ a
    assert torch.allclose(found.b @ found.a, product, rtol=0, atol=EXACT * 10.0**size)
    assert torch.allclose(found.a @ found.a.t(), torch.eye(r).double(), atol=EXACT)
    gram = found.b.t() @ found.b
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=EXACT * 10.0 ** (2 * size) * 1e3)
    lengths = found.b.norm(dim=0)
    assert (lengths[:-1] >= lengths[1:] - EXACT * 10.0**size * 100).all()
    assert torch.equal(found.b, b @ found.turn)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=seeds)
def test_what_is_kept_in_the_coordinates_of_b_moves_the_product_as_before(
    shape: tuple[int, int, int], seed: int
) -> None:
    r, wide, out = shape
    a, b, momentum = draw(seed, r, wide), draw(seed + 1, out, r), draw(seed + 2, out, r)
    found = orthonormal(a, b)
    before, after = (b + momentum) @ a, (found.b + momentum @ found.turn) @ found.a
    assert torch.allclose(before, after, atol=1e-10)


def test_more_rows_than_columns_cannot_be_orthonormal() -> None:
    with pytest.raises(ConfideError, match=r"aggregate\.rank"):
        orthonormal(draw(0, 5, 4), draw(1, 3, 5))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=seeds, holders=st.integers(1, 6))
def test_with_one_factor_at_rest_the_mean_is_the_mean_of_the_products(
    shape: tuple[int, int, int], seed: int, holders: int
) -> None:
    """ffa and fedsvd: A rests; rolora: A or B in turn."""
    r, wide, out = shape
    a, b = draw(seed, r, wide).float(), draw(seed + 1, out, r).float()
    for factor in "ba":
        like = b if factor == "b" else a
        changes = {str(h): draw(seed + 2 + h, *like.shape).float() for h in range(holders)}
        moved = like + mean_change({h: c.flatten() for h, c in changes.items()}).view_as(like)
        products = [
            (b + c).double() @ a.double() if factor == "b" else b.double() @ (a + c).double()
            for c in changes.values()
        ]
        mean = torch.stack(products).mean(0)
        found = moved.double() @ a.double() if factor == "b" else b.double() @ moved.double()
        assert torch.allclose(found, mean, atol=1e-4 * (1 + float(mean.abs().max())))


def test_with_both_factors_it_is_not() -> None:
    a, b = draw(0, 2, 6), draw(1, 4, 2)
    other_a, other_b = draw(2, 2, 6), draw(3, 4, 2)
    mean = (b @ a + other_b @ other_a) / 2
    apart = (b + other_b) / 2 @ ((a + other_a) / 2)
    assert float((mean - apart).norm()) > 0.1 * float(mean.norm())


def test_fedsvd_turns_every_pair_and_nothing_else() -> None:
    adapter = {A: draw(0, 2, 6).float(), B: draw(1, 4, 2).float(), HEAD: draw(2, 3, 4).float()}
    rewritten = method_of("fedsvd").rewrite(adapter)
    assert rewritten is not None
    assert torch.equal(rewritten.adapter[HEAD], adapter[HEAD])
    assert rewritten.turns.keys() == {B}
    assert rewritten.adapter[A].dtype == rewritten.adapter[B].dtype == torch.float32
    product = rewritten.adapter[B] @ rewritten.adapter[A]
    assert torch.allclose(product, adapter[B] @ adapter[A], atol=1e-5)
    assert not torch.allclose(rewritten.adapter[A], adapter[A], atol=1e-2)
