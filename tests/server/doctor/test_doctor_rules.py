"""Each rule finds what it is for, names it with its value and a remedy, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from confide.common.plans import plan_of, planned_steps
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.groups import group_epsilon
from confide.server.doctor import GUARDS, Finding, Severity, noise, privacy, sort
from confide.server.report import epsilon_text
from tests.server.doctor.conftest import Examine, settings

BAD, UNSOUND, NOTE = Severity.NOT_PRIVATE, Severity.NOT_SOUND, Severity.NOTE
SHARED = {"privacy__trust": "distributed", "privacy__colluding": 2, "round__mode": "gradient"}


def test_the_demo_has_no_finding(examine: Examine) -> None:
    assert examine() == {}


@pytest.mark.parametrize(
    ("name", "severity", "changes", "facts", "says"),
    [
        ("noise-off", BAD, {"privacy__trust": "off"}, {}, ("'off'", "'local'")),
        ("delta-above-1/n", BAD, {"privacy__delta": 0.00393}, {}, ("1 of 10", "255", "3e-04")),
        ("delta-large", UNSOUND, {"privacy__delta": 4e-4}, {}, ("1/(10 n)", "1 of 10", "3e-04")),
        ("noise-given", UNSOUND, {"privacy__noise_multiplier": 3.0}, {}, ("= 3", "= 'auto';")),
        ("epsilon-weak", UNSOUND, {"privacy__epsilon": 11.0}, {}, ("11.00", "above 10", "59,874")),
        ("record-though-persons", UNSOUND, {}, {"column": "writer"}, ("'writer'", "'person'")),
        ("record-though-persons", UNSOUND, {"data__person": "id"}, {}, ("'id'", "data.person")),
        ("bfloat16", UNSOUND, {"model__dtype": "bfloat16"}, {}, ("9.5e-4", "float32")),
        ("bfloat16", UNSOUND, {"model__dtype": "auto"}, {}, ("'auto'", "where the processor")),
        ("holders-drawn", NOTE, {"round__holders": 4}, {}, ("4 of 10", "round.holders = 0")),
        ("batch-small", NOTE, {"train__batch": 254}, {}, ("= 254", "1 of 10", "255")),
        ("both-factors", UNSOUND, {"aggregate__method": "lora"}, {}, ("'lora'", "'ffa'")),
        ("both-factors", UNSOUND, {"aggregate__method": "fedsa", "round__mode": "steps"}, {},
         ("'fedsa'", "no average", "'ffa'")),
        ("b-stays-zero", UNSOUND, {"aggregate__method": "ffb"}, {}, ("'ffb'", "'rolora'", "'ffa'")),
        ("b-stays-zero", UNSOUND, {"aggregate__method": "ffb", "aggregate__optimizer": "none"}, {},
         ("at zero", "'head'")),
        ("drowned-holders", UNSOUND, {"privacy__epsilon": 1.0, "lora__rank": 8},
         {"trained": 6914}, ("10 of 10", "6,914", "215", "'head'")),
        ("many-small-steps", UNSOUND, {"train__rate": 0.07, "round__count": 100}, {},
         ("100 steps at train.rate = 0.07", "train.rate = 1", "10 steps")),
        ("too-few-holders", UNSOUND, {"round__min_holders": 11}, {}, ("11", "10 holders", "to 5")),
        ("one-late-holder", UNSOUND, {"round__min_holders": 10}, {}, ("= 10", "to 5")),
        ("one-late-holder", UNSOUND, {"round__holders": 3, "round__min_holders": 3}, {}, ("= 3",)),
        ("one-late-holder", UNSOUND, SHARED | {"round__min_holders": 10}, {}, ("eight in ten",)),
        ("few-holders", UNSOUND, SHARED | {"privacy__unit": "holder", "round__min_holders": 8,
                                           "privacy__delta": 1e-3}, {},
         ("10 holders", "'person'", "a hundred")),
        ("clip-by-noise", UNSOUND, SHARED | {"privacy__unit": "holder", "round__min_holders": 8,
                                             "privacy__delta": 1e-3, "privacy__clip_quantile": 0.5},
         {}, ("= 0.5", "of 8 only", "'off'", "at least")),
        ("few-shares", UNSOUND, SHARED | {"round__min_holders": 3}, {},
         ("= 1", "100%", "'local'", "round.min-holders = 8", "privacy.colluding = 2")),
        ("few-shares", NOTE, SHARED | {"round__min_holders": 3, "privacy__colluding": 1},
         {"holders": 3}, ("= 2", "71%", "three or four gain little")),
        ("short-timeout", NOTE, {"round__timeout": 29.0}, {}, ("29 s", "600")),
        ("facts-unknown", NOTE, {}, {"sizes": ()}, ("how much text", "assets fetch")),
        ("facts-unknown", NOTE, {}, {"trained": 0}, ("how many values", "assets fetch")),
    ],
)  # fmt: skip
def test_a_fault_is_found_by_name_value_and_remedy(
    examine: Examine,
    name: str,
    severity: Severity,
    changes: dict[str, Any],
    facts: dict[str, Any],
    says: tuple[str, ...],
) -> None:
    finding = examine(facts, **changes)[name]
    assert finding.severity is severity
    told = f"{finding.what} {finding.why} {finding.fix}"
    assert [words for words in says if words not in told] == []
    assert finding.what.endswith(".")
    assert finding.why.endswith(".")
    assert finding.fix.endswith(".")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"privacy__delta": 3.9e-4}, {"sizes": (255,)}),
        ({"privacy__epsilon": 10.0}, {}),
        ({"privacy__unit": "person", "data__person": "id"}, {"column": "id"}),
        ({"round__holders": 10}, {}),
        ({"train__batch": 255}, {}),
        ({"aggregate__method": "lora", "lora__method": "head"}, {}),
        ({"aggregate__method": "ffb", "lora__method": "head"}, {}),
        ({"round__min_holders": 9}, {}),
        ({"round__timeout": 30.0}, {}),
        ({"privacy__epsilon": 1.0}, {"sizes": (240,) * 10}),
        (
            SHARED
            | {
                "privacy__unit": "holder",
                "privacy__delta": 1e-3,
                "round__min_holders": 80,
                "privacy__clip_quantile": 0.5,
            },
            {"sizes": (24,) * 100, "holders": 100},
        ),
    ],
)
def test_what_is_just_sound_is_not_complained_of(
    examine: Examine, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    assert examine(facts, **changes) == {}


def test_without_noise_nothing_else_is_said_of_the_promise(examine: Examine) -> None:
    wrong = {"privacy__delta": 0.05, "privacy__epsilon": 50.0, "aggregate__method": "lora"}
    assert set(examine(privacy__trust="off", **wrong)) == {"noise-off"}


def test_noise_that_is_given_is_held_against_what_it_gives(examine: Examine) -> None:
    given = {"privacy__noise_multiplier": 0.5, "train__rate": 0.25}
    chosen = settings(**given)
    epsilon = epsilon_pld(planned_steps(chosen), chosen.privacy.delta)
    for facts in ({}, {"sizes": ()}):  # whatever the holders have
        found = examine(facts, **given)
        assert found["epsilon-weak"].severity is UNSOUND
        assert f"epsilon = {epsilon_text(epsilon)} " in found["epsilon-weak"].what
        assert f"gives epsilon = {epsilon_text(epsilon)}" in found["noise-given"].what


def test_what_a_person_with_several_records_has_is_computed(examine: Examine) -> None:
    found = examine({"column": "writer", "most_records": 2})["record-though-persons"]
    epsilon = group_epsilon(planned_steps(settings()), 1e-5, 2)
    assert epsilon is not None
    assert (
        f"up to 2 records at one holder, and for 2 of them epsilon is {epsilon_text(epsilon)}"
        in (found.why)
    )


def test_signal_to_noise_is_that_of_the_longest_sum_there_can_be() -> None:
    """At the demo's epsilons: 6.3 at 8, 1.0 at 1; with every record in each step it is
    n mu / sqrt(d), whatever the number of rounds."""
    at = [noise.snr(settings(privacy__epsilon=e), 234, 3842) for e in (8.0, 1.0)]
    assert at == pytest.approx([6.287, 1.011], abs=0.005)
    few, many = (noise.snr(settings(round__count=count), 234, 3842) for count in (5, 500))
    assert few == pytest.approx(many, rel=2e-3)
    chosen = settings()
    z = plan_of(chosen).noise_multiplier
    assert noise.snr(chosen, 234, 3842) == pytest.approx(234 * 20**0.5 / (z * 3842**0.5), rel=1e-9)


def test_only_the_holders_below_the_line_are_counted(examine: Examine) -> None:
    found = examine({"sizes": (5, 20, 30, 300, 320)}, privacy__epsilon=3.0)["drowned-holders"]
    assert found.what.startswith("3 of 5 holders")


def test_at_much_signal_both_factors_are_a_note(examine: Examine) -> None:
    plenty = {"sizes": (30_000,) * 10}
    found = examine(plenty, aggregate__method="lora", train__batch=30_000, privacy__delta=1e-6)
    assert found["both-factors"].severity is NOTE


def test_findings_come_worst_first() -> None:
    def finding(name: str, severity: Severity) -> Finding:
        return Finding(name=name, severity=severity, what="", why="", fix="")

    mixed = [finding("a", NOTE), finding("b", BAD), finding("c", UNSOUND), finding("d", BAD)]
    assert [f.name for f in sort(mixed)] == ["b", "d", "c", "a"]


def test_every_guard_names_a_test_that_exists(root: Path) -> None:
    for guard in GUARDS:
        path, _, name = guard.test.partition("::")
        text = (root / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), guard.test


def test_every_rule_is_reached() -> None:
    for module in (privacy, noise):
        source = inspect.getsource(importlib.import_module(module.__name__))
        names = set(re.findall(r'name="([^"]+)"', source))
        tried = Path(__file__).read_text(encoding="utf-8")
        assert {name for name in names if f'("{name}"' not in tried} == set()
