"""Which records belong to one unit of privacy: each alone, or all of one person."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfideError, nearest
from .readers import Record

UNITS = ("record", "person")


def group_units(records: Sequence[Record], unit: str) -> list[list[int]]:
    """The records' indices, one list a unit, in the order in which the units first appear.

    Raises:
        ConfideError: ``data.missing-person`` when the unit is a person and a record names
            none, ``data.unknown-unit`` for any other unit.
    """
    if unit not in UNITS:
        raise ConfideError("data.unknown-unit", f"{unit!r} is no unit.", nearest(unit, UNITS))
    if unit == "record":
        return [[index] for index in range(len(records))]
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.person is None:
            raise ConfideError(
                "data.missing-person",
                f"Record {index + 1} of {len(records)} names no person.",
                "Name the column with data.person and fill it in every record.",
            )
        groups.setdefault(record.person, []).append(index)
    return list(groups.values())
