"""Epsilon of many holders: exact where it decides, never below elsewhere."""

from __future__ import annotations

import pytest

from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.server.report import accounts as module
from confide.server.report.accounts import figures

DELTA = 1e-5


def history(number: int) -> tuple[GaussianSteps, ...]:
    return (GaussianSteps(noise_multiplier=8.0 + 0.01 * number, sampling_rate=0.3, steps=40),)


def test_a_few_different_histories_are_all_exact() -> None:
    found = figures([history(n) for n in (0, 1, 0, 2)], DELTA, None)
    assert len(found) == 3
    assert all(one.exact for one in found.values())


def test_of_many_the_largest_is_exact_and_no_other_is_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_EXACT", 3)
    histories = [history(n) for n in range(8)]
    found = figures(histories, DELTA, None)
    largest = max(found.values(), key=lambda one: one.epsilon)
    assert largest.exact
    assert largest.epsilon == epsilon_pld(histories[0], DELTA)
    assert not all(one.exact for one in found.values())
    assert all(one.epsilon >= epsilon_pld(steps, DELTA) - 1e-9 for steps, one in found.items())


def test_whoever_the_quick_bound_puts_above_the_plan_is_computed_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_EXACT", 3)
    histories = [history(n) for n in range(8)]
    exact = [epsilon_pld(steps, DELTA) for steps in histories]
    found = figures(histories, DELTA, exact[4])
    assert [found[steps].exact for steps in histories[:5]] == [True] * 5
    assert not found[histories[7]].exact
