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
        raise ConfideError("data.unknown-unit", f"{unit!r} is not a unit.", nearest(unit, UNITS))
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


def usable_units(
    records: Sequence[Record | None], unit: str, usable: Sequence[bool]
) -> list[list[int]]:
    """The units of a text of which some records cannot be used: for each unit the places of its
    usable records among all usable ones, in the order in which the units first appear.

    A row that is no record, or that names no person where the person is the unit, is a unit of its
    own, of nothing: it is drawn like any other and contributes zero.
    """
    groups: list[list[int]] = []
    of_person: dict[str, list[int]] = {}
    places = iter(range(len(records)))
    for record, used in zip(records, usable, strict=True):
        place = [next(places)] if used else []
        person = record.person if record is not None and unit == "person" else None
        if unit == "person" and person is None:
            groups.append([])
        elif person is not None and person in of_person:
            of_person[person].extend(place)
        else:
            groups.append(place)
            if person is not None:
                of_person[person] = place
    return groups
