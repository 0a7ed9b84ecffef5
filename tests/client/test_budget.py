"""What is left of a budget: the limit less what is spent, at the delta, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from confide.client.guard.policy import Policy
from confide.client.site.budget import Left, left_of, make_ledger, read_spending
from confide.common.errors import ConfideError
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan, Trust

DELTA = 1e-6
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=2.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=9,
    delta=DELTA,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    make_ledger(tmp_path / "ledger.sqlite")
    return tmp_path / "ledger.sqlite"


def spend(path: Path, plan: Plan, task: str = "t") -> None:
    with Ledger.open(path) as ledger:
        ledger.charge(Charge(run="r", round=1, task_hash=task, plan=plan), limit=None)


def test_a_ledger_that_is_there_stays_as_it_is(ledger: Path) -> None:
    spend(ledger, PLAN)
    before = ledger.read_bytes()
    make_ledger(ledger)
    assert ledger.read_bytes() == before


def test_nothing_is_read_where_there_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        read_spending(tmp_path / "none")
    assert caught.value.code == "ledger.missing"


def test_what_is_read_is_what_the_ledger_says(ledger: Path) -> None:
    spend(ledger, PLAN)
    with Ledger.open(ledger) as opened:
        wanted = (opened.entries(), opened.epsilon(DELTA), opened.head, opened.ledger_id)
    found = read_spending(ledger)
    assert (found.entries, found.epsilon(DELTA), found.book.head, found.book.ledger_id) == wanted
    assert (found.newest_delta, found.runs, found.count("reserved")) == (DELTA, ("r",), 1)


def test_all_is_left_before_the_first_charge_at_the_policys_delta(ledger: Path) -> None:
    (left,) = left_of(read_spending(ledger), Policy(max_epsilon=3.0, max_delta=1e-4))
    assert (left.spent, left.left, left.delta) == (0.0, 3.0, 1e-4)


def test_what_is_left_is_told_at_the_charges_delta_and_at_the_policys(ledger: Path) -> None:
    spend(ledger, PLAN)
    policy = Policy(max_epsilon=20.0, max_epsilon_per_run=2.0, max_delta=1e-4)
    tight, loose = left_of(read_spending(ledger), policy)
    for left, delta in ((tight, DELTA), (loose, 1e-4)):
        assert left.delta == delta
        assert left.spent == epsilon_pld([PLAN.steps(1)], delta)
        assert left.taken == epsilon_pld([PLAN.steps(9)], delta), "the run may go on to its end"
        assert left.left == max(0.0, 20.0 - left.taken)
    assert tight.left < loose.left
    assert tight.in_words() == (
        f"epsilon {tight.left:.4g} of 20 is left at delta = 1e-06 ({tight.spent:.4g} is spent,"
        f" {tight.taken:.4g} with all of r); another run may take about 2 of it"
    )


def test_never_less_than_nothing_is_left_and_a_run_gets_no_more_than_that(ledger: Path) -> None:
    spend(ledger, PLAN)
    policy = Policy(max_epsilon=1.0, max_epsilon_per_run=10.0, max_delta=DELTA)
    (left,) = left_of(read_spending(ledger), policy)
    assert left.left == 0.0
    assert "epsilon 0 of 1 is left" in left.in_words()
    assert left.in_words().endswith("; no other run can follow within the limit")


def test_a_first_run_that_has_the_limit_for_itself_leaves_nothing_for_another(
    ledger: Path,
) -> None:
    """Its plan fits by the PLD alone, and no bound for runs chosen one after another does."""
    plan = replace(PLAN, sampling_rate=0.1)
    limit = epsilon_pld([plan.steps(9)], DELTA) * 1.02
    with Ledger.open(ledger) as opened:
        opened.charge(Charge(run="r", round=1, task_hash="t", plan=plan), limit=limit)
        other = Charge(run="s", round=1, task_hash="u", plan=replace(plan, noise_multiplier=999.0))
        with pytest.raises(ConfideError, match="budget-exhausted"):
            opened.charge(other, limit=limit)
    (left,) = left_of(read_spending(ledger), Policy(max_epsilon=limit, max_delta=DELTA))
    assert (left.open, left.left) == (False, 0.0)
    assert left.spent < limit
    assert "no other run can follow" in left.in_words()


def test_without_noise_nothing_is_left_for_ever(ledger: Path) -> None:
    bare = Plan.from_json({**PLAN.to_json(), "trust": str(Trust.OFF), "noise_multiplier": 0.0})
    spend(ledger, bare)
    (left,) = left_of(read_spending(ledger), Policy(max_delta=DELTA))
    assert left.in_words().startswith("nothing is left at delta = 1e-06")
    nothing = {"delta": DELTA, "spent": None, "taken": None, "limit": 10.0, "left": 0.0}
    assert left.to_json() == nothing


def test_an_infinite_limit_is_no_number_of_json() -> None:
    left = Left(spent=1.0, taken=2.0, limit=float("inf"), per_run=1.0, delta=DELTA)
    told = {"delta": DELTA, "spent": 1.0, "taken": 2.0, "limit": None, "left": None}
    assert left.to_json() == told
