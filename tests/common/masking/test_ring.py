"""Sums on the ring are exact, and a masked vector is uniform to whoever lacks a seed."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from confide.common.errors import ConfideError
from confide.common.masking.ring import (
    CHECKS,
    SEED_BYTES,
    Words,
    add_mask,
    from_bytes,
    from_words,
    to_bytes,
    to_words,
)

STEP = 2.0**-10


@given(
    st.lists(
        st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), min_size=1, max_size=40
    )
)
def test_a_sum_is_exact_whatever_its_order(rows: list[list[int]]) -> None:
    words = [to_words(np.array(row) * STEP, STEP) for row in rows]
    total = np.zeros(3 + CHECKS, dtype=np.uint32)
    for one in words:
        total += one
    backwards = np.sum(words[::-1], axis=0, dtype=np.uint32)
    assert np.array_equal(total, backwards)
    assert from_words(total, STEP, len(rows)).tolist() == (np.sum(rows, axis=0) * STEP).tolist()


def test_a_partial_sum_may_wrap_and_the_whole_is_right_all_the_same() -> None:
    large = [2**31 - 1, 2**31 - 1, -(2**31) + 1, -(2**31) + 5]
    total = sum((to_words(np.array([v * 1.0]), 1.0) for v in large), np.zeros(5, dtype=np.uint32))
    assert from_words(total, 1.0, 4).tolist() == [4.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ConfideError, match=r"sum\.not-finite"):
        to_words(np.array([0.0, value]), STEP)


@pytest.mark.parametrize("value", [2.0**31, -(2.0**31), 1e300])
def test_what_would_wrap_alone_is_refused(value: float) -> None:
    with pytest.raises(ConfideError, match=r"sum\.range"):
        to_words(np.array([value]), 1.0)


@pytest.mark.parametrize("spoil", range(CHECKS))
@pytest.mark.parametrize("by", [1, 2**31])
def test_a_sum_whose_check_words_are_off_is_broken(spoil: int, by: int) -> None:
    total = to_words(np.ones(3), STEP)
    total[-1 - spoil] += np.uint32(by)
    with pytest.raises(ConfideError, match=r"sum\.broken"):
        from_words(total, STEP, 1)


def test_a_sum_of_another_number_is_broken() -> None:
    total = to_words(np.ones(3), STEP) + to_words(np.ones(3), STEP)
    for count in (1, 3):
        with pytest.raises(ConfideError, match=r"sum\.broken"):
            from_words(total, STEP, count)
    with pytest.raises(ConfideError, match=r"sum\.broken"):
        from_words(total[: CHECKS - 1], STEP, 2)


def uniformity(words: Words) -> float:
    """p of the chi-square test that all bytes are as likely."""
    counts = np.bincount(np.frombuffer(to_bytes(words), dtype=np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def masked_zero(seed: bytes, size: int = 300_000) -> Words:
    total = np.zeros(size, dtype=np.uint32)
    add_mask(total, seed)
    return total


def test_a_masked_vector_of_zeros_is_uniform() -> None:
    assert uniformity(masked_zero(secrets.token_bytes(SEED_BYTES))) > 1e-6


def test_the_test_of_uniformity_sees_a_mask_that_repeats_itself() -> None:
    piece = masked_zero(secrets.token_bytes(SEED_BYTES), 64)
    assert uniformity(np.tile(piece, 5000)) < 1e-6
    assert uniformity(np.zeros(300_000, dtype=np.uint32)) < 1e-6


def test_no_two_seeds_share_a_block_and_a_keystream_has_no_block_twice() -> None:
    streams = [to_bytes(masked_zero(secrets.token_bytes(SEED_BYTES), 40_000)) for _ in range(4)]
    blocks = [s[i : i + 16] for s in streams for i in range(0, len(s), 16)]
    assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("size", [1, 2**18 - 1, 2**18, 2**18 + 1, 2**19 + 7])
def test_a_keystream_is_one_stream_whatever_pieces_it_is_made_in(size: int) -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    seed = secrets.token_bytes(SEED_BYTES)
    whole = Cipher(ChaCha20(seed, nonce=bytes(16)), mode=None).encryptor().update(bytes(4 * size))
    assert to_bytes(masked_zero(seed, size)) == whole


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_seed_has_256_bits(length: int) -> None:
    with pytest.raises(ConfideError, match=r"sum\.sealed"):
        add_mask(np.zeros(4, dtype=np.uint32), bytes(length))


def test_words_come_back_from_bytes_and_no_other_length_is_taken() -> None:
    words = masked_zero(secrets.token_bytes(SEED_BYTES), 9)
    assert np.array_equal(from_bytes(to_bytes(words), 9), words)
    for count in (8, 10):
        with pytest.raises(ConfideError, match=r"wire\.size"):
            from_bytes(to_bytes(words), count)
