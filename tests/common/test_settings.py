"""from_flat: every key, type, range and combination."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import Settings, from_flat, known_keys

GOOD = {"model.name": "m", "task.labels": "no,yes"}


def test_flat_and_back_is_the_same() -> None:
    settings = from_flat({**GOOD, "privacy.epsilon": 3.5, "round.count": 7})
    assert from_flat(settings.to_flat()) == settings
    assert settings.privacy.epsilon == 3.5


def test_a_whole_number_may_stand_for_a_number() -> None:
    assert from_flat({**GOOD, "privacy.epsilon": 3}).privacy.epsilon == 3.0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().privacy.epsilon = 1.0  # type: ignore[misc]


SHARED = {"privacy.trust": "distributed", "round.mode": "gradient", "round.min-holders": 8}
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"privacy.epsilom": 8}, "settings.unknown-key", "privacy.epsilon"),
    ({"zzz": 8}, "settings.unknown-key", "confide settings"),
    ({"privacy.epsilon": "8"}, "settings.type", "a number"),
    ({"round.count": 2.5}, "settings.type", "a whole number"),
    ({"round.count": True}, "settings.type", "a truth value"),
    ({"round.count": [1]}, "settings.type", "list"),
    ({"model.name": 3}, "settings.type", "text"),
    ({"privacy.epsilon": 0}, "settings.range", "(0, 100]"),
    ({"privacy.epsilon": 10**400}, "settings.range", "(0, 100]"),
    ({"privacy.epsilon": float("nan")}, "settings.range", "(0, 100]"),
    ({"privacy.epsilon": float("inf")}, "settings.range", "(0, 100]"),
    ({"privacy.delta": -1e-5}, "settings.range", "(0, 0.1]"),
    ({"privacy.clip": 0.0}, "settings.range", "(0, 1e+06]"),
    ({"lora.rank": 0}, "settings.range", "[1, 256]"),
    ({"lora.dropout": 1.0}, "settings.range", "[0, 0.9]"),
    ({"train.lr": -1.0}, "settings.range", "train.lr"),
    ({"privacy.unit": "household"}, "settings.range", "record, person"),
    ({"privacy.unit": "person"}, "settings.combination", "data.person"),
    (SHARED | {"round.mode": "steps"}, "settings.combination", "second local step"),
    (SHARED | {"aggregate.robust": "median"}, "settings.combination", "compares the holders'"),
    (SHARED | {"aggregate.method": "hetlora"}, "settings.combination", "the sum of equal updates"),
    (SHARED | {"aggregate.method": "flexlora"}, "settings.combination", "lora, ffa, ffb, fedsvd"),
    (SHARED | {"wire.encoding": "int8"}, "settings.combination", "32 bits"),
    (SHARED | {"privacy.colluding": 8}, "settings.combination", "no share of noise is left"),
    (SHARED | {"round.min-holders": 1}, "settings.combination", "no share of noise is left"),
    ({"privacy.records-per-person": 0}, "settings.range", "[1, 1e+06]"),
    ({"privacy.records-per-person": 2.0}, "settings.type", "a whole number"),
    ({"privacy.trust": "locl"}, "settings.range", "'local'"),
    ({"aggregate.method": "fedavg"}, "settings.range", "lora, ffa"),
    ({"wire.encoding": "int3"}, "settings.range", "fp32"),
    ({"model.name": ""}, "settings.combination", "model.name"),
    ({"model.name": "x" * 10_001}, "settings.range", "more than 10000"),
    ({"task.labels": "yes"}, "settings.combination", "at least two"),
    ({"task.labels": "yes,yes"}, "settings.combination", "at least two"),
    ({"round.mode": "gradient", "train.steps": 4}, "settings.combination", "train.steps = 1"),
    ({"round.mode": "gradient", "train.optimizer": "adam"}, "settings.combination", "'sgd'"),
    ({"round.holders": 2, "round.min-holders": 3}, "settings.combination", "abandoned"),
    (
        {"privacy.trust": "off", "privacy.noise-multiplier": 1.0},
        "settings.combination",
        "privacy.trust = 'local'",
    ),
    ({"aggregate.robust": "median"}, "settings.combination", "round.min-holders = 3"),
    (
        {"aggregate.robust": "krum", "aggregate.byzantine": 2, "round.min-holders": 6},
        "settings.combination",
        "round.min-holders = 7",
    ),
    ({"aggregate.byzantine": 1}, "settings.combination", "withstands no"),
    (
        {"aggregate.method": "rolora", "aggregate.optimizer": "momentum"},
        "settings.combination",
        "moves the factor that rests",
    ),
    (
        {"aggregate.method": "fedsvd", "aggregate.optimizer": "adam"},
        "settings.combination",
        "'none' or 'momentum'",
    ),
    (
        {"aggregate.method": "flexlora", "aggregate.optimizer": "yogi"},
        "settings.combination",
        "'none' or 'momentum'",
    ),
    (
        {
            "aggregate.method": "hetlora",
            "aggregate.robust": "median",
            "round.min-holders": 3,
        },
        "settings.combination",
        "for a vote",
    ),
    (
        {"aggregate.method": "fedsvd", "lora.method": "head"},
        "settings.combination",
        "trains no LoRA",
    ),
    ({"lora.method": "head", "lora.targets": "query"}, "settings.combination", "lora.targets"),
    ({"round.generate-every": 1}, "settings.combination", "'classification'"),
    (
        {"round.generate-every": 1, "task.kind": "causal", "task.labels": ""},
        "settings.combination",
        "round.generate-every = 0",
    ),
    (
        {"round.evaluate-every": 2, "round.patience": 3},
        "settings.combination",
        "round.patience looks at the public loss after each round",
    ),
    (
        {"round.evaluate-every": 2, "train.schedule": "plateau"},
        "settings.combination",
        "round.evaluate-every = 1",
    ),
]


@pytest.mark.parametrize(("change", "code", "says"), MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_is_refused_with_name_value_range_and_remedy(
    change: dict[str, Any], code: str, says: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        from_flat({**GOOD, **change})
    assert caught.value.code == code
    assert says in str(caught.value)
    assert any(key in str(caught.value) for key in change)
    assert caught.value.hint, "every refusal says what to do"


def test_the_unit_may_be_a_person_once_a_column_names_persons() -> None:
    flat = {**GOOD, "privacy.unit": "person", "data.person": "author"}
    privacy = from_flat({**flat, "privacy.records-per-person": 3}).privacy
    assert (privacy.unit, privacy.records_per_person) == ("person", 3)
    assert from_flat(GOOD).privacy.unit == "record"
    assert from_flat(GOOD).privacy.records_per_person == 8


def test_every_key_has_a_room_and_a_name() -> None:
    assert all(key.count(".") == 1 and key == key.lower() for key in known_keys())
    assert len(known_keys()) == len(set(known_keys()))


def test_a_message_never_repeats_more_of_a_value_than_a_line() -> None:
    long = "x" * 1_000_000
    for config in ({long: 1}, {"model.name": long}, {"privacy.trust": long}, {"train.lr": [long]}):
        with pytest.raises(ConfideError) as caught:
            from_flat({**GOOD, **config})
        assert len(caught.value.message) < 250


def test_text_of_the_largest_length_is_taken() -> None:
    assert len(from_flat({**GOOD, "model.name": "x" * 10_000}).model.name) == 10_000


def test_a_column_has_one_name() -> None:
    """A ledger is bound to the name of the column of persons: one spelling of it, then."""
    told = {"data.text": "ask , more", "data.target": " No\u0302te", "data.person": "who "}
    data = from_flat({**told, "task.labels": "a,b", "model.name": "m"}).data
    assert (data.text, data.target, data.person) == ("ask,more", "N\u00f4te", "who")


def test_a_part_of_a_character_is_no_setting() -> None:
    with pytest.raises(ConfideError, match=r"settings\.range.*UTF-8"):
        from_flat({"run.coordinator": "a\udcff"})
