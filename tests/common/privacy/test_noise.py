"""The noise is normal, of the right size, unpredictable and never the same twice."""

import contextlib
import copy
import math
import multiprocessing
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from numpy.typing import NDArray
from scipy import stats

from confide.common.errors import ConfideError
from confide.common.privacy import noise
from confide.common.privacy.noise import SecureGenerator

DRAWS = 1_000_000
LEAST_P = 1e-6
LARGEST_R = 0.005
SUBSETS = 20_000


def looks_standard_normal(draws: NDArray[np.float64]) -> bool:
    return bool(stats.kstest(draws, "norm").pvalue > LEAST_P)


def test_a_million_draws_are_standard_normal() -> None:
    assert looks_standard_normal(SecureGenerator().normal(DRAWS))


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_the_same_test_rejects_noise_of_the_wrong_size(scale: float) -> None:
    assert not looks_standard_normal(scale * SecureGenerator().normal(DRAWS))


def test_a_million_uniform_draws_are_uniform() -> None:
    draws = SecureGenerator().uniform(DRAWS)
    assert stats.kstest(draws, "uniform").pvalue > LEAST_P
    assert not stats.kstest(draws**1.02, "uniform").pvalue > LEAST_P


def test_the_two_halves_of_a_pair_and_two_calls_are_uncorrelated() -> None:
    generator = SecureGenerator()
    first, second = generator.normal(DRAWS), generator.normal(DRAWS)
    half = DRAWS // 2
    assert abs(np.corrcoef(first, second)[0, 1]) < LARGEST_R
    assert abs(np.corrcoef(first[:half] ** 2, first[half:] ** 2)[0, 1]) < LARGEST_R


def test_uniform_draws_never_reach_0_or_1() -> None:
    extremes = noise._open_interval(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0.0 < extremes[0] < extremes[1] < 1.0
    assert extremes[1] == 1.0 - 2.0**-53


def test_two_generators_share_no_draw() -> None:
    mine, yours = SecureGenerator().uniform(DRAWS), SecureGenerator().uniform(DRAWS)
    # 2^-52 apart: a chance repeat among 1e12 pairs has probability 2e-4.
    assert np.intersect1d(mine, yours).size == 0


def test_one_generator_repeats_no_draw() -> None:
    generator = SecureGenerator()
    assert np.unique([generator.uniform(10) for _ in range(1000)]).size == 10_000


def test_threads_that_share_a_generator_share_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, meeting = SecureGenerator(), threading.Barrier(2)
    draws: list[NDArray[np.float64]] = []

    def make_them_meet(*arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):  # one waits outside, as it should
            meeting.wait(timeout=0.1)
        return Cipher(*arguments, **options)

    monkeypatch.setattr(noise, "Cipher", make_them_meet)
    threads = [
        threading.Thread(target=lambda: draws.append(generator.uniform(50))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.unique(draws).size == 2 * 50


def looks_like_uniform_subsets(draws: list[tuple[int, ...]], n: int, k: int) -> bool:
    """Chi-square over all subsets of k of n, each of which has the same chance."""
    counts = Counter(draws)
    found = [counts.pop(subset, 0) for subset in combinations(range(n), k)]
    return not counts and bool(stats.chisquare(found).pvalue > LEAST_P)


def test_every_subset_is_as_likely_as_any_other() -> None:
    generator, n, k = SecureGenerator(), 6, 3
    draws = [tuple(generator.subset(n, k).tolist()) for _ in range(SUBSETS)]
    assert looks_like_uniform_subsets(draws, n, k)


def test_the_same_test_rejects_the_first_records_a_block_and_repeats() -> None:
    generator, n, k = np.random.default_rng(1), 6, 3
    wrong: list[Callable[[], list[int]]] = [
        lambda: list(range(k)),
        lambda: sorted((int(generator.integers(n)) + i) % n for i in range(k)),
        lambda: sorted(generator.integers(n, size=k).tolist()),
    ]
    for draw in wrong:
        assert not looks_like_uniform_subsets([tuple(draw()) for _ in range(SUBSETS)], n, k)


@pytest.mark.parametrize("n", [1, 2, 57, 1000])
def test_a_subset_is_ascending_and_without_repeats(n: int) -> None:
    generator = SecureGenerator()
    for k in {0, 1, n // 2, n - 1, n}:
        drawn = generator.subset(n, k)
        assert drawn.shape == (k,)
        assert drawn.dtype == np.int64
        assert (np.diff(drawn) > 0).all()
        assert ((drawn >= 0) & (drawn < n)).all()
    assert generator.subset(n, n).tolist() == list(range(n))
    assert generator.subset(0, 0).size == 0


@pytest.mark.parametrize("k", [-1, 4])
def test_more_than_there_is_cannot_be_drawn(k: int) -> None:
    with pytest.raises(ConfideError) as caught:
        SecureGenerator().subset(3, k)
    assert caught.value.code == "privacy.subset"


def _draw_into(queue: "multiprocessing.Queue[list[float]]", generator: SecureGenerator) -> None:
    queue.put(generator.normal(100).tolist())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12
def test_a_forked_child_draws_other_noise_than_its_parent() -> None:
    context = multiprocessing.get_context("fork")
    generator, queue = SecureGenerator(), context.Queue()
    child = context.Process(target=_draw_into, args=(queue, generator))
    child.start()
    theirs = queue.get(timeout=60)
    child.join()
    assert not set(theirs) & set(generator.normal(100).tolist())


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_generator_cannot_be_copied(copier: object) -> None:
    with pytest.raises(ConfideError) as caught:
        copier(SecureGenerator())  # type: ignore[operator]
    assert caught.value.code == "privacy.generator"


def test_only_an_insecure_generator_repeats_itself() -> None:
    one, two = SecureGenerator.insecure_seeded(7), SecureGenerator.insecure_seeded(7)
    assert np.array_equal(one.normal(11), two.normal(11))
    assert np.array_equal(one.normal(11), two.normal(11))
    assert not np.array_equal(one.normal(11), SecureGenerator.insecure_seeded(8).normal(11))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1001])
def test_as_many_draws_come_as_were_asked_for(n: int) -> None:
    generator = SecureGenerator()
    for draws in (generator.uniform(n), generator.normal(n)):
        assert draws.shape == (n,)
        assert draws.dtype == np.float64
        assert np.isfinite(draws).all()


def test_coins_fall_as_often_as_they_should() -> None:
    q, generator = 0.03, SecureGenerator()
    heads = int(generator.bernoulli(DRAWS, q).sum())
    assert abs(heads - q * DRAWS) <= 5 * math.sqrt(DRAWS * q * (1 - q))
    assert generator.bernoulli(1000, 1.0).all()
    assert not generator.bernoulli(1000, 0.0).any()


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_an_impossible_probability_is_refused(q: float) -> None:
    with pytest.raises(ConfideError) as caught:
        SecureGenerator().bernoulli(3, q)
    assert caught.value.code == "privacy.rate"
