"""Translation pairs out of the message catalogues of two web frameworks.

An entry becomes a pair unless one of these holds: it is the header or has plural forms; either
side has a placeholder, markup, a mnemonic or a line break (one of ``% { } < > &`` or a newline);
both sides are the same; the English has no two lower-case letters in a row (abbreviations and
formats); or the same English came before, in an earlier catalogue. The person is the catalogue.
Catalogues are files that msgfmt compiled, read by the standard library's gettext.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Iterable
from pathlib import Path

from ...common.text.readers import Record
from .source import Split

_CONTEXT_END = "\x04"
_UNWANTED = re.compile(r"[%{}<>&\n]")
_WORDS = re.compile(r"[a-z]{2}")


def read_translations(*folders: Path, language: str) -> Split:
    """English to that language, from every catalogue below the folders; no test split."""
    seen: set[str] = set()
    records: list[Record] = []
    for folder in folders:
        for path in sorted(folder.rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
            app = path.relative_to(folder).parts[: -len(("locale", language, "LC_MESSAGES", "x"))]
            person = "/".join([folder.name, *app, path.stem])
            for english, other in pairs(path):
                if english not in seen:
                    seen.add(english)
                    records.append(Record(english, other, person))
    return Split(records, [])


def pairs(path: Path) -> Iterable[tuple[str, str]]:
    """The pairs of one catalogue that are worth translating, in the order of the file."""
    with path.open("rb") as file:
        # The only way that the standard library has to list a catalogue's entries.
        catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    for key, value in catalogue.items():
        if isinstance(key, str):
            english, other = key.split(_CONTEXT_END)[-1].strip(), value.strip()
            if _is_plain(english, other):
                yield english, other


def _is_plain(english: str, other: str) -> bool:
    unwanted = _UNWANTED.search(english + other)
    return bool(other and _WORDS.search(english) and not unwanted and english != other)
