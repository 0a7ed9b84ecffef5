"""The one error of confide: a stable code, a sentence, and what to do next.

Codes travel between coordinator and holder; messages never do, since a message may name a
path or a column of the place where it arose. Nothing here imports anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfideError(Exception):
    """A failure that a person can act on.

    Args:
        code: stable, dotted, lower case, e.g. ``data.missing-column``. Safe to send.
        message: one sentence with the name, the value and the allowed range. Stays here.
        hint: what to do next, one sentence, or empty.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        hint = f" {self.hint}" if self.hint else ""
        return f"[{self.code}] {self.message}{hint}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known word, or the whole list when nothing is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def missing_extra(package: str, extra: str) -> ConfideError:
    """The error of a command whose library is an extra of confide's and is not there."""
    return ConfideError(
        "extra.missing",
        f"{package} is not installed; it comes with the extra {extra!r}.",
        f"Run: pip install 'confide[{extra}]' (in a checkout: pip install -e '.[{extra}]').",
    )
