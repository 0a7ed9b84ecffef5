"""What an administrator says yes to: all that leaves, each limit, and nothing that is not so."""

from __future__ import annotations

import dataclasses
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from confide.client.commands.consent import (
    _ELSEWHERE,
    _SENTENCES,
    of_contract,
    of_policy,
    plain_words,
)
from confide.client.guard.contract import Contract
from confide.client.guard.policy import SIMULATION, Policy
from confide.client.site.budget import make_ledger
from confide.client.site.join import Joining
from confide.client.site.users import User
from confide.client.text.check_data import check_data
from confide.client.text.taken import identity_of
from confide.common.machine.installed import code_hash
from confide.common.machine.kit import Kit
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.common.wire.outgoing import PARTS
from tests import tiny

CONTRACT = Contract(
    target="label", tasks=("classification",), labels=("negative", "positive"), unit="record"
)
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=3.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=9,
    delta=1e-5,
)


@pytest.fixture
def joining(tmp_path: Path) -> Joining:
    ledger = tmp_path / "text.jsonl.ledger.sqlite"
    make_ledger(ledger)
    return Joining(
        kit=Kit(
            folder=tmp_path / "kit",
            name="ward-7",
            coordinator="fl.example.org",
            fleet="fl.example.org:443",
            bundles=("a" * 64,),
            expires=date(2027, 1, 1),
        ),
        data=tiny.write_jsonl(tmp_path / "text.jsonl", tiny.rows(24, seed=3)),
        policy=tmp_path / "policy.toml",
        ledger=ledger,
        socket=tmp_path / "run" / "socket",
    )


def said(joining: Joining, contract: Contract = CONTRACT, **limits: Any) -> str:
    found = check_data(joining.data, contract=contract)
    return "\n".join(plain_words(joining, found, Policy(**limits), contract))


def test_the_words_name_what_leaves_what_is_allowed_and_which_code_may_run(
    joining: Joining,
) -> None:
    words = said(joining, max_epsilon=3.5, coordinators=("uni",))
    for part in (
        "ward-7 joins the coordinator at fl.example.org:443",
        "24 records. This count is shown here alone",
        "epsilon up to 3.5 over all runs",
        "protected is each record",
        "come from uni",
        "labels: negative, positive",
        "a" * 64,
        code_hash(),
    ):
        assert part in words
    for part in PARTS.values():
        if part.protection.name == "OUTSIDE":
            assert part.what in words
            assert part.why[1:] in words


def test_every_limit_of_the_policy_has_its_sentence_with_its_value() -> None:
    limits = [field.name for field in dataclasses.fields(Policy)]
    assert sorted([*(says.limit for says in _SENTENCES), *_ELSEWHERE]) == sorted(limits)
    usual = of_policy(Policy())
    for field in dataclasses.fields(Policy):
        if field.name not in _ELSEWHERE:
            changed = of_policy(dataclasses.replace(Policy(), **{field.name: other(field)}))
            assert changed != usual, field.name


def other(field: Any) -> Any:
    """A value that is not the default."""
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, str):
        return "x"
    return ("x",) if isinstance(field.default, tuple) else field.default + 1


def test_sums_are_said_to_leave_where_the_policy_allows_them_and_only_there(
    joining: Joining,
) -> None:
    """What was consented to before said "never a count or a measure" in either case."""
    with_sums, without = said(joining), said(joining, allow_sums=False)
    assert "of how many records each class has" in with_sums
    assert "Each is charged to the ledger" in with_sums
    assert "NOISY SUMS" in with_sums
    assert "of how many records each class has" not in without
    assert "no count and no score leaves, not even with noise" in without
    for words in (with_sums, without):
        assert "Never:" not in words


def test_a_policy_that_allows_runs_without_noise_says_so_loudly(joining: Joining) -> None:
    loud = said(joining, allow_unprotected=True)
    assert "EXCEPT in runs without noise" in loud
    assert "WITHOUT NOISE" in loud
    assert "EXCEPT" not in said(joining)
    assert "not train without noise" in said(joining)


def test_being_asked_before_each_run_is_said(joining: Joining) -> None:
    assert "each run waits for your yes" in said(joining, ask_before_run=True)
    assert "says no to one, at any time" in said(joining)


def test_what_the_ledger_has_left_is_said_and_a_new_one_is_called_new(joining: Joining) -> None:
    with Ledger.open(joining.ledger) as ledger:
        ledger.charge(Charge(run="r", round=1, task_hash="t", plan=PLAN), limit=None)
        taken = ledger.proven(1e-5, "r")
    words = said(joining, max_epsilon=10.0)
    assert f"epsilon {10 - taken:.4g} of 10 is left at delta = 1e-05" in words
    new = dataclasses.replace(joining, new_ledger=True, ledger=joining.ledger.with_name("new"))
    assert "a new one" in said(new)
    assert "which knows of nothing spent before" in said(new)


def test_a_ledger_that_was_used_with_other_text_is_noticed(joining: Joining) -> None:
    """Named by mistake, it would be charged for this text, whose own past nobody would look at."""
    with Ledger.open(joining.ledger) as ledger:
        ledger.charge(Charge(run="r", round=1, task_hash="t", plan=PLAN), limit=None)
        identity = identity_of(joining.data.read_bytes(), ledger.identity_key)
        ledger.release("t", b"update", identity)
    assert "last used with other text" not in said(joining)
    tiny.write_jsonl(joining.data, tiny.rows(24, seed=4))
    assert "last used with other text" in said(joining)


def test_one_user_for_both_is_a_plain_warning_and_two_are_named(joining: Joining) -> None:
    assert "WARNING: both processes run as the same user" in said(joining)
    apart = dataclasses.replace(
        joining,
        resident=User(name="daemon", uid=1, gid=1),
        gateway=User(name="nobody", uid=65534, gid=65534),
    )
    assert "WARNING" not in said(apart)
    assert "read by the user daemon, without a network" in said(apart)


def test_a_contract_of_a_scale_or_of_persons_is_said_as_it_is(joining: Joining) -> None:
    scale = Contract(target="score", tasks=("regression",), low=1.0, high=5.0)
    assert "the scale: 1 to 5" in of_contract(scale)
    persons = Contract(person="person", unit="person", tasks=("causal",))
    assert "protected is each person" in said(joining, persons)
    assert "Each person's part in it" in said(joining, persons)


def test_the_limits_of_a_simulation_can_be_said_too() -> None:
    assert "name ANY base model" in "\n".join(of_policy(SIMULATION))
