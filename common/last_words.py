"""What a program said before it ended: one line that tells of the failure, not the edge of a box.

Of logs of one's own machine, for whoever runs it; what could command a terminal is left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOST_LETTERS = 300
_MOST_BYTES = 64 * 1024  # of a log's end
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FRAMES = re.compile(r"[\u2500-\u259f]+ ?")
_TELLING = re.compile(r"error|exception|fail|killed|denied|refused|cannot|no such|not found", re.I)


def plain(log: str) -> str:
    """A log without colours and the frames around its messages."""
    return _FRAMES.sub("", _COLOURS.sub("", log))


def last_words(log: str) -> str:
    """The last line that tells of a failure, else the last one that says anything."""
    lines = [line.strip() for line in plain(log).splitlines() if any(map(str.isalpha, line))]
    telling = [line for line in lines if _TELLING.search(line)]
    said = (telling or lines or ["It said nothing."])[-1][:_MOST_LETTERS]
    return "".join(letter if letter.isprintable() else " " for letter in said)


def size_of(log: Path) -> int:
    """Where in a log, which may not be there yet, the next line will stand; in bytes."""
    return log.stat().st_size if log.is_file() else 0


def last_words_in(log: Path, start: int = 0) -> str:
    """The last words of a log from a byte on; of a long one its end is read alone. One that was
    made shorter meanwhile, as by logrotate, is read from its beginning."""
    size = size_of(log)
    if size == 0:
        return last_words("")
    with log.open("rb") as file:
        file.seek(max(start if start <= size else 0, size - _MOST_BYTES), os.SEEK_SET)
        return last_words(file.read(_MOST_BYTES).decode(errors="replace"))
