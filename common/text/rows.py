"""The rows of a file, before their contents are checked: by suffix jsonl, csv, parquet, txt.

A line ends with LF, CRLF or CR, whatever the others end with. Other separators of Unicode stay
inside a record, since JSON and prose contain them; a file with no other line end is refused.
Names of columns are compared without blanks around them, in NFC.

No message of this module contains anything from inside a row: it names the file, the line and the
column. The names in a first line are shown if they look like names, or if ``own_screen`` says that
only the owner of the file reads them. Errors are made outside the handlers of the
parser's own exceptions, since those keep what they could not parse.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfideError
from ..machine.installed import library

# What is safe to take for a column's name, and not for a record in a file without header.
_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]{0,39}")
_MOST_SHOWN = 40  # names, and characters of each
_LINE_END = re.compile(rb"\r\n|\n|\r")
OTHER_ENDS = re.compile(r"[\v\f\x1c-\x1e\x85\u2028\u2029]")
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16; UTF-32 begins or ends so, too
# Columns that hold half of what is asked in the usual sets (Alpaca, Dolly, SQuAD, OpenOrca, GLUE),
# and where the rest then stands.
_REST: Mapping[str, tuple[str, ...]] = {
    "instruction": ("input", "context"),
    "question": ("context", "passage", "system_prompt"),
    "premise": ("hypothesis",),
    "hypothesis": ("premise",),
    "sentence1": ("sentence2",),
    "sentence2": ("sentence1",),
    "question1": ("question2",),
    "question2": ("question1",),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the wanted columns; ``text`` may be several. ``careful``: whether a row is
    refused if a part of it is missing. ``lists`` and ``own_screen``: as for ``read_records``."""

    text: tuple[str, ...]
    target: str | None
    person: str | None
    careful: bool = False
    lists: bool = False
    own_screen: bool = False

    def wanted(self) -> list[str]:
        names = (*self.text, self.target, self.person)
        return list(dict.fromkeys(name for name in names if name is not None))


class Row(NamedTuple):
    """One row before it is checked, or the reason why it cannot be read. ``number`` counts lines,
    or rows of a table; 0 stands for the whole file."""

    number: int
    values: Mapping[str, Any] | ConfideError


def columns_of(name: str) -> tuple[str, ...]:
    """The columns that a text is made of: one, or several separated by commas. Their texts are
    joined with a blank line between."""
    return tuple(in_form(part) for part in name.split(","))


def rows_of(path: Path, content: bytes, columns: Columns) -> Iterator[Row]:
    """The rows in the bytes of a file, in order.

    Raises:
        ConfideError: ``data.unknown-suffix``, by the path alone; nothing else, whatever the bytes.
    """
    return _ROWS[check_suffix(path)](path, content, columns)


def check_suffix(path: Path) -> str:
    """The suffix of a file that can be read.

    Raises:
        ConfideError: ``data.unknown-suffix``.
    """
    suffix = path.suffix.lower()
    if suffix not in _ROWS:
        raise ConfideError(
            "data.unknown-suffix",
            f"{path} ends in {suffix!r}, which is not a format that confide reads.",
            f"Use one of {', '.join(sorted(_ROWS))}.",
        )
    return suffix


def content_of(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ConfideError: ``data.missing-file`` or ``data.empty``.
    """
    content, reason = b"", ""
    if os.path.isdir(path):  # noqa: PTH112 - no error for a name that is too long for a path
        raise ConfideError(
            "data.missing-file", f"{path} is a folder.", "Name the file in it that you mean."
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


def check_form(path: Path, content: bytes) -> None:
    """Refuse bytes that are not lines of text, with what they are, for callers that show it.

    Raises:
        ConfideError: ``data.binary`` or ``data.format``.
    """
    if path.suffix.lower() == ".parquet":
        return
    if content.startswith(_WIDE_MARKS):
        raise ConfideError(
            "data.binary", f"{path} is text in UTF-16 or UTF-32, not in UTF-8.", "Save it in UTF-8."
        )
    if not _LINE_END.search(content.rstrip()):
        decoded = _decoded(path, content)
        if path.suffix.lower() == ".jsonl" and _is_json(decoded):
            return  # a string of JSON may hold them
        other = set() if isinstance(decoded, ConfideError) else OTHER_ENDS.findall(decoded.strip())
        if other:
            named = ", ".join(sorted(f"U+{ord(one):04X}" for one in set(other)))
            raise ConfideError(
                "data.format",
                f"{path} is one line: it holds no LF and no CR, but {named}, which end lines in"
                " some programs and not here.",
                "Save it with ordinary line ends.",
            )


def _is_json(decoded: str | ConfideError) -> bool:
    try:
        return not isinstance(decoded, ConfideError) and json.loads(decoded) is not None
    except (ValueError, RecursionError):
        return False


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
        "Save it in UTF-8, or give it the suffix of its format.",
    )


def _numbered_lines(path: Path, content: bytes) -> Iterator[tuple[int, str | ConfideError]]:
    # Not str.splitlines: a JSON string may contain U+2028 and other separators as they are. By any
    # of the three ends in every file, so that no line decides where another one ends.
    for number, line in enumerate(_LINE_END.split(content), start=1):
        decoded = _decoded(path, line)
        if isinstance(decoded, ConfideError) or decoded.strip():
            yield number, decoded


def _txt_rows(path: Path, content: bytes, columns: Columns) -> Iterator[Row]:
    if columns.person is not None:
        yield Row(0, _no_column(path, columns.person, "a .txt file has no columns"))
        return
    for number, line in _numbered_lines(path, content):
        values = line if isinstance(line, ConfideError) else {columns.text[0]: line}
        yield Row(number, values)


def _jsonl_rows(path: Path, content: bytes, columns: Columns) -> Iterator[Row]:
    for number, line in _numbered_lines(path, content):
        if isinstance(line, ConfideError):
            yield Row(number, line)
        else:
            yield Row(number, _jsonl_row(path, number, line, columns))


def _jsonl_row(
    path: Path, number: int, line: str, columns: Columns
) -> Mapping[str, Any] | ConfideError:
    try:
        values = json.loads(line, parse_float=_decimal)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return _no_format(path, f"line {number} is not a JSON object")
    names = [in_form(name) for name in values]
    wrong = _wrong_columns(path, columns, names, f"line {number}")
    return wrong or dict(zip(names, values.values(), strict=True))


def _decimal(digits: str) -> Decimal | float:
    """A number of JSON as it is written; infinite if its exponent is too large."""
    try:
        return Decimal(digits)
    except ArithmeticError:
        return math.inf


def _csv_rows(path: Path, content: bytes, columns: Columns) -> Iterator[Row]:
    decoded = _decoded(path, content)
    if isinstance(decoded, ConfideError):
        yield Row(0, decoded)
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
    header = [in_form(name) for name in lines[0][1]] if lines else columns.wanted()
    wrong = _wrong_columns(path, columns, header, "the first line")
    if wrong is not None and whole:
        yield Row(0, wrong)
        return
    for number, fields in lines[1:] if wrong is None else ():
        if len(fields) != len(header):
            what = f"line {number} has {len(fields)} fields, not {len(header)}"
            yield Row(number, _no_format(path, what))
        else:
            yield Row(number, dict(zip(header, fields, strict=True)))
    if not whole:
        start = lines[-1][0] + 1 if lines else 1
        what = f"what starts in line {start} is not well-formed CSV"
        yield Row(start, _no_format(path, what))


def _parquet_rows(path: Path, content: bytes, columns: Columns) -> Iterator[Row]:
    pa, pq = library("pyarrow"), library("pyarrow.parquet")
    unreadable = (pa.ArrowException, OSError, ValueError)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except unreadable:
        file = None
    if file is None:
        yield Row(0, _no_format(path, "it is not a Parquet file"))
        return
    names = {in_form(name): name for name in reversed(file.schema_arrow.names)}
    found = [in_form(name) for name in file.schema_arrow.names]
    wrong = _wrong_columns(path, columns, found, "the table")
    if wrong is not None:
        yield Row(0, wrong)
        return
    try:
        rows = file.read(columns=[names[name] for name in columns.wanted()]).to_pylist()
    except unreadable:
        rows = None
    if rows is None:
        yield Row(0, _no_format(path, "its columns cannot be read"))
        return
    for number, values in enumerate(rows, start=1):
        yield Row(number, {in_form(name): value for name, value in values.items()})


_ROWS: Mapping[str, Callable[[Path, bytes, Columns], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}


def _wrong_columns(
    path: Path, columns: Columns, names: list[str], where: str
) -> ConfideError | None:
    if len(set(names)) < len(names):
        return _no_format(path, f"{where} names a column twice")
    for name in columns.wanted():
        if name not in names:
            found = f"the columns in {where} are: {_shown(names, columns)}"
            return _no_column(path, name, found)
    half = columns.text[0] if len(columns.text) == 1 else ""
    rest = [name for name in _REST.get(half, ()) if name in names and name not in columns.wanted()]
    if columns.careful and rest:
        both = ",".join((half, *rest))
        return ConfideError(
            "data.half",
            f"{path}: {half!r} in {where} is half of what is asked; the column {rest[0]!r} beside"
            " it has the rest, and would not be read.",
            f"Name both, --text {both} (data.text of a run); or take that column out of the file.",
        )
    return None


def _shown(names: list[str], columns: Columns) -> str:
    """The names of columns, as far as an error may show them."""
    if all(_COLUMN_NAME.fullmatch(name) for name in names):
        return ", ".join(names)
    if not columns.own_screen:  # a file without a header shows its first record here
        return f"{len(names)} whose names are not plain words"
    cut = (f"{n[:_MOST_SHOWN]}..." if len(n) > _MOST_SHOWN else n for n in names[:_MOST_SHOWN])
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    shown = ", ".join(repr(name) for name in cut)
    return f"{shown}{more} (if that is a record, the line with the names is missing)"


def _no_column(path: Path, name: str, found: str) -> ConfideError:
    return ConfideError(
        "data.missing-column",
        f"{path} has no column {name!r}; {found}.",
        "Name the column that is meant: data.text, data.target or data.person of a run, --text,"
        " --target or --person of a command.",
    )


def _no_format(path: Path, what: str) -> ConfideError:
    return ConfideError("data.format", f"{path}: {what}.", "Correct the file; nothing was read.")


# --- words in one form ---
#
# When two words of a text are the same: persons, labels, names of columns.
#
# Unicode writes some words in several ways (NFC, NFD) that it calls equal (its Standard Annex 15),
# and a number has many spellings. Taken letter by letter, one person would be two, and half as
# well protected; a label would be another class. So each is compared in one form, which the word
# alone decides:
#
# - every word without blanks around it, in NFC;
# - a person that is a decimal number as that number: 1, 1.0 and "1.00" are "1". Leading zeros and
#   exponents are no plain number: "007" stays another person than "7";
# - a label as one that was declared: in the same letters, else as the same number, where only one
#   of the declared ones is that number.
#
# Case, blanks inside and compatibility forms are not made equal, since they can be meant;
# ``alike`` is for a warning of them.


# JSON's numbers without an exponent; short enough to be compared, long enough for any id.
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,199})(?:\.[0-9]{1,200})?")
_MOST_DIGITS = 400  # of a number that is written out


def in_form(word: str) -> str:
    """The word in NFC, without blanks around it."""
    return word.strip() if word.isascii() else unicodedata.normalize("NFC", word.strip())


def number_in_form(number: Decimal) -> str:
    """The one spelling of a finite number: without needless zeros, and without an exponent unless
    it is very large or small."""
    if not number:
        return "0"
    with localcontext() as context:
        context.prec = max(len(number.as_tuple().digits), 1)
        plain = number.normalize()
    return f"{plain:f}" if -_MOST_DIGITS < plain.adjusted() < _MOST_DIGITS else str(plain)


def person_in_form(person: str) -> str:
    """The form in which persons are compared."""
    word = in_form(person)
    return number_in_form(Decimal(word)) if _PLAIN_NUMBER.fullmatch(word) else word


def label_places(labels: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a record's label to its place among the declared ones, None for no place."""
    exact = {in_form(label): place for place, label in enumerate(labels)}
    numbers: dict[str, list[int]] = {}
    for label, place in exact.items():
        numbers.setdefault(person_in_form(label), []).append(place)

    def place_of(label: str) -> int | None:
        word = in_form(label)
        same = numbers.get(person_in_form(word), ())
        return exact.get(word, same[0] if len(same) == 1 else None)

    return place_of


def alike(words: Iterable[str]) -> int:
    """How many different words differ from another one by case, blanks, invisible characters,
    leading zeros or compatibility forms only."""
    groups: dict[str, int] = {}
    for word in set(words):
        groups[_folded(word)] = groups.get(_folded(word), 0) + 1
    return sum(count for count in groups.values() if count > 1)


def _folded(word: str) -> str:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    seen = (c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf")
    folded = "".join(seen)
    return (folded.lstrip("0") or "0") if folded.isdecimal() else folded
