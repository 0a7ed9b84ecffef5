"""Which files this process opens, seen by an audit hook of the interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Opened:
    """Files that were opened while it watched, and those that could have been written."""

    watching: bool = False
    names: list[str] = field(default_factory=list)
    for_writing: list[str] = field(default_factory=list)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if name == "sqlite3.connect":
            self.names.append(str(arguments[0]))
        if name == "open":
            path, _, flags = arguments
            self.names.append(os.fsdecode(path) if isinstance(path, (str, bytes)) else str(path))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.names[-1] != os.devnull:
                self.for_writing.append(self.names[-1])


OPENED = Opened()
sys.addaudithook(OPENED.event)  # a hook cannot be taken away again, so there is one


@contextmanager
def watching() -> Iterator[Opened]:
    OPENED.names, OPENED.for_writing, OPENED.watching = [], [], True
    try:
        yield OPENED
    finally:
        OPENED.watching = False
