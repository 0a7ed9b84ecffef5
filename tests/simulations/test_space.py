"""Search spaces: what is read, and what is refused with what to write instead."""

from __future__ import annotations

import pytest

from confide.common.errors import ConfideError
from confide.simulations.scenario import Scenario
from confide.simulations.space import FIXED, Dimension, default_space, parse_space

SCENARIO = Scenario(
    name="tiny",
    config={"model.name": "m", "task.labels": "a,b", "train.lr": 2.5},
)


def parsed(*texts: str) -> list[Dimension]:
    return parse_space(texts, SCENARIO)


def test_a_range_a_log_range_whole_numbers_and_a_choice() -> None:
    assert parsed("train.lr=1e-3..10 log", "privacy.clip = 0.5..2", "lora.rank=2..16log") == [
        Dimension(key="train.lr", low=1e-3, high=10, log=True),
        Dimension(key="privacy.clip", low=0.5, high=2.0),
        Dimension(key="lora.rank", low=2, high=16, whole=True, log=True),
    ]
    assert parsed("lora.rank=2, 4,2", "model.name=a/b,../c", "train.lr=1,0.5") == [
        Dimension(key="lora.rank", choices=(2, 4)),
        Dimension(key="model.name", choices=("a/b", "../c")),
        Dimension(key="train.lr", choices=(1, 0.5)),
    ]


def test_the_default_space_is_around_the_scenarios_own_values() -> None:
    config = {"train.lr": 2.5, "privacy.clip": 1.0, "lora.method": "lora"}
    lr, clip, rank = parsed(*default_space(config))
    assert (lr.low, lr.high, lr.log) == (0.25, 25.0, True)
    assert (clip.low, clip.high) == (0.25, 4.0)
    assert rank.choices == (2, 4, 8, 16)
    assert len(default_space({**config, "lora.method": "head"})) == 2


def test_a_grid_has_both_ends_and_the_middle() -> None:
    lr, rank, few, clip = parsed(
        "train.lr=0.1..10 log", "lora.rank=2..16", "lora.layers=1..2", "privacy.clip=1,2"
    )
    assert lr.grid() == [0.1, 1.0, 10.0]
    assert rank.grid() == [2, 9, 16]
    assert few.grid() == [1, 2]
    assert clip.grid() == [1, 2]


def test_a_dimension_knows_its_own_values() -> None:
    lr, rank = parsed("train.lr=0.1..10", "lora.rank=2,4")
    assert (lr.holds(0.1), lr.holds(10.1), rank.holds(4), rank.holds(3)) == (
        True,
        False,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.lr", "no values"),
        ("train.lr=", "no values"),
        ("train.lrr=1..2", "'train.lr'"),
        ("train.lr=2..1", "no range"),
        ("train.lr=1..inf", "no range"),
        ("train.lr=0..1 log", "above 0"),
        ("train.lr=1..2 lin", "no range"),
        ("lora.rank=1.5..4", "whole numbers"),
        ("privacy.epsilon=1,8", "bench utility"),
        ("privacy.trust=local,off", "bench utility"),
        ("data.path=a,b", "run's own"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ConfideError) as caught:
        parsed(text)
    assert caught.value.code == "tune.space"
    assert says in str(caught.value)
    assert caught.value.hint.endswith((".", "?"))


def test_a_setting_is_searched_once() -> None:
    with pytest.raises(ConfideError, match="twice"):
        parsed("train.lr=1..2", "train.lr=1,2")


@pytest.mark.parametrize("text", ["lora.rank=0..4", "lora.rank=4,x", "train.optimizer=sgd,adan"])
def test_every_value_is_held_against_the_setting(text: str) -> None:
    with pytest.raises(ConfideError, match=r"settings\."):
        parsed(text)


def test_nothing_that_makes_the_promise_is_searched() -> None:
    promise = {f"privacy.{name}" for name in ("trust", "unit", "epsilon", "delta")}
    assert promise | {"privacy.noise-multiplier", "run.out", "run.seed"} <= set(FIXED)
