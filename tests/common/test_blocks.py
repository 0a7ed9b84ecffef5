"""Blocks of small whole numbers: what is lost, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from confide.common.adapter.encoding import BLOCK, pack_blocks, packed_size, rounding, unpack_blocks
from confide.common.errors import ConfideError

LARGEST = {8: 127, 4: 7}
FEW = 1e-5  # of float32 arithmetic, relative


def there_and_back(vector: Tensor, bits: int) -> Tensor:
    payload = pack_blocks(vector, bits)
    assert len(payload) == packed_size(vector.numel(), bits)
    return unpack_blocks(payload, bits, vector.numel())


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5 * BLOCK + 3),
    scale=st.integers(-30, 30),
    seed=st.integers(0, 2**20),
    sparse=st.booleans(),
)
def test_no_value_and_no_block_is_off_by_more_than_is_stated(
    bits: int, size: int, scale: int, seed: int, sparse: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator) * 10.0**scale
    if sparse:
        vector[torch.rand(size, generator=generator) < 0.9] *= 1e-3
    found = there_and_back(vector, bits)
    for before, after in zip(vector.split(BLOCK), found.split(BLOCK), strict=True):
        error = (after - before).double()
        most = float(before.abs().max()) / (2 * LARGEST[bits])
        assert float(error.abs().max()) <= most * (1 + FEW)
        assert float(error.norm()) <= rounding(bits) * float(before.double().norm()) * (1 + FEW)


@pytest.mark.parametrize(("bits", "share"), [(8, 0.006), (4, 0.11)])
def test_of_normal_values_so_much_is_lost(bits: int, share: float) -> None:
    vector = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    lost = float((there_and_back(vector, bits) - vector).norm() / vector.norm())
    assert lost == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_nearest_multiple_is_taken(bits: int) -> None:
    steps = torch.arange(-LARGEST[bits], LARGEST[bits] + 1).float()
    exact = there_and_back(steps[:BLOCK], bits) if bits == 4 else None
    if exact is not None:
        assert torch.equal(exact, steps)
    whole = torch.cat([torch.tensor([float(LARGEST[bits])]), torch.tensor([0.4, 0.6, -0.4, -0.6])])
    assert there_and_back(whole, bits)[1:].tolist() == [0.0, 1.0, 0.0, -1.0]


@pytest.mark.parametrize("bits", [8, 4])
def test_under_noise_of_a_step_the_mean_of_many_is_not_biased(bits: int) -> None:
    """What a tenth of a step would lose alone survives as the mean of noisy copies."""
    step = 1.0 / LARGEST[bits]
    generator = torch.Generator().manual_seed(2)
    found = torch.zeros(BLOCK - 1, dtype=torch.float64)
    copies = 4000
    for _ in range(copies):
        noisy = 0.1 * step + 0.5 * step * torch.randn(BLOCK - 1, generator=generator)
        found += there_and_back(torch.cat([torch.ones(1), noisy]), bits)[1:]
    mean = float(found.mean()) / copies
    assert mean == pytest.approx(0.1 * step, rel=0.1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_not_finite_stays_so_in_its_block_and_in_no_other(bits: int, number: float) -> None:
    vector = torch.ones(3 * BLOCK)
    vector[BLOCK + 5] = number
    found = there_and_back(vector, bits)
    if not math.isfinite(number):
        assert not torch.isfinite(found[BLOCK : 2 * BLOCK]).any()
    assert torch.allclose(found[:BLOCK], torch.ones(BLOCK))
    assert torch.allclose(found[2 * BLOCK :], torch.ones(BLOCK))


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_and_the_smallest_numbers_come_back_small(bits: int) -> None:
    assert not there_and_back(torch.zeros(100), bits).any()
    assert there_and_back(torch.full((100,), 1e-45), bits).abs().max() <= 1e-42


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 128, 129])
def test_sizes_are_as_stated(size: int) -> None:
    blocks = math.ceil(size / BLOCK)
    assert len(pack_blocks(torch.ones(size), 8)) == size + 4 * blocks
    assert len(pack_blocks(torch.ones(size), 4)) == math.ceil(size / 2) + 4 * blocks
    for bits in (8, 4):
        assert torch.allclose(there_and_back(torch.ones(size), bits), torch.ones(size))


def test_a_number_that_is_never_written_is_refused() -> None:
    for bits, payload in ((8, b"\x00\x00\x80\x3f\x80"), (4, b"\x00\x00\x80\x3f\x08")):
        with pytest.raises(ConfideError, match=r"wire\.malformed"):
            unpack_blocks(payload, bits, 1)


def test_an_odd_half_byte_that_is_not_zero_is_refused() -> None:
    with pytest.raises(ConfideError, match=r"wire\.malformed"):
        unpack_blocks(b"\x00\x00\x80\x3f\x11", 4, 1)
