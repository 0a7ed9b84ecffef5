"""Noise in shares: the theorem in exact arithmetic, where it holds and where it does not.

The slow and obvious reference is the sum itself: the probability of each outcome of
round(s_1 + g_1) + ... + round(s_h + g_h), by convolution, held against a single Gaussian of
standard deviation sqrt(h) times a share by the hockey-stick divergence (Balle and Wang 2018,
theorem 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import calibrate, epsilon_pld
from confide.common.privacy.plan import Plan, Trust
from confide.common.privacy.shares import (
    COARSEST,
    FINEST,
    MOST_MEMBERS,
    besides,
    step_of,
    tau,
)

Mass = NDArray[np.float64]
EPSILONS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


def rounded(center: float, share: float, width: int) -> Mass:
    """The probability of each whole number from -width to width of round(N(center, share^2))."""
    edges = np.arange(-width, width + 2) - 0.5
    # By both tails: near one of them the difference of two numbers near 1 would be nothing.
    low = np.diff(stats.norm.cdf(edges, center, share))
    high = -np.diff(stats.norm.sf(edges, center, share))
    return np.where(edges[:-1] < center, low, high)


def of_sum(centers: Sequence[float], share: float) -> Mass:
    width = math.ceil(14 * share + max(map(abs, centers)))
    total = rounded(centers[0], share, width)
    for center in centers[1:]:
        total = np.convolve(total, rounded(center, share, width))
    return total


def hockey_stick(p: Mass, q: Mass, epsilon: float) -> float:
    size = max(len(p), len(q))  # both have the 0 in their middle
    p, q = (np.pad(m, (size - len(m)) // 2) for m in (p, q))
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def of_gaussian(z: float, epsilon: float) -> float:
    """The smallest delta of N(0, z^2) against N(1, z^2)."""
    a, b = 1 / (2 * z), epsilon * z
    return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b))


def worst(share: float, honest: int, z: float, others: Sequence[float]) -> float:
    """The largest delta of the sum by that of the Gaussian, over epsilons, directions and where on
    the grid the unit stands. A clip norm is what gives the multiplier z: sqrt(h) share / z."""
    clip = math.sqrt(honest) * share / z
    found = 0.0
    for start in (0.0, 0.25, 0.5):
        rest = [start, *others][:honest]
        p, q = of_sum([rest[0] + clip, *rest[1:]], share), of_sum(rest, share)
        for epsilon in EPSILONS:
            bound = of_gaussian(z, epsilon)
            if bound > 1e-9:
                pairs = ((p, q), (q, p))
                found = max(found, *(hockey_stick(a, b, epsilon) / bound for a, b in pairs))
    return found


@pytest.mark.parametrize("honest", [1, 2, 3])
@pytest.mark.parametrize("share", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("others", [(0.0, 0.0), (0.5, 0.5), (0.3, -0.4)])
def test_a_sum_of_rounded_shares_is_no_worse_than_one_gaussian(
    honest: int, share: float, z: float, others: Sequence[float]
) -> None:
    """From one step to a share on, far coarser than confide takes, up to the theorem's own term."""
    slack = 1e-6 + math.expm1(besides(share, honest, values=1, steps=1)) / of_gaussian(z, 0.1)
    assert worst(share, honest, z, others) <= 1 + (slack if share == 1 else 1e-6)


@pytest.mark.parametrize("honest", [2, 3])
def test_a_grid_that_is_coarser_than_the_noise_breaks_the_theorem(honest: int) -> None:
    """So that the test above can fail: with a step of five shares a sum is worse than claimed."""
    assert worst(0.2, honest, 1.0, (0.3, -0.4)) > 1.2
    assert besides(0.2, honest, values=1, steps=1) == math.inf


def test_rounding_before_the_noise_would_cost_sensitivity() -> None:
    """A clip norm of 0.6 steps between two whole numbers becomes a whole step."""
    share, clip = 4.0, 0.6
    z = share / clip
    before = hockey_stick(of_sum([1.0], share), of_sum([0.0], share), 0.1)
    assert before > 1.5 * of_gaussian(z, 0.1)
    assert worst(share, 1, z, ()) <= 1 + 1e-6


def test_what_rounding_costs_is_nothing_that_a_float_can_show() -> None:
    assert tau(1.0, 2) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert tau(3.0, 1) == 0
    assert besides(COARSEST, 1000, values=10**8, steps=10**6) < 1e-200
    assert 0 < besides(2.0, 10, values=1000, steps=10) < 1e-10
    assert besides(0.1, 2, values=1, steps=1) == math.inf


@given(
    share=st.floats(1e-6, 1e6),
    ratio=st.floats(1e-3, 1e4),
)
def test_no_sum_of_the_most_members_wraps_and_the_grid_is_fine_enough(
    share: float, ratio: float
) -> None:
    longest = share * ratio
    step = step_of(share, longest)
    assert COARSEST <= share / step <= FINEST * (1 + 1e-12)
    assert MOST_MEMBERS * ((longest + 8.6 * share) / step + 1) <= 2**31 * (1 + 1e-12)
    assert math.log2(step).is_integer(), "equal at all holders, whatever their arithmetic"


def test_what_does_not_fit_the_ring_is_refused_by_name_and_remedy() -> None:
    with pytest.raises(ConfideError, match=r"sum\.range") as caught:
        step_of(1e-3, 1e3)
    assert "train.batch" in caught.value.hint


def plan(**changes: object) -> Plan:
    known: dict[str, object] = {
        "trust": Trust.DISTRIBUTED,
        "clip_norm": 0.5,
        "noise_multiplier": 3.0,
        "sampling_rate": 1.0,
        "steps_per_round": 1,
        "max_rounds": 20,
        "delta": 1e-5,
        "least": 8,
        "colluding": 2,
    }
    return Plan(**(known | changes))  # type: ignore[arg-type]


def test_shares_of_the_fewest_honest_contributors_make_all_of_the_noise() -> None:
    made = plan()
    assert made.honest == 6
    assert math.sqrt(6) * made.share_std == pytest.approx(made.noise_std)
    alone = plan(trust=Trust.LOCAL, least=1, colluding=0)
    assert (alone.honest, alone.share_std) == (1, alone.noise_std)
    assert alone.unmasked(3) == alone.steps(3)


def test_the_claim_is_the_gaussians_and_what_is_left_without_masks_that_of_a_share() -> None:
    made = plan()
    for steps, z in ((made.steps(20), 3.0), (made.unmasked(20), 3.0 / math.sqrt(6))):
        event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(z), 20)
        theirs = PLDAccountant().compose(event).get_epsilon(1e-5)
        assert epsilon_pld([steps], 1e-5) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    ("claimed", "honest", "left"),
    [(1, 2, 1.5), (1, 10, 3.6), (3, 5, 7.7), (8, 2, 12), (8, 5, 22), (8, 10, 36)],
)
def test_what_is_left_if_every_mask_fails_at_the_known_answers(
    claimed: float, honest: int, left: float
) -> None:
    z = calibrate(epsilon=claimed, delta=1e-5, sampling_rate=1.0, steps=20)
    bare = plan(noise_multiplier=z, least=honest, colluding=0).unmasked(20)
    assert epsilon_pld([bare], 1e-5) == pytest.approx(left, rel=0.04)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_round": 2},
        {"least": 1},
        {"least": 1, "colluding": 0},
        {"colluding": 8},
        {"colluding": -1},
        {"colluding": 1.0},
        {"least": 2.0},
        {"trust": Trust.LOCAL},
        {"trust": Trust.LOCAL, "least": 1, "colluding": 1},
        {"trust": Trust.OFF, "noise_multiplier": 0.0},
    ],
)
def test_what_is_no_plan_of_a_secure_sum(changes: dict[str, object]) -> None:
    with pytest.raises(ConfideError, match=r"privacy\.plan"):
        plan(**changes)


def test_a_plan_of_a_secure_sum_comes_back_from_json() -> None:
    assert Plan.from_json(plan().to_json()) == plan()
