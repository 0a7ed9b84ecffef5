"""Headroom: the same answer as a distribution for every round, from few of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from confide.common.privacy import headroom
from confide.common.privacy.accountant import (
    INTERVAL,
    GaussianSteps,
    epsilon_pld,
    epsilon_rdp,
    within,
)
from confide.common.privacy.headroom import fits

DELTA = 1e-5
ROUNDS = 24
MOST_COMPUTED = math.log2(ROUNDS) + 6


def steps(noise: float, rate: float, count: int) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=count)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    headroom._known.cache_clear()
    yield
    headroom._known.cache_clear()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The epsilons by RDP of what no quick bound decided, so that a distribution was made."""
    seen: dict[tuple[GaussianSteps, ...], float] = {}
    found: list[float] = []

    def counting(history: tuple[GaussianSteps, ...], delta: float, limit: float) -> bool:
        bound = epsilon_rdp(history, delta)
        if bound > limit and history not in seen:
            seen[history] = bound
            found.append(bound)
        return within(history, delta, limit)

    monkeypatch.setattr(headroom, "within", counting)
    return found


OTHER_RUN = steps(3.0, 0.1, 20)
# Noise enough that a distribution takes little time; how much there is changes no answer here.
CASES = [
    ("full batches", 12.0, 1.0, 1, ()),
    ("sampled", 3.0, 0.05, 2, ()),
    ("sampled, after another run", 3.0, 0.05, 2, (OTHER_RUN,)),
    ("full batches, after another run", 20.0, 1.0, 3, (OTHER_RUN, steps(9.0, 1.0, 4))),
]
TIGHT = (0.0, 1e-9, INTERVAL / 2, 2 * INTERVAL, -1e-9)


@pytest.mark.parametrize(("noise", "rate", "size", "before"), [c[1:] for c in CASES])
@pytest.mark.parametrize("slack", TIGHT)
def test_every_round_gets_the_answer_of_the_whole_distribution(
    noise: float, rate: float, size: int, before: tuple[GaussianSteps, ...], slack: float
) -> None:
    affordable = 17
    limit = epsilon_pld((*before, steps(noise, rate, affordable * size)), DELTA) + slack
    one = steps(noise, rate, size)
    for done in range(ROUNDS):
        history = (*before, steps(noise, rate, done * size))
        expected = epsilon_pld((*history, one), DELTA) <= limit
        assert expected == (done + 1 <= affordable - (slack < 0))
        for _ in range(2):  # outside of the transaction and within it
            answer = fits(history, one, DELTA, limit, rounds_after=ROUNDS - done - 1)
            assert answer == expected
            assert fits(history, one, DELTA, limit) == expected


def charge_all(one: GaussianSteps, limit: float) -> int:
    """The rounds that a run of ROUNDS is allowed, asking as the holder does."""
    for done in range(ROUNDS):
        history = (steps(one.noise_multiplier, one.sampling_rate, done * one.steps),)
        if not fits(history, one, DELTA, limit, rounds_after=ROUNDS - done - 1):
            return done
    return ROUNDS


def test_a_run_that_fits_as_a_whole_needs_one_distribution(computed: list[float]) -> None:
    one = steps(1.0, 0.05, 2)
    limit = epsilon_pld([steps(1.0, 0.05, 2 * ROUNDS)], DELTA) + 2 * INTERVAL
    assert charge_all(one, limit) == ROUNDS
    assert len(computed) == 1


def test_a_run_that_fits_in_part_needs_few_distributions(computed: list[float]) -> None:
    one, affordable = steps(1.0, 0.05, 2), 20
    limit = epsilon_pld([steps(1.0, 0.05, 2 * affordable)], DELTA)
    assert charge_all(one, limit) == affordable
    assert 0 < len(computed) <= MOST_COMPUTED


def test_runs_that_alternate_cost_no_more_than_one_distribution_each_time(
    computed: list[float],
) -> None:
    pair = (steps(3.0, 0.05, 2), steps(3.5, 0.05, 2))
    counts = [0, 0]
    limit = epsilon_pld([steps(3.0, 0.05, 24), steps(3.5, 0.05, 24)], DELTA)
    asked = 0
    for turn in itertools.cycle((0, 1)):
        history = [
            steps(one.noise_multiplier, one.sampling_rate, 2 * count)
            for one, count in zip(pair, counts, strict=True)
        ]
        asked += 1
        if not fits(history, pair[turn], DELTA, limit, rounds_after=ROUNDS):
            break
        counts[turn] += 1
    assert counts == [12, 12]
    assert len(computed) <= 2 * asked  # the whole rest, and this round


def test_nothing_is_computed_ahead_unless_asked_for(computed: list[float]) -> None:
    one = steps(1.0, 0.05, 2)
    limit = epsilon_pld([steps(1.0, 0.05, 40)], DELTA)
    assert fits([steps(1.0, 0.05, 36)], one, DELTA, limit)
    assert len(computed) <= 1


def test_what_is_known_of_one_limit_delta_or_past_says_nothing_of_another() -> None:
    one, past = steps(1.0, 0.05, 2), steps(1.0, 0.05, 2 * ROUNDS)
    spent = epsilon_pld([past], DELTA)
    assert fits([], one, DELTA, spent + 1.0, rounds_after=ROUNDS - 1)
    limit = spent + 2 * INTERVAL
    assert fits([steps(1.0, 0.05, 40)], one, DELTA, limit, rounds_after=3)
    assert headroom._known((), (1.0, 0.05), DELTA, limit).fits == 2 * ROUNDS
    history = [steps(1.0, 0.05, 2 * ROUNDS - 2)]
    assert fits(history, one, DELTA, spent)
    assert not fits(history, one, DELTA, spent - 1e-6)
    assert not fits(history, one, DELTA / 10, limit)
    assert not fits([*history, OTHER_RUN], one, DELTA, spent)


def test_no_noise_fits_no_limit() -> None:
    for rate in (1.0, 0.1):
        assert not fits([], steps(0.0, rate, 1), DELTA, 1e9, rounds_after=5)
        assert not fits([steps(0.0, rate, 1)], steps(1.0, rate, 1), DELTA, 1e9, rounds_after=5)
    assert not fits([], steps(1.0, 0.05, 1), DELTA, 0.0, rounds_after=5)


def test_more_steps_never_tell_less() -> None:
    """What allows a part of a history that fits; the figure may waver by less than INTERVAL."""
    chance = random.Random(4)
    for _ in range(12):
        noise, rate = chance.uniform(1.5, 12.0), chance.choice([1.0, 0.5, 0.05, 0.01])
        past = [steps(chance.uniform(2, 9), 1.0, 3)] if chance.random() < 0.5 else []
        counts = sorted(chance.sample(range(1, 120), 6))
        figures = [epsilon_pld([*past, steps(noise, rate, n)], DELTA) for n in counts]
        for less, more in itertools.pairwise(figures):
            assert less < more + INTERVAL
