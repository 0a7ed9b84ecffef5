"""What is in a holder's file, told without quoting it: counts, lengths, and what to think about.

For the administrator, before joining a run. Reads the file on this machine and sends nothing.
Neither a text, nor a label, nor a person's name appears in the findings; labels are named only
where the caller gave their names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ..common.text.readers import Record, read_records

SMALL = 200  # units; below, the noise of an ordinary run is larger than what they can teach it
RARE = 10  # records of a label, or fewer: too few to be learnt under noise
MOST_OF_A_PERSON = 8  # privacy.records-per-person unless the run says otherwise


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Counts of one file. ``labels`` holds (name, records); the name is empty where it was not
    given, and those come last, largest first. ``words`` is the median, the 95th percentile and the
    largest number of words of a record."""

    file: str
    records: int
    persons: int | None
    most_of_a_person: int | None
    labels: tuple[tuple[str, int], ...]
    words: tuple[float, int, int]
    warnings: tuple[str, ...]


def check_data(
    path: Path,
    *,
    text: str = "text",
    label: str | None = "label",
    person: str | None = None,
    labels: Sequence[str] = (),
    delta: float = 1e-5,
) -> Findings:
    """Read a file as a run would, and count.

    Args:
        label, person: columns, or None for none.
        labels: the names that a run would declare in ``task.labels``; public.
        delta: of the run.

    Raises:
        ConfideError: the codes of the readers, none of which quotes a record.
    """
    records = read_records(path, text=text, target=label, person=person)
    of_person = Counter(r.person for r in records if r.person is not None)
    of_label = Counter(r.target for r in records if r.target is not None)
    lengths = sorted(len(r.text.split()) for r in records)
    named = [(name, of_label.get(name, 0)) for name in labels]
    others = [("", count) for name, count in of_label.most_common() if name not in labels]
    found = Findings(
        file=str(path),
        records=len(records),
        persons=len(of_person) if person else None,
        most_of_a_person=max(of_person.values(), default=0) if person else None,
        labels=(*named, *others),
        words=(median(lengths), lengths[math.ceil(0.95 * len(lengths)) - 1], lengths[-1]),
        warnings=(),
    )
    warnings = (*_of_texts(records, found), *_of_labels(found, labels), *_of_privacy(found, delta))
    return replace(found, warnings=warnings)


def _of_texts(records: Sequence[Record], found: Findings) -> list[str]:
    again = len(records) - len({r.text for r in records})
    short = sum(len(r.text.split()) == 1 for r in records)
    nobody = sum(r.person is None for r in records) if found.persons is not None else 0
    said = []
    if again:
        said.append(
            f"{again} records repeat the text of another. Each copy counts as a record of its own:"
            " what is said n times is protected n times less. Remove copies, or protect persons."
        )
    if short:
        said.append(f"{short} records are one word long. Check that the column is the right one.")
    if nobody:
        said.append(
            f"{nobody} records name no person. A run that protects persons will be refused until"
            " every record names one."
        )
    return said


def _of_labels(found: Findings, labels: Sequence[str]) -> list[str]:
    said = []
    counts = [count for _, count in found.labels]
    strange = sum(count for name, count in found.labels if not name)
    if len([count for count in counts if count]) == 1:
        said.append("All records have the same label: there is nothing to tell apart.")
    if len(counts) > max(2, found.records / 2):
        said.append(
            "Most labels occur once or twice. Check that the label's column is the right one."
        )
    elif rare := sum(0 < count < RARE for count in counts):
        said.append(f"{rare} labels have fewer than {RARE} records: too few to be learnt.")
    if labels and strange:
        said.append(
            f"{strange} records have a label that was not named. A run that declares these labels"
            " alone will be refused; labels are compared letter by letter."
        )
    return said


def _of_privacy(found: Findings, delta: float) -> list[str]:
    units = found.records if found.persons is None else found.persons
    name = "record" if found.persons is None else "person"
    said = []
    if not delta * units < 1:
        said.append(
            f"delta = {delta:g} is not below 1/{units}: a run with it is refused, since publishing"
            f" one {name} whole would be within it. Ask for at most {0.1 / max(units, 1):.1g}."
        )
    if units < SMALL:
        said.append(
            f"{units} {name}s are few: at an epsilon of 8 or less the noise will drown most of what"
            f" they could teach. It takes some {SMALL} or more, or several holders."
        )
    if (found.most_of_a_person or 0) > MOST_OF_A_PERSON:
        said.append(
            f"One person has {found.most_of_a_person} records; a step uses at most"
            f" {MOST_OF_A_PERSON} of a person unless the run sets privacy.records-per-person."
        )
    if found.persons is not None and found.persons < found.records:
        said.append(
            "Some persons have several records: let the policy allow the unit person alone"
            ' (units = ["person"]), with this column.'
        )
    return said
