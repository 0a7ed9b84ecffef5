"""What a holder's receipts add up to, however many there are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Receipt
from confide.server.report import histories as module
from confide.server.report.histories import MOST_MARKS, History, add_round


def receipt(number: int, **changes: Any) -> dict[str, Any]:
    steps = GaussianSteps(noise_multiplier=2.0, sampling_rate=0.5, steps=number)
    made = Receipt(
        ledger_id="it",
        head=f"{number:064x}",
        entries=2 * number,
        delta=1e-5,
        epsilon=0.1 * number,
        proven=200.0,
        unmasked=200.0,
        runs=1,
        limit=None,
        steps_run=(steps,),
    )
    told: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    return told | changes


def after(*told: Any) -> History:
    history = History()
    for number, one in enumerate(told, 1):
        history.take(number, one)
    history.finish()
    return history


def test_the_newest_receipt_and_the_number_of_rounds_are_kept() -> None:
    history = after(receipt(1), receipt(2), receipt(3))
    assert (history.rounds, history.updates, history.last_round) == (3, 3, 3)
    assert history.newest == Receipt.from_json(receipt(3))
    assert (history.bare, history.breaks) == ([], [])


def test_a_round_done_again_counts_once_and_its_update_twice() -> None:
    history = History()
    for number in (1, 2, 2):
        history.take(number, receipt(number))
    assert (history.rounds, history.updates) == (2, 3)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (receipt(2, ledger_id="other"), "another ledger took over"),
        (receipt(2, entries=1), "its ledger went back"),
        (receipt(2, epsilon=0.01), "its ledger went back"),
        (receipt(2, entries=2), "its ledger was rewritten"),
    ],
)
def test_a_ledger_that_does_not_go_on_is_named(second: dict[str, Any], what: str) -> None:
    assert after(receipt(1), second).breaks == [what]


def test_a_ledger_without_a_bound_cannot_find_one_again() -> None:
    endless = receipt(1, epsilon=None, proven=None, unmasked=None)
    assert after(endless, receipt(2)).breaks == ["its ledger went back"]


BAD = [
    None,
    {},
    [],
    receipt(1) | {"more": 1},
    receipt(1, entries=True),
    receipt(1, entries=0),
    receipt(1, delta=1.0),
    receipt(1, epsilon=-1.0),
    receipt(1, epsilon="0.1"),
    receipt(1, head=7),
    receipt(1, runs=0),
    receipt(1, limit="8"),
    receipt(1, limit=-1.0),
    receipt(1, proven=0.01),
    receipt(1, steps_run=[receipt(1)["steps_run"][0]] * 17),
    receipt(1, steps_run={}),
    receipt(1, steps_run=[{}]),
    receipt(1, steps_run=[{"noise_multiplier": -1.0, "sampling_rate": 0.5, "steps": 1}]),
    receipt(1, steps_run=[{"noise_multiplier": 1.0, "sampling_rate": 0.0, "steps": 1}]),
    receipt(1, steps_run=[{"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": True}]),
    receipt(1, steps_run=[{"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": -1}]),
]


@pytest.mark.parametrize("told", BAD)
def test_what_is_no_receipt_is_an_update_without_noise(told: Any) -> None:
    history = after(told)
    assert history.bare == [1]
    assert history.newest is None


ENDLESS = receipt(1, epsilon=None, proven=None, unmasked=None)


@pytest.mark.parametrize("told", [*BAD, receipt(1), ENDLESS, receipt(9)])
def test_the_quick_look_accepts_nothing_that_the_full_check_refuses(told: Any) -> None:
    if module._plainly(told):
        Receipt.from_json(told)
    else:
        assert told in BAD or told["epsilon"] is None


@pytest.mark.parametrize("steps", [[], [0.0], [2.0, 0.0]])
def test_a_step_without_noise_is_not_overlooked(steps: list[float]) -> None:
    told = [{"noise_multiplier": z, "sampling_rate": 0.5, "steps": 1} for z in steps]
    assert after(receipt(1, steps_run=told)).bare == [1]


def test_the_marks_of_a_long_run_are_thinned_and_end_with_the_last_round() -> None:
    count = 1000
    history = after(*(receipt(number) for number in range(1, count + 1)))
    assert MOST_MARKS / 2 <= len(history.marks) <= MOST_MARKS + 1
    assert history.marks[-1][0] == count
    assert all(steps[0].steps == number for number, steps in history.marks)
    gaps = [b - a for (a, _), (b, _) in zip(history.marks, history.marks[1:], strict=False)]
    assert max(gaps) <= 2 * 32


@pytest.mark.parametrize("number", [-1, 1.5, "1", 10**9])
def test_a_round_without_a_number_is_refused(number: Any) -> None:
    with pytest.raises(ConfideError) as caught:
        add_round({}, {"round": number, "accepted": []})
    assert caught.value.code == "report.metrics"


def test_a_receipt_of_many_kinds_of_steps_is_none_and_costs_no_accounting() -> None:
    """Each would cost the accountant of whoever reads a foreign run folder."""
    many = [
        {"noise_multiplier": 1.0 + number, "sampling_rate": 1.0, "steps": 1} for number in range(9)
    ]
    history = after(receipt(1), receipt(2, steps_run=many), receipt(3, steps_run=many[:8]))
    assert history.bare == [2]
    assert history.newest is not None
    assert len(history.newest.steps_run) == 8
