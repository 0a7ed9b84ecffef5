"""What only people can say of a run: ``about.toml`` in the run folder, which may be filled in.

The coordinator and the holders write it; nothing in it is checked, and the report says so. What
nobody stated is shown as not stated. A report that was made before is then made again:
``confide report make RUN``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NoReturn

from ...common.errors import ConfideError
from . import Json

FILE = "about.toml"
NOT_STATED = "not stated"
MOST_LETTERS = 500  # of one field
FIELDS = {
    "responsible": "Responsible for the run",
    "contact": "Contact, data-protection officer",
    "purpose": "What the adapter is for",
    "text": "What kind of text was used, and whose",
    "holders": "Who holds the text",
    "basis": "Legal basis, or consent",
    "recipients": "Who gets the adapter",
    "kept-until": "How long adapter and run folder are kept",
}


def read_about(folder: Path) -> Json:
    """Each field's heading with what was stated of it.

    Raises:
        ConfideError: ``report.about`` for a file that is no TOML, or has other fields.
    """
    path = folder / FILE
    stated = _stated(path) if path.is_file() else {}
    return {title: stated.get(key, "").strip() or NOT_STATED for key, title in FIELDS.items()}


def _stated(path: Path) -> dict[str, str]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse(f"cannot be read ({type(error).__name__})")
    for key, value in found.items():
        if key not in FIELDS:
            _refuse(f"has a field {key!r:.60}")
        if not isinstance(value, str) or len(value) > MOST_LETTERS:
            _refuse(f"has no text of at most {MOST_LETTERS} letters in {key}")
    return found


def _refuse(what: str) -> NoReturn:
    raise ConfideError(
        "report.about",
        f"{FILE} {what}.",
        f'It has lines of the form {next(iter(FIELDS))} = "...", of {", ".join(FIELDS)}.',
    )
