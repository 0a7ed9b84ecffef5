"""The holder's limits: each has a code of its own, is met exactly, and adjusts nothing."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard import policy as policy_module
from confide.client.guard.contract import Contract
from confide.client.guard.policy import (
    SIMULATION,
    Policy,
    review,
    review_model,
    review_openers,
    review_plan,
    review_requests,
    review_roster,
    review_sum,
)
from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.plan import Plan, Trust
from confide.common.settings import Settings, from_flat

HUB_ID = "someone/small-model"
OTHER_PIN = "0" * 64
PIN = "0123456789abcdef" * 4
NOISE, DELTA = 4.0, 1e-5
ROUNDS = 10
TEXT = Contract(target="label", tasks=("classification",), labels=("a", "b"))


def policy(**limits: Any) -> Policy:
    """The defaults with a text that the settings of this file fit."""
    return Policy(data=limits.pop("data", TEXT), **limits)


def settings(**changes: Any) -> Settings:
    flat = {"model.name": HUB_ID, "task.labels": "a,b", "privacy.delta": DELTA}
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return from_flat(flat | named)


def refused(holder: Policy, **changes: Any) -> str:
    with pytest.raises(ConfideError) as caught:
        review(settings(**changes), holder)
    assert caught.value.hint
    return caught.value.code


def allowed(holder: Policy, **changes: Any) -> bool:
    try:
        review(settings(**changes), holder)
    except ConfideError:
        return False
    return True


def plan(**changes: Any) -> Plan:
    numbers: dict[str, Any] = {
        "clip_norm": 1.0,
        "noise_multiplier": NOISE,
        "sampling_rate": 1.0,
        "steps_per_round": 1,
        "max_rounds": ROUNDS,
        "delta": DELTA,
    }
    return Plan(**(numbers | changes))


def refused_plan(policy: Policy, charged: Sequence[GaussianSteps] = (), **changes: Any) -> str:
    with pytest.raises(ConfideError) as caught:
        review_plan(plan(**changes), policy, charged)
    assert caught.value.hint
    return caught.value.code


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, and a working folder beside it."""
    models = tmp_path / "cache" / "models"
    (models / HUB_ID).mkdir(parents=True)
    (models / "plain").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    return models


# Limits on one number of the settings: the limit, what meets it, what passes it

ABOVE = 1 + 1e-9
COPIES = {"task__word_dropout": 0.1}
SHARED = {
    "privacy__trust": "distributed",
    "privacy__colluding": 2,
    "round__mode": "gradient",
    "round__min_holders": 8,
}
IN_SHARES: dict[str, Any] = {"trust": Trust.DISTRIBUTED, "least": 8, "colluding": 2}
NUMBERS: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("max_delta", 1e-6, {"privacy__delta": 1e-6}, {"privacy__delta": 1e-6 * ABOVE}),
    ("max_clip", 2.0, {"privacy__clip": 2.0}, {"privacy__clip": 2.0 * ABOVE}),
    ("max_rounds", 30, {"round__count": 30}, {"round__count": 31}),
    ("max_steps_per_round", 5, {"train__steps": 5}, {"train__steps": 6}),
    (
        "max_steps_per_run",
        60,
        {"train__steps": 3, "round__count": 20},
        {"train__steps": 3, "round__count": 21},
    ),
    ("max_passes", 5.0, {"train__rate": 0.25}, {"train__rate": 0.25 * ABOVE}),
    ("max_sampling_rate", 0.25, {"train__rate": 0.25}, {"train__rate": 0.25 * ABOVE}),
    ("max_length", 99, {"train__max_length": 99}, {"train__max_length": 100}),
    ("max_copies", 3, COPIES | {"task__copies": 3}, COPIES | {"task__copies": 4}),
    ("max_dropout", 0.2, {"task__word_dropout": 0.2}, {"task__word_dropout": 0.2 * ABOVE}),
    ("max_batch", 64, {"train__batch": 64}, {"train__batch": 65}),
    ("max_rank", 4, {"lora__rank": 4}, {"lora__rank": 5}),
    (
        "max_records_per_person",
        9,
        {"privacy__records_per_person": 9},
        {"privacy__records_per_person": 10},
    ),
    (
        "max_epsilon_per_run",
        3.0,
        {"privacy__epsilon": 3.0},
        {"privacy__epsilon": 3.0 * ABOVE},
    ),
    (
        "min_noise_multiplier",
        2.0,
        {"privacy__noise_multiplier": 2.0},
        {"privacy__noise_multiplier": 2.0 / ABOVE},
    ),
    (
        "min_contributions",
        5,
        SHARED | {"round__min_holders": 5},
        SHARED | {"round__min_holders": 4},
    ),
    (
        "colluding",
        2,
        SHARED | {"privacy__colluding": 2},
        SHARED | {"privacy__colluding": 1},
    ),
]


@pytest.mark.parametrize(("limit", "value", "fits", "passes"), NUMBERS, ids=lambda x: str(x)[:30])
def test_a_limit_is_itself_allowed_and_what_passes_it_is_refused_by_its_name(
    cache: Path, limit: str, value: Any, fits: dict[str, Any], passes: dict[str, Any]
) -> None:
    policy = dataclasses.replace(SIMULATION, **{limit: value})
    assert allowed(policy, **fits)
    assert refused(policy, **passes) == f"policy.{limit.replace('_', '-')}"
    assert allowed(SIMULATION, **passes)


@pytest.mark.parametrize("limit", [row[0] for row in NUMBERS])
def test_a_limit_that_is_no_number_allows_nothing(cache: Path, limit: str) -> None:
    policy = dataclasses.replace(SIMULATION, **{limit: math.nan})
    noise = {"privacy__noise_multiplier": NOISE} if limit == "min_noise_multiplier" else {}
    shared = SHARED if limit in ("min_contributions", "colluding") else {}
    assert refused(policy, **noise, **shared) == f"policy.{limit.replace('_', '-')}"


def test_every_limit_on_a_number_is_tried_here() -> None:
    numbers = {f.name for f in fields(Policy) if "low" in f.metadata}
    # By the ledger, by a clock, and by the plan below.
    elsewhere = {"max_epsilon", "max_requests_per_day", "max_epsilon_unmasked"}
    assert numbers == {row[0] for row in NUMBERS} | elsewhere


def test_the_defaults_allow_an_ordinary_run(cache: Path) -> None:
    assert allowed(policy())
    assert allowed(policy(), round__count=100, train__steps=20, privacy__noise_multiplier=0.5)


def test_what_is_refused_is_told_by_name_value_and_limit(cache: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        review(settings(train__batch=65), policy(max_batch=64))
    assert "train.batch = 65 is above max-batch = 64." in caught.value.message


def test_what_is_left_if_every_mask_fails_is_limited_over_all_runs() -> None:
    whole = plan(**IN_SHARES).unmasked(ROUNDS)
    left = epsilon_pld([whole], DELTA)
    assert left > epsilon_pld([plan().steps(ROUNDS)], DELTA)
    just = dataclasses.replace(SIMULATION, max_epsilon_unmasked=left * ABOVE)
    review_plan(plan(**IN_SHARES), just, ())
    less = dataclasses.replace(SIMULATION, max_epsilon_unmasked=left / ABOVE)
    assert refused_plan(less, **IN_SHARES) == "policy.max-epsilon-unmasked"
    review_plan(plan(), less, ())  # local noise has no masks
    with pytest.raises(ConfideError, match="max-epsilon-unmasked"):
        review_plan(plan(**IN_SHARES), just, (), unmasked=(plan().unmasked(1),))


@pytest.mark.parametrize(
    ("written", "told", "code"),
    [
        ("", "a" * 64, "policy.roster"),
        ("", "", "policy.roster"),
        ("sha256:" + "a" * 64, "b" * 64, "policy.roster"),
        ("sha256:" + "a" * 64, "", "policy.roster"),
        ("sha256:" + "a" * 64, "a" * 64, ""),
    ],
)
def test_a_roster_is_the_one_that_was_compared(written: str, told: str, code: str) -> None:
    if not code:
        review_roster(told, Policy(roster=written))
        return
    with pytest.raises(ConfideError) as caught:
        review_roster(told, Policy(roster=written))
    assert caught.value.code == code


def test_one_opener_is_this_holder_or_one_that_it_trusts() -> None:
    review_openers(["b", "own"], "own", Policy())
    review_openers(["b", "c"], "own", Policy(openers=("c",)))
    with pytest.raises(ConfideError, match=r"policy\.openers"):
        review_openers(["b", "c"], "own", Policy(openers=("d",)))


# Limits on what follows from the number of units


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_largest_share_of_the_data_is_a_limit(rate: float) -> None:
    review_plan(plan(sampling_rate=rate), policy(max_sampling_rate=rate), ())
    narrow = policy(max_sampling_rate=rate / ABOVE)
    assert refused_plan(narrow, sampling_rate=rate) == "policy.max-sampling-rate"
    bare = {"trust": Trust.OFF, "noise_multiplier": 0.0, "sampling_rate": rate}
    assert refused_plan(narrow, **bare) == "policy.max-sampling-rate"
    assert refused_plan(policy(max_sampling_rate=math.nan)) == "policy.max-sampling-rate"


def test_noise_that_was_calibrated_is_held_against_the_limit_too() -> None:
    review_plan(plan(), policy(min_noise_multiplier=NOISE), ())
    least = policy(min_noise_multiplier=NOISE * ABOVE)
    assert refused_plan(least) == "policy.min-noise-multiplier"
    assert refused_plan(policy(min_noise_multiplier=math.nan)) == "policy.min-noise-multiplier"


def spent(steps: int, noise: float = NOISE) -> float:
    taken = GaussianSteps(noise_multiplier=noise, sampling_rate=1.0, steps=steps)
    return epsilon_pld([taken], DELTA)


def test_the_epsilon_of_a_run_is_that_of_all_its_rounds() -> None:
    review_plan(plan(), policy(max_epsilon_per_run=spent(ROUNDS)), ())
    less = policy(max_epsilon_per_run=spent(ROUNDS) - 1e-6)
    assert refused_plan(less) == "policy.max-epsilon-per-run"
    assert refused_plan(policy(max_epsilon_per_run=math.nan)) == "policy.max-epsilon-per-run"


@pytest.mark.parametrize("done", [1, 4, 9])
def test_rounds_that_were_charged_are_not_planned_again(done: int) -> None:
    charged = (GaussianSteps(noise_multiplier=NOISE, sampling_rate=1.0, steps=done),)
    review_plan(plan(), policy(max_epsilon_per_run=spent(ROUNDS)), charged)
    less = policy(max_epsilon_per_run=spent(ROUNDS) - 1e-6)
    assert refused_plan(less, charged) == "policy.max-epsilon-per-run"


def test_a_run_that_changes_half_way_gains_nothing() -> None:
    limit = policy(max_epsilon_per_run=spent(ROUNDS))
    review_plan(plan(noise_multiplier=NOISE * 2), limit, ())
    loud = (GaussianSteps(noise_multiplier=NOISE / 2, sampling_rate=1.0, steps=5),)
    assert refused_plan(limit, loud) == "policy.max-epsilon-per-run"
    over = (GaussianSteps(noise_multiplier=NOISE, sampling_rate=1.0, steps=ROUNDS),)
    assert refused_plan(limit, over) == "policy.max-epsilon-per-run"


def test_a_run_without_noise_has_no_epsilon_to_be_held_against_a_limit() -> None:
    bare = plan(trust=Trust.OFF, noise_multiplier=0.0)
    review_plan(bare, policy(max_epsilon_per_run=0.0), ())


def test_a_run_without_noise_needs_permission(cache: Path) -> None:
    assert refused(policy(), privacy__trust="off") == "policy.allow-unprotected"
    assert allowed(policy(allow_unprotected=True), privacy__trust="off")


# The text and coordinators


def test_without_a_contract_every_run_is_refused(cache: Path) -> None:
    assert refused(Policy()) == "contract.missing"
    assert allowed(Policy(allow_any_data=True))
    assert refused(policy(allow_any_data=True), data__text="note") == "contract.text"


def test_the_arithmetic_must_be_one_of_the_policys(cache: Path) -> None:
    assert allowed(policy(dtypes=("bfloat16",)), model__dtype="bfloat16")
    assert refused(policy(), model__dtype="bfloat16") == "policy.dtypes"
    assert refused(policy(dtypes=())) == "policy.dtypes"


def test_a_run_goes_no_more_often_through_the_text_than_allowed(cache: Path) -> None:
    passes = {"train__rate": 0.5, "train__steps": 4, "round__count": 6}
    copies = {"task__copies": 2, "task__word_dropout": 0.1}
    assert allowed(policy(max_passes=12), **passes)
    assert refused(policy(max_passes=11.9), **passes) == "policy.max-passes"
    assert refused(policy(max_passes=23.9), **passes, **copies) == "policy.max-passes"
    assert allowed(policy(max_passes=24), **passes, **copies)


def test_so_many_tasks_are_worked_on_in_a_day(cache: Path) -> None:
    worked, limit = deque[float](), policy(max_requests_per_day=2)
    for now in (0.0, 10.0):
        review_requests(worked, limit, now)
    with pytest.raises(ConfideError, match=r"policy\.max-requests-per-day"):
        review_requests(worked, limit, 86_399.0)
    review_requests(worked, limit, 86_400.0)  # the first is a day ago
    assert list(worked) == [10.0, 86_400.0]


def test_only_the_coordinators_of_the_policy_are_allowed(cache: Path) -> None:
    assert allowed(policy(), run__coordinator="anyone")
    listed = policy(coordinators=("The Institute",))
    assert allowed(listed, run__coordinator="The Institute")
    for name in ("", "The", "the institute", "The Institute "):
        assert refused(listed, run__coordinator=name) == "policy.coordinators"


# Base models


def test_only_listed_models_are_allowed_when_there_is_a_list(cache: Path) -> None:
    listed = policy(base_models=("a/b", "/opt/models/own"))
    for name in ("a/b", "/opt/models/own"):
        review(settings(model__name=name), listed)
    for name in (
        HUB_ID,
        "a/B",
        "a/b/",
        "a",
        "a/b/c",
        "a/bc",
        "/opt/models",
        "/opt/models/own/../x",
    ):
        assert refused(listed, model__name=name) == "policy.base-models"
    for switch in ("allow_unprotected", "allow_any_model"):
        assert refused(policy(base_models=("a/b",), **{switch: True})) == "policy.base-models"


def test_a_pin_is_no_part_of_the_name(cache: Path) -> None:
    pinned = policy(base_models=(f"a/b@sha256:{PIN}",))
    assert allowed(pinned, model__name="a/b")
    for name in (f"a/b@sha256:{PIN}", "a/b@sha256:", "a"):
        assert refused(pinned, model__name=name) == "policy.base-models"


def test_the_weights_must_be_those_of_the_pin() -> None:
    pinned = policy(base_models=(f"a/b@sha256:{PIN}", f"c@sha256:{OTHER_PIN}", "free"))
    review_model("a/b", PIN, pinned)
    review_model("free", OTHER_PIN, pinned)
    review_model("free", "", pinned)
    for name, found in (("a/b", OTHER_PIN), ("a/b", ""), ("a/b", PIN[:-1]), ("c", PIN)):
        with pytest.raises(ConfideError, match=r"policy\.base-model-hash"):
            review_model(name, found, pinned)
    review_model("a/b", OTHER_PIN, policy(base_models=(f"a/b@sha256:{PIN}", "a/b")))
    review_model("a/b", OTHER_PIN, policy())


@pytest.mark.parametrize("name", [HUB_ID, "plain"])
def test_without_a_list_the_models_in_the_cache_are_allowed(cache: Path, name: str) -> None:
    assert allowed(policy(), model__name=name)


@pytest.mark.parametrize(
    "name",
    ["someone/not-here", "/etc", "~", "~root", ".", "..", "../models/plain", "plain/..", "plain/",
     "./plain", "someone", "someone/../plain", "a/b/c", "file:///etc", "plain\n", "pläin",
     "..\\etc", "plain\x00", "x" * 5000, "pla\u0131n", "https://example.org/plain"],
)  # fmt: skip
def test_without_a_list_no_path_and_no_download_is_allowed(cache: Path, name: str) -> None:
    (cache / "a" / "b" / "c").mkdir(parents=True)
    if name == "someone":
        (cache / HUB_ID).rmdir()
        (cache / "someone").rmdir()
    for holder in (policy(), policy(allow_unprotected=True)):
        assert refused(holder, model__name=name) == "policy.base-models"


def test_an_absolute_path_is_refused_even_into_the_cache(cache: Path) -> None:
    assert refused(policy(), model__name=str(cache / "plain")) == "policy.base-models"


def test_a_folder_that_happens_to_lie_here_is_not_the_model_of_that_name(cache: Path) -> None:
    (Path.cwd() / HUB_ID).mkdir(parents=True)
    assert refused(policy()) == "policy.base-models"


def test_only_a_simulation_may_name_any_model(cache: Path) -> None:
    for name in ("/anywhere/model", "../model", "someone/remote"):
        assert allowed(SIMULATION, model__name=name)
        assert allowed(policy(allow_any_model=True), model__name=name)
        assert refused(policy(allow_any_model=True), model__name=name, privacy__trust="off") == (
            "policy.allow-unprotected"
        )


# The whole


def test_no_text_of_a_task_fills_the_message_of_its_refusal(cache: Path) -> None:
    long = "x" * 9000
    for name, holder in (
        ("model__name", policy()),
        ("data__text", policy()),
        ("task__labels", policy()),
        ("run__coordinator", policy(coordinators=("us",))),
    ):
        value = f"{long[:4000]},{long}" if name == "task__labels" else long
        with pytest.raises(ConfideError) as caught:
            review(settings(**{name: value[:9000]}), holder)
        assert len(str(caught.value)) < 400


def test_every_limit_of_the_policy_is_looked_at(cache: Path) -> None:
    seen: set[str] = set()

    class Watched(Policy):
        def __getattribute__(self, name: str) -> Any:
            seen.add(name)
            return super().__getattribute__(name)

    watched = Watched(data=TEXT)
    review(settings(), watched)
    review_requests(deque(), watched, 0.0)
    review_plan(plan(), watched, ())
    review_sum(settings(), watched)
    review(settings(**SHARED), watched)
    review_plan(plan(**IN_SHARES), watched, ())
    review_roster("", Watched(allow_any_roster=True))
    review_openers(("own",), "own", watched)
    review(settings(privacy__trust="off"), Watched(allow_unprotected=True, allow_any_data=True))
    limits = {f.name for f in fields(Policy)}
    # Of all runs: the ledger's, see test_holder.py. Of single runs: see test_runs.py.
    assert limits - seen == {"max_epsilon", "ask_before_run"}


def test_a_limit_is_refused_under_its_own_name() -> None:
    limits = {f.name.replace("_", "-") for f in fields(Policy)}
    source = Path(policy_module.__file__).read_text(encoding="utf-8")
    assert all(f'"{name.replace("-", "_")}"' in source for name in limits - LEDGERS)


# The ledger's own code says that the epsilon of all runs is spent; a switch is no code.
LEDGERS = {"max-epsilon", "ask-before-run", "data"}
LEDGERS |= {"allow-any-model", "allow-any-data", "allow-any-roster"}
