"""The administrator's word on single runs: asked before, allowed, denied, at any time."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from confide.client.guard import runs as module
from confide.client.guard.policy import Policy
from confide.client.guard.runs import Decision, asked, check_run, decide, decisions
from confide.common.errors import ConfideError
from confide.common.plans import planned_steps
from confide.common.privacy.accountant import epsilon_pld
from confide.common.settings import Settings, from_flat
from tests import tiny
from tests.client.conftest import Place, code

ASKING, USUAL = Policy(ask_before_run=True), Policy()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def settings() -> Settings:
    flat = tiny.config(Path("m"), Path("f"), Path("o"), run__coordinator="uni")
    return from_flat(flat)


def said(run: str, settings: Settings, policy: Policy, ledger: Path) -> str:
    """The code of the refusal, or nothing."""
    try:
        check_run(run, settings, policy, ledger)
    except ConfideError as error:
        return error.code
    return ""


def test_an_unknown_run_waits_for_a_yes_where_the_administrator_wants_to_be_asked(
    settings: Settings, ledger: Path
) -> None:
    for _ in range(2):
        assert said("run-1", settings, ASKING, ledger) == "policy.ask-before-run"
    decide("run-1", Decision.ALLOWED, ledger)
    assert said("run-1", settings, ASKING, ledger) == ""
    assert said("run-2", settings, ASKING, ledger) == "policy.ask-before-run"


def test_a_denied_run_is_refused_whatever_the_policy_says(settings: Settings, ledger: Path) -> None:
    assert said("run-1", settings, USUAL, ledger) == ""
    decide("run-1", Decision.DENIED, ledger)
    for policy in (USUAL, ASKING):
        assert said("run-1", settings, policy, ledger) == "policy.run-denied"
    assert said("run-2", settings, USUAL, ledger) == ""
    decide("run-1", Decision.ALLOWED, ledger)
    assert said("run-1", settings, ASKING, ledger) == ""


def test_what_asked_is_kept_with_what_it_says_and_what_it_would_spend(
    settings: Settings, ledger: Path
) -> None:
    said("run-1", settings, ASKING, ledger)
    one = asked(ledger)["run-1"]
    assert (one.coordinator, one.task) == ("uni", "classification")
    steps, delta = planned_steps(settings), settings.privacy.delta
    assert one.epsilon == epsilon_pld(steps, delta)


def test_without_being_asked_nothing_is_written_for_a_request(
    settings: Settings, ledger: Path
) -> None:
    said("run-1", settings, USUAL, ledger)
    assert list(ledger.parent.iterdir()) == []


def test_who_asks_for_ever_fills_no_disk(
    settings: Settings, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ASKED", 3)
    for number in range(6):
        said(f"run-{number}", settings, ASKING, ledger)
    assert list(asked(ledger)) == ["run-3", "run-4", "run-5"]


@pytest.mark.parametrize("run", ["", "a b", "x" * 129, "\x1b[2J", "../up", "run\n1"])
def test_a_run_whose_id_nobody_could_type_is_not_asked_about(
    run: str, settings: Settings, ledger: Path
) -> None:
    assert said(run, settings, ASKING, ledger) == "task.run"
    assert asked(ledger) == {}
    with pytest.raises(ConfideError) as caught:
        decide(run, Decision.ALLOWED, ledger)
    assert caught.value.code == "task.run"


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"run-1": "perhaps"}', "[" * 5000, "\x00"])
def test_decisions_that_cannot_be_read_may_have_held_a_no(
    text: str, settings: Settings, ledger: Path
) -> None:
    decide("run-1", Decision.DENIED, ledger)
    (file,) = ledger.parent.iterdir()
    file.write_text(text)
    for policy in (USUAL, ASKING):
        assert said("run-2", settings, policy, ledger) == "policy.decisions"


def test_a_spoilt_list_of_who_asked_decides_nothing(settings: Settings, ledger: Path) -> None:
    said("run-1", settings, ASKING, ledger)
    (file,) = ledger.parent.iterdir()
    for text in ("{", "[]", '{"run-1": {}}', '{"run-1": 7}'):
        file.write_text(text)
        assert asked(ledger) == {}
        assert said("run-1", settings, ASKING, ledger) == "policy.ask-before-run"


def test_both_files_are_for_the_ledgers_user_alone(settings: Settings, ledger: Path) -> None:
    said("run-1", settings, ASKING, ledger)
    decide("run-1", Decision.DENIED, ledger)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in ledger.parent.iterdir()}
    assert modes == {0o600}


def test_a_full_disk_refuses_a_run_as_before(
    settings: Settings, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "replace_durably", full)
    assert said("run-1", settings, ASKING, ledger) == "policy.ask-before-run"
    with pytest.raises(ConfideError) as caught:
        decide("run-1", Decision.DENIED, ledger)
    assert caught.value.code == "policy.write"


# At the holder


def test_a_run_is_denied_in_its_middle_and_not_even_its_old_replies_are_given_again(
    place: Place,
) -> None:
    first = place.task(1)
    assert code(place.holder.handle(first)) == "update"
    decide("run-1", Decision.DENIED, place.site.ledger)
    for task in (first, place.task(2)):
        assert code(place.holder.handle(task)) == "policy.run-denied"
    assert code(place.holder.handle(place.task(1, run="run-2"))) == "update"
    assert place.charges() == 2


def test_a_run_that_waits_for_a_yes_charges_nothing_and_goes_on_after_it(
    make_place: Callable[..., Place], tiny_model: Path
) -> None:
    place = make_place(Policy(max_delta=1e-2, base_models=(str(tiny_model),), ask_before_run=True))
    assert code(place.holder.handle(place.task())) == "policy.ask-before-run"
    assert not place.site.ledger.exists()
    # What does not fit the policy is refused for that, and nobody is asked about it.
    assert code(place.holder.handle(place.hostile(privacy__delta=0.1))) == "policy.max-delta"
    decide("run-1", Decision.ALLOWED, place.site.ledger)
    assert code(place.holder.handle(place.task())) == "update"


def test_the_decision_depends_on_run_and_policy_alone(
    settings: Settings, ledger: Path, tmp_path: Path
) -> None:
    """Whatever else the request or the holder holds, the same code comes."""
    changed = dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, steps=settings.train.steps + 1)
    )
    found = {said("run-1", some, ASKING, ledger) for some in (settings, changed)}
    assert found == {"policy.ask-before-run"}
    assert json.loads(next(ledger.parent.iterdir()).read_text()).keys() == {"run-1"}
    assert decisions(ledger) == {}
