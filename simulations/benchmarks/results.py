"""Results of runs, one JSON object a line, kept as they are ready.

A table takes hours, so that a run which is in the file already is not done again: the same
command goes on where it was killed. What makes two runs the same is a digest over all that
decides them; a last line that a kill tore is dropped, and that run is done again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ...common.errors import ConfideError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a method.

    Attributes:
        of: digest over settings, text and public records.
        epsilon: None means no privacy.
        rate: the ``train.lr`` that it ran with.
        trial: whether it served to choose a rate, on the public records that are not reported.
        failed: the code of what ended the run; its figures are zeros then.
        before: the main metric before training, ``value`` after it, ``loss`` beside it.
        seconds: of the processor, all holders and the coordinator together, so that whatever else
            the machine does hardly matters.
        bytes_up: of a holder's update, the mean over the rounds; ``bytes_down`` of the adapter.
    """

    of: str
    scenario: str
    partition: str
    method: str
    epsilon: float | None
    seed: int
    rate: float
    trial: bool
    failed: str = ""
    metric: str = ""
    before: float = 0.0
    value: float = 0.0
    loss: float = 0.0
    others: Mapping[str, float]
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0


class Results:
    """What is known, by digest; in a file, if there is one.

    Raises:
        ConfideError: ``bench.out`` for a file that is none of these or cannot be written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._known = file, dict[str, Measured]()
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(file) as opened:
                opened.seek(0)
                content = opened.read()
                whole = content[: content.rfind(b"\n") + 1]
                opened.truncate(len(whole))
        except OSError as error:
            raise _refused(file, f"cannot be written: {error.strerror}") from None
        for number, line in enumerate(whole.decode(errors="replace").splitlines(), start=1):
            found = _parsed(line)
            if found is None:
                raise _refused(file, f"has no result in line {number}")
            self._known[found.of] = found

    def get(self, of: str) -> Measured | None:
        """The result of that digest, if it is known."""
        return self._known.get(of)

    def add(self, result: Measured) -> None:
        """Keep a result, in the file before the call returns where there is one."""
        self._known[result.of] = result
        if self._file is not None:
            with _alone(self._file) as file:
                file.write((json.dumps(asdict(result)) + "\n").encode())


@contextmanager
def _alone(file: Path) -> Iterator[BinaryIO]:
    """The file, while no other process reads or writes it: several may keep their results there."""
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened


def _parsed(line: str) -> Measured | None:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or set(row) != {f.name for f in fields(Measured)}:
        return None
    return Measured(**row)


def _refused(file: Path, what: str) -> ConfideError:
    return ConfideError("bench.out", f"{file} {what}.", "Name another file with --out.")
