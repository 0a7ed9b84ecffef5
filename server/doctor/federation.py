"""What a prepared federation tells of its holders: how many units each has, and the persons.

Only where the coordinator has the holders' files, in a simulation on public text: a deployed
coordinator has ``public.jsonl`` and nothing else, and then nothing is known. Of the text only how
many records and persons there are is kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.paths import local_or_cached
from ...common.settings import Settings
from . import Facts

PERSON = "person"  # the column of a prepared federation
BOOKED = ("source", "sizes", "holders", "column", "most_records")  # in a run's first event


def facts_of(settings: Settings) -> Facts:
    """Units of each holder, and the persons, of a prepared federation; nothing where there is
    none.

    Raises:
        ConfideError: ``doctor.federation`` for a file that is no JSON lines.
    """
    folder = local_or_cached(settings.data.path, "federations")
    files = sorted(folder.glob("holder-*.jsonl")) if folder else []
    if not files:
        return Facts()
    column = settings.data.person or PERSON
    counts = [_persons(file, column) for file in files]
    named = all(None not in count for count in counts)
    by_person = settings.privacy.unit == "person" and named
    return Facts(
        source=f"the prepared federation {files[0].parent.name}",
        sizes=tuple(sorted(len(c) if by_person else c.total() for c in counts)),
        holders=len(files),
        column=column if named else "",
        most_records=max(max(c.values(), default=0) for c in counts) if named else 0,
    )


def booked(settings: Settings) -> dict[str, Any]:
    """The same for a run's first event, by which its report can be made again anywhere. Files that
    cannot be read are for their holders to tell of: nothing is known then."""
    try:
        facts = facts_of(settings)
    except ConfideError:
        facts = Facts()
    return {name: getattr(facts, name) for name in BOOKED}


def from_event(told: Any) -> Facts:
    """Facts that were booked; none where the event has none, or others."""
    if not isinstance(told, Mapping) or set(told) != set(BOOKED):
        return Facts()
    return Facts(**{**told, "sizes": tuple(told["sizes"])})


def _persons(file: Path, column: str) -> Counter[str | None]:
    """How many records each person has; None is whoever the column does not name."""
    broken = False
    rows: list[Mapping[str, Any]] = []
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [dict(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError):
        broken = True  # what could not be parsed stays in the parser's exception
    if broken:
        raise ConfideError(
            "doctor.federation",
            f"{file.name} of {file.parent.name!r} does not hold one JSON object a line.",
            "Prepare the federation anew with `confide assets fetch`.",
        )
    return Counter(None if row.get(column) is None else str(row[column]) for row in rows)
