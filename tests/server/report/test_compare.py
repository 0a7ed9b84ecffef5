"""Two reports held against each other."""

from __future__ import annotations

from typing import Any

import pytest

from confide.server.report.verify import MOST_SHOWN, differences, same


def test_equal_reports_differ_nowhere() -> None:
    one = {"a": [1, 2.0, {"name": "x", "on": True}], "b": None}
    assert differences(one, {"b": None, "a": [1.0, 2, {"on": True, "name": "x"}]}) == []
    assert same(one, dict(one))


@pytest.mark.parametrize(
    ("made", "told", "where"),
    [
        ({"a": 1}, {"a": 2}, "a: "),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "a / b: "),
        ({"a": 1}, {}, "a: made again it is 1, the report says not there"),
        ({}, {"a": 1}, "a: made again it is not there, the report says 1"),
        ({"a": [1, 2]}, {"a": [1]}, "a / 2: "),
        ({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "x", "v": 2}]}, "a / x / v: "),
        ({"a": [{"name": "x"}]}, {"a": [{"name": "y"}]}, "a / x: "),
        ({"a": True}, {"a": 1}, "a: "),
        ({"a": None}, {"a": 0.0}, "a: "),
        ({"a": 1}, {"a": "1"}, "a: "),
        ({"a": []}, {"a": {}}, "a: "),
        ({"a": float("nan")}, {"a": float("nan")}, "a: "),
    ],
)
def test_every_place_is_named(made: Any, told: Any, where: str) -> None:
    found = differences(made, told)
    assert found
    assert found[0].startswith(where)


def test_rows_in_another_order_are_a_difference_and_their_values_are_not() -> None:
    one, other = ({"name": "x", "v": 1}, {"name": "y", "v": 2})
    assert differences({"a": [one, other]}, {"a": [other, one]}) == ["a: in another order"]


def test_two_rows_of_one_name_are_found_by_their_place() -> None:
    row = {"name": "x", "v": 1}
    assert differences({"a": [row, row]}, {"a": [row, {**row, "v": 2}]})[0].startswith("a / 2 / v")


def test_numbers_are_equal_up_to_the_accountants_error() -> None:
    assert same(1.0, 1.0 + 1e-8)
    assert not same(1.0, 1.0 + 1e-5)


def test_long_and_hostile_values_are_cut_and_plain() -> None:
    (text,) = differences({"a\x1b": "x" * 500}, {"a\x1b": "\x1b[2J" * 100})
    assert "\x1b" not in text
    assert len(text) < 3 * MOST_SHOWN
