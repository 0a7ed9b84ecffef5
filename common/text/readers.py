"""Files of private text to records: jsonl, csv, parquet and txt, chosen by suffix.

There are three ways to read the same rows. ``read_records`` is for a person at the screen: it
refuses the first row that is not a record, by file, line and column. ``records_that_fit`` is for a
holder that answers a request. Its text must not decide whether it answers, so a row that is not a
record becomes None and contributes nothing. ``numbered_records`` is for counting: it gives each
row's record or the reason why it is not one.

Persons have one form, however a file writes them. ``rows`` finds the lines and columns, and decides
what an error may show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfideError, nearest
from ..privacy import UNITS, Unit
from .rows import (
    Columns,
    Row,
    check_form,
    check_suffix,
    columns_of,
    content_of,
    in_form,
    number_in_form,
    person_in_form,
    rows_of,
)

# What stands in the column of the text.
_TEXT = "text with something in it"
_MESSAGES = (
    "a list of messages that have a role and a content, both text, and nothing else (other keys,"
    " such as name, weight or tool_calls, are not read: take them out)"
)


class Message(NamedTuple):
    """One turn of a conversation. Not to be printed: it is private text."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One example: its text, the target to be learnt, and the person. A conversation also has its
    messages, and its text is all that was said. The printed form shows none of them.

    If the target is a list in the file (``listed``), it is the JSON of that list here.
    """

    text: str = field(repr=False)
    target: str | None = field(default=None, repr=False)
    person: str | None = field(default=None, repr=False)
    messages: tuple[Message, ...] = field(default=(), repr=False)
    listed: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """A person has one form, however a file writes it (``words``)."""
        if self.person is not None:
            object.__setattr__(self, "person", person_in_form(self.person))

    @property
    def cell(self) -> str | list[str] | None:
        """The target as a file of JSON has it."""
        return json.loads(self.target) if self.listed and self.target else self.target


def read_records(
    path: str | Path,
    *,
    text: str = "text",
    target: str | None = "label",
    person: str | None = None,
    lists: bool = False,
    own_screen: bool = False,
) -> list[Record]:
    """Read every record of a file, in order.

    A .txt file holds one record a line, without target or person. A text that is a list of
    ``{"role": ..., "content": ...}`` is a conversation, whose target is the assistant's last word
    unless a column is named. Blank lines of .jsonl, .csv and .txt are no records. Targets that are
    numbers or truth values become text, equal numbers the same. A person that is empty or null
    becomes None.

    Args:
        path: the file; its suffix decides the format.
        text, target, person: names of columns; None reads no column. ``text`` may name several
            (``columns_of``); in a row all but the first may be empty.
        lists: whether a target may also be a list of words, numbers and truth values, or an empty
            one.
        own_screen: whether only the owner of the file reads an error: then it shows the names in
            the first line, whatever they look like.

    Raises:
        ConfideError: ``data.missing-file``, ``data.empty``, ``data.binary``, ``data.format``,
            ``data.missing-column``, ``data.half``, ``data.unknown-suffix`` or ``data.bad-value``.
    """
    path = Path(path)
    records = []
    for _, found in numbered_records(
        path, text=text, target=target, person=person, lists=lists, own_screen=own_screen
    ):
        if isinstance(found, ConfideError):
            raise found
        records.append(found)
    return records


def numbered_records(
    path: Path,
    *,
    text: str,
    target: str | None,
    person: str | None,
    lists: bool = False,
    own_screen: bool = False,
) -> list[tuple[int, Record | ConfideError]]:
    """Every row of a file with its number (of the line, or of the row in a table): its record, or
    why it is not one. The number 0 stands for the whole file.

    Raises:
        ConfideError: as ``read_records``, for what is wrong with the file as a whole before a row
            is looked at: ``data.missing-file``, ``data.empty``, ``data.unknown-suffix``, or
            ``data.binary`` and ``data.format`` if no rows can be found.
    """
    content = content_of(path)
    check_form(path, content)
    columns = _columns(text, target, person)
    columns = replace(columns, careful=True, lists=lists, own_screen=own_screen)
    found = list(_records(path, content, columns))
    if not found:
        raise ConfideError("data.empty", f"{path} holds no record.", "Check the file.")
    return found


def records_that_fit(
    path: Path,
    content: bytes,
    *,
    text: str,
    target: str | None,
    person: str | None,
    lists: bool = False,
) -> list[Record | None]:
    """The records in the bytes of a file, in order, with None in place of each row that is not a
    record. An unreadable file counts as one such row; an empty file has no rows.

    Raises:
        ConfideError: ``data.unknown-suffix``, by the path alone; nothing else, whatever the bytes.
    """
    columns = replace(_columns(text, target, person), lists=lists)
    found = _records(path, content, columns)
    return [None if isinstance(one, ConfideError) else one for _, one in found]


def _columns(text: str, target: str | None, person: str | None) -> Columns:
    named = [None if name is None else in_form(name) for name in (target, person)]
    return Columns(text=columns_of(text), target=named[0], person=named[1])


def _records(
    path: Path, content: bytes, columns: Columns
) -> Iterator[tuple[int, Record | ConfideError]]:
    if check_suffix(path) == ".txt":
        columns = replace(columns, text=columns.text[:1], target=None)
    for row in rows_of(path, content, columns):
        yield row.number, _record(path, row, columns)


def _record(path: Path, row: Row, columns: Columns) -> Record | ConfideError:
    if isinstance(row.values, ConfideError):
        return row.values
    text = _text(row.values, columns.text)
    messages = _messages(text) if isinstance(text, list) else ()
    if messages:
        text = "\n".join(message.content for message in messages)
    if not isinstance(text, str) or not text.strip() or not _encodable(text):
        wanted = _MESSAGES if isinstance(text, list) else _TEXT
        return _no_value(path, row, ",".join(columns.text), wanted)
    said = None if columns.target is None else row.values[columns.target]
    listed = columns.lists and isinstance(said, list)
    target = _words(said or []) if listed else _word(said)
    if columns.target is not None and not target:
        more = ", nor a list of them" if columns.lists else ""
        wanted = f"a word, a number or a truth value{more}"
        return _no_value(path, row, columns.target, wanted)
    person = None if columns.person is None else _word(row.values[columns.person])
    if person is None and columns.person is not None and row.values[columns.person] is not None:
        return _no_value(path, row, columns.person, "a word, a number or empty")
    if messages and columns.target is None and messages[-1].role == "assistant":
        target = messages[-1].content
    return Record(text, target, person or None, messages, listed)


def _text(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The text of the column; of several columns, joined in order without the empty ones."""
    first, *rest = (values[name] for name in names)
    if not rest:
        return first
    more = [one for one in rest if one is not None and one != ""]
    parts = [first, *more]
    return "\n\n".join(parts) if all(isinstance(one, str) for one in parts) else None


def _messages(turns: list[Any]) -> tuple[Message, ...]:
    """The messages of a conversation; empty if the value is not a conversation."""
    found = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            return ()
        role, content = turn["role"], turn["content"]
        if not (isinstance(role, str) and isinstance(content, str) and _encodable(role + content)):
            return ()
        found.append(Message(role, content))
    return tuple(found)


def _word(value: Any) -> str | None:
    """A short value as text; None for any other value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return number_in_form(Decimal(value))
    if isinstance(value, float | Decimal):
        near = float(value)  # what no float tells from 0 is 0, whatever its exponent
        known = Decimal(repr(value)) if near and isinstance(value, float) else value
        return number_in_form(Decimal(known if near else 0)) if math.isfinite(near) else None
    return value.strip() if isinstance(value, str) and _encodable(value) else None


def _words(values: list[Any]) -> str | None:
    """A list of short values as JSON; None if one of them is not a short value."""
    found = [_word(value) for value in values]
    return json.dumps(found, ensure_ascii=False) if all(found) else None


def _encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _no_value(path: Path, row: Row, column: str, wanted: str) -> ConfideError:
    place = "row" if path.suffix.lower() == ".parquet" else "line"
    return ConfideError(
        "data.bad-value",
        f"{path}: {column!r} in {place} {row.number} is not {wanted}.",
        f"Correct or remove that {place}.",
    )


# --- units ---
#
# Which records belong to one unit of privacy: each alone, or all of one person.


def group_units(records: Sequence[Record], unit: str) -> list[list[int]]:
    """The records' indices, one list a unit, in the order in which the units first appear.

    Raises:
        ConfideError: ``data.missing-person`` when the unit is a person and a record names
            none, ``data.unknown-unit`` for any other unit.
    """
    if unit not in UNITS:
        raise ConfideError("data.unknown-unit", f"{unit!r} is not a unit.", nearest(unit, UNITS))
    if unit == Unit.RECORD:
        return [[index] for index in range(len(records))]
    if unit == Unit.HOLDER:
        return [list(range(len(records)))]
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
    """The units of a text when some of its records cannot be used. For each unit: the positions of
    its usable records among all usable records. Units are in the order in which they first appear.

    A row is an empty unit if it is not a record, or names no person although the person is the
    unit. It is drawn like any other unit and contributes zero.
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
