"""Person-level figures: known answer, ordering, and the ends of the range."""

from __future__ import annotations

import pytest

from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.groups import group_epsilon

DELTA = 1e-5


def steps(z: float, q: float, n: int) -> tuple[GaussianSteps, ...]:
    return (GaussianSteps(noise_multiplier=z, sampling_rate=q, steps=n),)


def test_two_records_at_the_known_answer() -> None:
    # A record-level 5.98 is 13.8 for a person with two records.
    assert group_epsilon(steps(1.025, 1 / 32, 960), DELTA, 2) == pytest.approx(13.8, abs=0.05)


@pytest.mark.parametrize("z", [0.7, 2.7, 20.0])
def test_with_every_record_in_every_step_it_is_one_gaussian(z: float) -> None:
    assert group_epsilon(steps(z, 1.0, 1), DELTA, 2) == pytest.approx(
        epsilon_pld(steps(z / 2, 1.0, 1), DELTA)
    )


def test_more_records_never_cost_less() -> None:
    found = [group_epsilon(steps(3.0, 0.2, 10), DELTA, size) for size in (1, 2, 3, 5)]
    assert None not in found
    assert found == sorted(found)  # type: ignore[type-var]
    assert found[0] == pytest.approx(epsilon_pld(steps(3.0, 0.2, 10), DELTA), abs=0.05)


@pytest.mark.parametrize("z", [0.0, 0.01])
def test_without_enough_noise_there_is_no_promise(z: float) -> None:
    assert group_epsilon(steps(z, 1.0, 20), DELTA, 5) is None
