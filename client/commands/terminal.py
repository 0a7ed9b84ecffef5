"""Words that somebody else chose, as they may be shown on an administrator's terminal."""

from __future__ import annotations


def plain(words: str) -> str:
    """The words without what commands a terminal or turns the direction of writing; each such
    character is shown as one that stands for it. A label of a text, a run's id and a column are
    somebody else's words."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
