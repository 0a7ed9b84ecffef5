"""Files of private text to records: jsonl, csv, parquet and txt, chosen by suffix.

Two ways to read the same rows. ``read_records`` is for a person at the screen: the first row that
is no record is refused, by file, line and column. ``records_that_fit`` is for a holder that answers
a request: what is in its text must not decide whether it answers, so that a row which is no record
is None there, and contributes nothing.

No message of this module contains anything from inside a record: it names the file, the line
and the column, never a value. Errors are made outside the handlers of the parser's own
exceptions, since those keep what they could not parse.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfideError

# What is safe to take for a column's name, and not for a record in a file without header.
_COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}", re.ASCII)


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
    """One example: its text, what is to be learnt from it, and whose it is; of a conversation
    also its messages, the text being all that was said. The printed form shows none of them."""

    text: str = field(repr=False)
    target: str | None = field(default=None, repr=False)
    person: str | None = field(default=None, repr=False)
    messages: tuple[Message, ...] = field(default=(), repr=False)


class _Columns(NamedTuple):
    """The names of the wanted columns."""

    text: str
    target: str | None
    person: str | None

    def wanted(self) -> list[str]:
        return list(dict.fromkeys(name for name in self if name is not None))


class _Row(NamedTuple):
    """One row before it is checked; ``number`` counts lines, or rows of a table."""

    number: int
    values: Mapping[str, Any]


# A row, or why there is none in its place. An error of the whole file stands for all of it.
_Found = _Row | ConfideError


def read_records(
    path: str | Path, *, text: str = "text", target: str | None = "label", person: str | None = None
) -> list[Record]:
    """Read every record of a file, in order.

    A .txt file holds one record a line and neither target nor person. A text that is a list of
    ``{"role": ..., "content": ...}`` is a conversation, whose target is the assistant's last word
    unless a column is named. Blank lines of .jsonl,
    .csv and .txt are no records. Targets that are numbers or truth values become text. A
    person that is empty or null becomes None.

    Args:
        path: the file; its suffix decides the format.
        text, target, person: names of columns; None reads none.

    Raises:
        ConfideError: ``data.missing-file``, ``data.empty``, ``data.binary``, ``data.format``,
            ``data.missing-column``, ``data.unknown-suffix`` or ``data.bad-value``.
    """
    path = Path(path)
    records = []
    for found in _records(path, _content(path), _Columns(text, target, person)):
        if isinstance(found, ConfideError):
            raise found
        records.append(found)
    if not records:
        raise ConfideError("data.empty", f"{path} holds no record.", "Check the file.")
    return records


def records_that_fit(
    path: Path, content: bytes, *, text: str, target: str | None, person: str | None
) -> list[Record | None]:
    """The records in the bytes of a file, in order, with None in the place of each row that is
    none; a file of which nothing can be read is one such row, an empty one has no rows.

    Raises:
        ConfideError: ``data.unknown-suffix``, by the path alone; nothing else, whatever the bytes.
    """
    found = _records(path, content, _Columns(text, target, person))
    return [None if isinstance(one, ConfideError) else one for one in found]


def _records(path: Path, content: bytes, columns: _Columns) -> Iterator[Record | ConfideError]:
    suffix = check_suffix(path)
    if suffix == ".txt":
        columns = columns._replace(target=None)
    for row in _ROWS[suffix](path, content, columns):
        yield row if isinstance(row, ConfideError) else _record(path, row, columns)


def check_suffix(path: Path) -> str:
    """The suffix of a file that can be read.

    Raises:
        ConfideError: ``data.unknown-suffix``.
    """
    suffix = path.suffix.lower()
    if suffix not in _ROWS:
        raise ConfideError(
            "data.unknown-suffix",
            f"{path} ends in {suffix!r}, which is no format that can be read.",
            f"Use one of {', '.join(sorted(_ROWS))}.",
        )
    return suffix


def _content(path: Path) -> bytes:
    content, reason = b"", ""
    if os.path.isdir(path):  # noqa: PTH112 - no error for a name that is too long for a path
        raise ConfideError(
            "data.missing-file", f"{path} is a folder.", "Name the file in it that is meant."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        hint = "Check the path and the permissions."
        raise ConfideError("data.missing-file", f"{path} cannot be read: {reason}.", hint)
    if not content:
        raise ConfideError("data.empty", f"{path} has no bytes.", "Check the file.")
    return content


def _decoded(path: Path, content: bytes) -> str | ConfideError:
    try:
        decoded = None if b"\0" in content else content.decode("utf-8-sig")
    except UnicodeDecodeError:
        decoded = None
    if decoded is not None:
        return decoded
    return ConfideError(
        "data.binary",
        f"{path} is not text in UTF-8.",
        "Save it in UTF-8, or give it the suffix of what it is.",
    )


def _numbered_lines(path: Path, content: bytes) -> Iterator[tuple[int, str | ConfideError]]:
    # Not str.splitlines: a JSON string may contain U+2028 and other separators as they are.
    for number, line in enumerate(content.split(b"\n"), start=1):
        decoded = _decoded(path, line)
        if isinstance(decoded, ConfideError) or decoded.strip():
            yield (
                number,
                decoded if isinstance(decoded, ConfideError) else decoded.removesuffix("\r"),
            )


def _txt_rows(path: Path, content: bytes, columns: _Columns) -> Iterator[_Found]:
    if columns.person is not None:
        yield _no_column(path, columns.person, "a .txt file has no columns")
        return
    for number, line in _numbered_lines(path, content):
        yield line if isinstance(line, ConfideError) else _Row(number, {columns.text: line})


def _jsonl_rows(path: Path, content: bytes, columns: _Columns) -> Iterator[_Found]:
    for number, line in _numbered_lines(path, content):
        yield line if isinstance(line, ConfideError) else _jsonl_row(path, number, line, columns)


def _jsonl_row(path: Path, number: int, line: str, columns: _Columns) -> _Found:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return _no_format(path, f"line {number} is not a JSON object")
    wrong = _wrong_columns(path, columns, list(values), f"line {number}")
    return wrong or _Row(number, values)


def _csv_rows(path: Path, content: bytes, columns: _Columns) -> Iterator[_Found]:
    decoded = _decoded(path, content)
    if isinstance(decoded, ConfideError):
        yield decoded
        return
    # The limit belongs to the process, and stands at 131,072 characters: only ever raise it.
    csv.field_size_limit(max(csv.field_size_limit(), len(decoded)))
    reader = csv.reader(io.StringIO(decoded, newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    whole = True
    try:
        lines.extend((reader.line_num, fields) for fields in reader if fields)
    except csv.Error:
        whole = False
    header = lines[0][1] if lines else columns.wanted()
    wrong = _wrong_columns(path, columns, header, "the first line")
    if wrong is not None and whole:
        yield wrong
        return
    for number, fields in lines[1:] if wrong is None else ():
        if len(fields) != len(header):
            what = f"line {number} has {len(fields)} fields, not {len(header)}"
            yield _no_format(path, what)
        else:
            yield _Row(number, dict(zip(header, fields, strict=True)))
    if not whole:
        start = lines[-1][0] + 1 if lines else 1
        yield _no_format(path, f"what starts in line {start} is not well-formed CSV")


def _parquet_rows(path: Path, content: bytes, columns: _Columns) -> Iterator[_Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    unreadable = (pa.ArrowException, OSError, ValueError)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except unreadable:
        file = None
    if file is None:
        yield _no_format(path, "it is not a Parquet file")
        return
    wrong = _wrong_columns(path, columns, list(file.schema_arrow.names), "the table")
    if wrong is not None:
        yield wrong
        return
    try:
        rows = file.read(columns=columns.wanted()).to_pylist()
    except unreadable:
        rows = None
    if rows is None:
        yield _no_format(path, "its columns cannot be read")
        return
    for number, values in enumerate(rows, start=1):
        yield _Row(number, values)


_ROWS: Mapping[str, Callable[[Path, bytes, _Columns], Iterator[_Found]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}


def _wrong_columns(
    path: Path, columns: _Columns, names: list[str], where: str
) -> ConfideError | None:
    if len(set(names)) < len(names):
        return _no_format(path, f"{where} names a column twice")
    for name in columns.wanted():
        if name not in names:
            # A file without a header shows its first record here: then nothing is listed.
            plain = all(_COLUMN_NAME.fullmatch(found) for found in names)
            shown = ", ".join(names) if plain else f"{len(names)} whose names are not plain words"
            return _no_column(path, name, f"the columns in {where} are: {shown}")
    return None


def _no_column(path: Path, name: str, found: str) -> ConfideError:
    return ConfideError(
        "data.missing-column",
        f"{path} has no column {name!r}; {found}.",
        "Name the column that is meant: data.text, data.target or data.person of a run, --text,"
        " --label or --person of check-data.",
    )


def _no_format(path: Path, what: str) -> ConfideError:
    return ConfideError("data.format", f"{path}: {what}.", "Correct the file; nothing was read.")


def _record(path: Path, row: _Row, columns: _Columns) -> Record | ConfideError:
    text = row.values[columns.text]
    messages = _messages(text) if isinstance(text, list) else ()
    if messages:
        text = "\n".join(message.content for message in messages)
    if not isinstance(text, str) or not text.strip() or not _encodable(text):
        return _no_value(path, row, columns.text, _MESSAGES if isinstance(text, list) else _TEXT)
    target = None if columns.target is None else _word(row.values[columns.target])
    if columns.target is not None and not target:
        return _no_value(path, row, columns.target, "a word, a number or a truth value")
    person = None if columns.person is None else _word(row.values[columns.person])
    if person is None and columns.person is not None and row.values[columns.person] is not None:
        return _no_value(path, row, columns.person, "a word, a number or empty")
    if messages and columns.target is None and messages[-1].role == "assistant":
        target = messages[-1].content
    return Record(text, target, person or None, messages)


def _messages(turns: list[Any]) -> tuple[Message, ...]:
    """A conversation; nothing when it is none."""
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
    """A short value as text; None when it is nothing of that kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return value.strip() if isinstance(value, str) and _encodable(value) else None


def _encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _no_value(path: Path, row: _Row, column: str, wanted: str) -> ConfideError:
    place = "row" if path.suffix.lower() == ".parquet" else "line"
    return ConfideError(
        "data.bad-value",
        f"{path}: {column!r} in {place} {row.number} is not {wanted}.",
        f"Correct or remove that {place}.",
    )
