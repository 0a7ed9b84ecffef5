"""Records are grouped into the units that a plan protects."""

from __future__ import annotations

import pytest

from confide.common.errors import ConfideError
from confide.common.text.readers import Record, group_units

RECORDS = [Record("one", "x", "b"), Record("two", "x", "a"), Record("three", "y", "b")]


def test_each_record_is_a_unit_of_its_own() -> None:
    assert group_units(RECORDS, "record") == [[0], [1], [2]]


def test_the_records_of_a_person_are_one_unit() -> None:
    assert group_units(RECORDS, "person") == [[0, 2], [1]]


def test_no_record_is_no_unit() -> None:
    assert group_units([], "record") == group_units([], "person") == []


def test_a_record_without_person_is_refused_by_its_number_alone() -> None:
    with pytest.raises(ConfideError) as caught:
        group_units([*RECORDS, Record("Zebra")], "person")
    assert caught.value.code == "data.missing-person"
    assert "Record 4 of 4" in caught.value.message
    assert "Zebra" not in str(caught.value)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfideError, match=r"data\.unknown-unit"):
        group_units(RECORDS, "persons")
