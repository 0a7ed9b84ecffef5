"""Steps added up, covered by others, and taken from others."""

from __future__ import annotations

from confide.common.privacy.steps import GaussianSteps, Steps, covers, has_noise, is_plain, merge
from confide.common.privacy.steps import missing as left


def steps(noise: float, count: int, rate: float = 0.5) -> Steps:
    return (GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=count),)


def test_covering_needs_the_same_noise_and_rate_and_as_many_steps() -> None:
    assert covers(steps(1.0, 5), steps(1.0, 5))
    assert covers(steps(1.0, 2) + steps(1.0, 3), steps(1.0, 5))
    assert covers(steps(1.0, 1), ())
    assert not covers(steps(1.0, 4), steps(1.0, 5))
    assert not covers(steps(2.0, 9), steps(1.0, 5))
    assert not covers(steps(1.0, 9, rate=1.0), steps(1.0, 5))


def test_what_is_left_is_what_the_part_does_not_have() -> None:
    whole = steps(1.0, 5) + steps(2.0, 1)
    assert left(whole, steps(1.0, 2)) == steps(1.0, 3) + steps(2.0, 1)
    assert left(whole, whole) == ()
    assert left(whole, steps(1.0, 9)) == steps(2.0, 1)
    assert left((), whole) == ()


def test_equal_mechanisms_are_added_up_in_a_fixed_order() -> None:
    assert merge(steps(2.0, 1) + steps(1.0, 2) + steps(2.0, 3)) == steps(1.0, 2) + steps(2.0, 4)
    assert merge(steps(1.0, 0)) == ()


def test_noise_and_rate_of_all_are_asked_for() -> None:
    assert has_noise(steps(1.0, 1))
    assert not has_noise(steps(1.0, 1) + steps(0.0, 1))
    assert is_plain(steps(1.0, 1, rate=1.0))
    assert not is_plain(steps(1.0, 1, rate=1.0) + steps(1.0, 1))
