"""Speeches of Shakespeare's plays, by role: text to go on writing, with natural users.

A speech begins at a line of its own that names the role and ends in a full stop, after a blank
line; it ends where the next one, an act or a scene begins. Stage directions are left out: what is
in brackets, and lines that begin with Enter, Re-enter, Exit or Exeunt. The person is the role
within its play. Roles with fewer than ten speeches are left out: messengers, crowds, and lines
that only look like a name. A Midsummer Night's Dream is set otherwise and no part of the asset.

The task is the one of Caldas et al., "LEAF", 2018, made from other files.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ...common.text.readers import Record
from .source import Split

FEWEST_SPEECHES = 10
_ROLE = re.compile(r"[A-Z][A-Za-z'.,& -]{0,38}\.")
_HEADING = re.compile(r"(ACT|SCENE|Act|Scene) +[IVX\d]+\b|EPILOGUE|PROLOGUE|INDUCTION")
_BRACKETED = re.compile(r"\[[^\]]*\]?")
_ENTRANCE = re.compile(r"(Re-enter|Enter|Exit|Exeunt)\b")


def read_plays(folder: Path) -> Split:
    """All speeches of the roles that speak often; there is no test split."""
    speeches = [
        record
        for path in sorted(folder.glob("*_gut.txt"))
        for record in parse_play(path.read_text(encoding="latin-1"), path.stem[: -len("_gut")])
    ]
    often = Counter(record.person for record in speeches)
    return Split([r for r in speeches if often[r.person] >= FEWEST_SPEECHES], [])


def parse_play(content: str, play: str) -> list[Record]:
    """The speeches of one play, each with its role."""
    records: list[Record] = []
    role, lines, after_blank = "", [""], True

    def end() -> None:
        text = " ".join(_BRACKETED.sub(" ", " ".join(lines)).split())
        if role and text:
            records.append(Record(text, None, f"{play}/{role}"))

    for line in (line.strip() for line in content.splitlines()):
        if _HEADING.match(line):
            end()
            role, lines = "", []
        elif after_blank and _ROLE.fullmatch(line):
            end()
            role, lines = line.removesuffix(".").upper(), []
        elif not _ENTRANCE.match(line):
            lines.append(line)
        after_blank = not line
    end()
    return records
