"""What a ledger allows and tells of several runs, against adversaries that see every output.

Promise 32: for k runs on one text, stopped early, resumed, with settings chosen by what was seen,
the claim is never below a bound proven for that case, recomputed here without confide's accountant.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from confide.common.errors import ConfideError
from confide.common.privacy import filters
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.common.privacy.steps import Steps, merge

DELTA = 1e-5
GRID = 2e-4  # of two discretisations of one privacy loss


def plan_for(epsilon: float, rate: float = 1.0, rounds: int = 4, delta: float = DELTA) -> Plan:
    return Plan.calibrate(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=rate,
        steps_per_round=1,
        max_rounds=rounds,
        clip_norm=1.0,
    )


def charge(ledger: Ledger, run: str, plan: Plan, number: int, limit: float | None) -> None:
    task = f"{run}-{number}-{plan.noise_multiplier}"
    ledger.charge(Charge(run=run, round=number, task_hash=task, plan=plan), limit)


def refused(ledger: Ledger, run: str, plan: Plan, number: int, limit: float | None) -> bool:
    try:
        charge(ledger, run, plan, number, limit)
    except ConfideError as error:
        if error.code != "ledger.budget-exhausted":
            raise
        return True
    return False


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


# --- one run ---


def test_one_run_of_a_fixed_plan_may_use_the_whole_limit_by_pld(ledger: Ledger) -> None:
    plan = plan_for(8.0)
    for number in range(4):
        charge(ledger, "run", plan, number, 8.0)
    assert refused(ledger, "run", plan, 4, 8.0)


def test_what_is_told_of_one_run_is_its_whole_plan_from_the_first_round_on(ledger: Ledger) -> None:
    plan = plan_for(8.0)
    for number in range(2):
        charge(ledger, "run", plan, number, 10.0)
        receipt = ledger.receipt(DELTA, "run")
        assert receipt.runs == 1
        assert receipt.proven == epsilon_pld([plan.steps(4)], DELTA)
    assert receipt.epsilon < 0.8 * receipt.proven


def test_sums_belong_to_the_plan_of_their_run(ledger: Ledger) -> None:
    rounds = plan_for(4.0)
    a_sum = replace(rounds, noise_multiplier=20.0, max_rounds=1)
    whole = (rounds.steps(4), a_sum.steps())
    first = Charge(run="run", round=0, task_hash="sum", plan=a_sum, whole=whole)
    ledger.charge(first, 8.0)
    second = Charge(run="run", round=1, task_hash="round", plan=rounds, whole=whole)
    ledger.charge(second, 8.0)
    receipt = ledger.receipt(DELTA, "run")
    assert (receipt.runs, receipt.proven) == (1, epsilon_pld(whole, DELTA))


# --- several runs ---


def test_a_first_run_that_has_the_limit_for_itself_is_never_followed_by_another(
    ledger: Ledger,
) -> None:
    """Not even where it ended after one round: that it ended may follow from what was seen."""
    first, small = plan_for(8.0), plan_for(0.1)
    charge(ledger, "first", first, 0, 8.0)
    assert refused(ledger, "second", small, 0, 8.0)
    charge(ledger, "first", first, 1, 8.0)


def test_raising_the_limit_makes_room_for_another_run_and_no_promise_of_it(ledger: Ledger) -> None:
    first, second = plan_for(4.0), plan_for(6.0)
    charge(ledger, "first", first, 0, 5.0)
    for number in range(4):
        charge(ledger, "second", second, number, 9.0)
    receipt = ledger.receipt(DELTA, "second")
    assert receipt.limit == 9.0
    assert receipt.proven in filters.LEVELS
    assert receipt.proven != 9.0 or 9.0 in filters.LEVELS


def test_a_limit_that_is_lowered_later_is_no_level_of_what_is_told(ledger: Ledger) -> None:
    """It may have been lowered because of what was seen; the first one was set before."""
    plan = plan_for(8.0)
    for run, limit in (("first", 40.0), ("second", 13.0)):
        for number in range(4):
            charge(ledger, run, plan, number, limit)
    receipt = ledger.receipt(DELTA, "second")
    assert (receipt.limit, receipt.proven) == (13.0, 15.0)


def test_a_limit_that_only_the_first_plan_fitted_stays_its_own_when_it_is_raised_and_lowered(
    ledger: Ledger,
) -> None:
    first, small = plan_for(8.0), plan_for(0.1)
    charge(ledger, "first", first, 0, 8.0)
    assert refused(ledger, "second", small, 0, 7.0)
    assert refused(ledger, "second", small, 0, 8.5)


def test_after_a_run_that_left_room_others_follow_up_to_the_limit_and_no_further(
    ledger: Ledger,
) -> None:
    plan, number = plan_for(4.0, rounds=1), 0
    while not refused(ledger, f"run-{number}", plan, 0, 10.0):
        number += 1
        assert ledger.receipt(DELTA, f"run-{number - 1}").proven <= 10.0
    spent = number + 1
    mu = math.sqrt(spent) / plan.noise_multiplier
    share = filters.LIMIT_SHARE * (1 - filters.SAMPLED_SHARE)
    assert gaussian_delta(mu, 10.0) > share * DELTA
    assert gaussian_delta(math.sqrt(number) / plan.noise_multiplier, 10.0) <= share * DELTA


def test_a_run_whose_plan_changes_counts_as_several(ledger: Ledger) -> None:
    charge(ledger, "run", plan_for(8.0), 0, None)
    charge(ledger, "run", plan_for(4.0), 1, None)
    receipt = ledger.receipt(DELTA, "run")
    assert receipt.runs == 2
    assert receipt.proven in filters.LEVELS


def test_a_run_that_takes_more_than_its_plan_is_no_single_run(ledger: Ledger) -> None:
    plan = plan_for(4.0, rounds=1)
    for number in range(3):
        charge(ledger, "run", plan, number, 20.0)
    assert ledger.receipt(DELTA, "run").proven > epsilon_pld([plan.steps(3)], DELTA)


def test_what_is_told_of_several_runs_has_all_that_is_left_of_this_one(ledger: Ledger) -> None:
    charge(ledger, "first", plan_for(1.0), 0, None)
    plan = plan_for(8.0)
    told = []
    for number in range(4):
        charge(ledger, "second", plan, number, None)
        told.append(ledger.receipt(DELTA, "second").proven)
    assert len(set(told)) == 1


def test_the_smallest_delta_of_all_runs_decides_what_is_allowed(ledger: Ledger) -> None:
    strict = plan_for(5.0, rounds=1, delta=1e-9)
    charge(ledger, "strict", strict, 0, 6.0)
    loose = plan_for(3.0, rounds=1)
    assert refused(ledger, "loose", loose, 0, 6.0)


def test_the_limit_of_one_run_is_held_to_the_same_bounds(ledger: Ledger) -> None:
    plan, other = plan_for(4.0), plan_for(3.0)
    ledger.charge(Charge(run="run", round=0, task_hash="a", plan=plan), 20.0, 4.0)
    with pytest.raises(ConfideError) as caught:
        ledger.charge(Charge(run="run", round=1, task_hash="b", plan=other), 20.0, 4.0)
    assert caught.value.code == "policy.max-epsilon-per-run"
    ledger.charge(Charge(run="next", round=0, task_hash="c", plan=plan), 20.0, 4.0)


def test_a_limit_without_end_is_no_limit(ledger: Ledger) -> None:
    bare = replace(plan_for(8.0), noise_multiplier=0.0, trust=type(plan_for(8.0).trust)("off"))
    charge(ledger, "bare", bare, 0, None)
    charge(ledger, "noised", plan_for(8.0), 0, math.inf)
    receipt = ledger.receipt(DELTA, "noised")
    assert (receipt.limit, receipt.proven, receipt.to_json()["proven"]) == (None, math.inf, None)


# --- promise 32 ---


def gaussian_delta(mu: float, epsilon: float) -> float:
    low = math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return float(ndtr(-epsilon / mu + mu / 2) - low)


def gaussian_epsilon(mu: float, delta: float) -> float:
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    return float(brentq(lambda e: gaussian_delta(mu, e) - delta, 0, 600))


@dataclass
class Seen:
    """What an adversary has released so far, as it knows it: nothing is read from the ledger."""

    wholes: list[tuple[str, Steps]] = field(default_factory=list)
    charged: list[GaussianSteps] = field(default_factory=list)

    def take(self, run: str, plan: Plan) -> None:
        whole = (run, (plan.steps(plan.max_rounds),))
        if whole not in self.wholes:
            self.wholes.append(whole)
        self.charged.append(plan.steps())

    def least_claim(self, order: float) -> float:
        """A bound that is proven for what happened, by dp-accounting and by hand."""
        if len(self.wholes) == 1:
            (step,) = self.wholes[0][1]
            account = PLDAccountant(value_discretization_interval=GRID)
            return float(account.compose(event_of(step)).get_epsilon(DELTA)) - GRID
        if all(step.sampling_rate == 1 for step in self.charged):
            mu = math.sqrt(sum(s.steps / s.noise_multiplier**2 for s in self.charged))
            return gaussian_epsilon(mu, DELTA)
        account = RdpAccountant([order])
        for step in merge(self.charged):
            account.compose(event_of(step))
        rho = float(account._rdp[0]) * (1 - 1e-3)  # its series is a little too high
        return rho + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)


def event_of(step: GaussianSteps) -> object:
    one = GaussianDpEvent(step.noise_multiplier)
    if step.sampling_rate < 1:
        one = PoissonSampledDpEvent(step.sampling_rate, one)
    return SelfComposedDpEvent(one, step.steps)


PLANS = [
    plan_for(epsilon, rate, rounds)
    for epsilon in (0.5, 2.0, 6.0)
    for rate, rounds in ((1.0, 3), (0.2, 8))
]


@pytest.mark.parametrize("limit", [None, 8.0, 12.0])
@pytest.mark.parametrize("seed", range(8))
def test_no_adversary_gets_a_claim_below_a_bound_proven_for_what_it_did(
    ledger: Ledger, tmp_path: Path, limit: float | None, seed: int
) -> None:
    """It stops runs early, goes back to them, reopens the ledger, changes plans under the same
    name and chooses each setting by the noise that it has just seen."""
    coin = random.Random(f"{seed}/{limit}")
    seen, runs = Seen(), [f"run-{number}" for number in range(3)]
    usable = [plan for plan in PLANS if seed % 2 or plan.sampling_rate == 1]
    path, plan, run = tmp_path / "ledger.sqlite", usable[seed % len(usable)], runs[0]
    for number in range(14):
        output = coin.gauss(0, 1)
        if abs(output) > 1:
            plan = usable[int(abs(output) * 1e6) % len(usable)]
        if output > 0.7:
            run = runs[int(output * 1e6) % len(runs)]
        with Ledger.open(path) as again:
            if not refused(again, run, plan, number, limit):
                seen.take(run, plan)
            if not seen.charged:
                continue
            receipt = again.receipt(DELTA, run)
            order = float(again.entries()[1].payload["order"])
        least = seen.least_claim(order)
        assert receipt.proven >= min(least, limit or math.inf)
        assert receipt.proven >= receipt.epsilon
        if limit is not None and len(seen.wholes) > 1:
            assert receipt.proven <= limit
            assert least <= limit
