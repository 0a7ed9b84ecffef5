"""When two words of a text are the same: persons, labels, names of columns.

Unicode writes some words in several ways (NFC, NFD) that it calls equal (its Standard Annex 15),
and a number has many spellings. Taken letter by letter, one person would be two, and half as well
protected; a label would be another class. So each is compared in one form, which the word alone
decides:

- every word without blanks around it, in NFC;
- a person that is a decimal number as that number: 1, 1.0 and "1.00" are "1". Leading zeros and
  exponents are no plain number: "007" stays another person than "7";
- a label as one that was declared: in the same letters, else as the same number, where only one of
  the declared ones is that number.

Case, blanks inside and compatibility forms are not made equal, since they can be meant;
``alike`` is for a warning of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, localcontext

# JSON's numbers without an exponent; short enough to be compared, long enough for any id.
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,199})(?:\.[0-9]{1,200})?")
_MOST_DIGITS = 400  # of a number that is written out


def in_form(word: str) -> str:
    """Without blanks around it, in NFC."""
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
