"""What is in a holder's file, told without quoting it: counts, lengths, and what to think about.

For the administrator, before joining a run. Reads the file on this machine and sends nothing.
Neither a text, nor a label, nor a person's name appears in the findings; labels are named only
where the caller gave their names. What is broken in a file, or not as the contract says, is told
here and nowhere else: a run uses the rest and says nothing of it.

``propose_contract`` reads off a file what its contract could be, labels included. It goes into a
policy that the administrator approves, and is never made at a run's request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ...common.errors import ConfideError, nearest
from ...common.tasks import TASKS
from ...common.tasks.task import Shape
from ...common.text.readers import Record, numbered_records, read_records
from ...common.text.rows import OTHER_ENDS, alike, in_form, label_places
from ..guard.contract import CHAT, Contract

MOST_TOLD = 20  # rows that are not used, of which the line is said
MOST_LABELS = 100  # different targets that a proposed contract takes for classes
SMALL = 200  # units; below, the noise of an ordinary run is larger than what they can teach it
RARE = 10  # records of a label, or fewer: too few to be learnt under noise
MOST_OF_A_PERSON = 8  # privacy.records-per-person unless the run says otherwise


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Counts of one file. ``unfit`` rows are no record, or not as the contract says; they are in no
    other figure, and ``broken`` says of the first of them which line it is, and why. ``labels``
    holds (name, records), of a task with classes; the name is empty where it was not given, and
    those come last, largest first. ``words`` is the median, the 95th percentile and the largest
    number of words of a record."""

    file: str
    records: int
    unfit: int
    broken: tuple[str, ...]
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
    task: str = "",
    contract: Contract | None = None,
    delta: float = 1e-5,
) -> Findings:
    """Read a file as a run would, and count.

    Args:
        text, label, person: columns, or None for none.
        labels: the names that a run would declare in ``task.labels``; public.
        task: a kind of ``common.tasks``; empty: the first of them, classes, unless every record is
            a conversation.
        contract: what the holder says of the text. It takes the place of columns, labels and task,
            and rows that do not fit are counted instead of refused.
        delta: of the run.

    Raises:
        ConfideError: the codes of the readers, none of which quotes a record; with a contract only
            where no row fits, for the first reason. ``data.task`` for no kind of task.
    """
    if task not in ("", *TASKS):
        raise ConfideError("data.task", f"{task!r:.100} is not a task.", nearest(task[:100], TASKS))
    agreed = contract or _plain_contract(text, label, person, labels, task)
    records, broken = _read(path, agreed, proposed=contract is not None)
    person, labels = agreed.person or None, agreed.labels
    kinds = agreed.tasks or (() if all(r.messages for r in records) else (next(iter(TASKS)),))
    with_labels = [TASKS[kind] for kind in kinds if TASKS[kind].fewest_labels]
    named = [with_labels[0].labels_in(r.target) for r in records if with_labels and r.target]
    counts = _counts(named, labels)
    of_person = Counter(r.person for r in records if r.person is not None)
    lengths = sorted(len(r.text.split()) for r in records)
    found = Findings(
        file=str(path),
        records=len(records),
        unfit=len(broken),
        broken=tuple(broken[:MOST_TOLD]),
        persons=len(of_person) if person else None,
        most_of_a_person=max(of_person.values(), default=0) if person else None,
        labels=counts,
        words=(median(lengths), lengths[math.ceil(0.95 * len(lengths)) - 1], lengths[-1]),
        warnings=(),
    )
    whole = contract is not None and contract.unit == "person"
    warnings = (
        *_of_texts(records, found),
        *_of_forms(records, found, [label for some in named for label in some]),
        *_of_labels(found, labels),
        *_of_privacy(found, delta, whole=whole),
    )
    return replace(found, warnings=warnings)


def _plain_contract(
    text: str, label: str | None, person: str | None, labels: Sequence[str], task: str
) -> Contract:
    """A contract from the options of a command; no record is checked against it."""
    return Contract(
        text=text,
        target=label or "",
        person=person or "",
        tasks=(task,) if task else (),
        labels=tuple(labels),
    )


def _read(path: Path, contract: Contract, *, proposed: bool) -> tuple[list[Record], list[str]]:
    """The records, and why each other row is not used. Without a contract of the holder's the
    columns alone count, and a row that is no record is refused."""
    fitting, errors = list[Record](), list[ConfideError]()
    for number, row in _numbered(path, contract):
        why = "" if isinstance(row, ConfideError) or not proposed else _misfit(row, contract)
        if isinstance(row, ConfideError):
            errors.append(row)
        elif why:
            place = "row" if path.suffix.lower() == ".parquet" else "line"
            what = f"{path}: {place} {number} is not what [data] in the policy says: {why}."
            hint = "Correct [data], or the file, or name the right one."
            errors.append(ConfideError("data.unfit", what, hint))
        else:
            fitting.append(row)
    if errors and not (fitting and proposed):
        first, more = errors[0], len(errors) - 1
        first.message += f" {more} more rows are not in order either." if more else ""
        raise first
    return fitting, [error.message for error in errors]


def _numbered(path: Path, contract: Contract) -> list[tuple[int, Record | ConfideError]]:
    text, target, person = contract.text, contract.target or None, contract.person or None
    return numbered_records(
        path, text=text, target=target, person=person, lists=_lists(contract), own_screen=True
    )


def _lists(contract: Contract) -> bool:
    """Whether a target may be a list in some task."""
    return any(TASKS[kind].lists for kind in contract.tasks)


def _counts(found: Sequence[Sequence[str]], labels: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(name, records) of the labels that were given, then those of others without their names;
    ``found`` are those of each record."""
    place_of = label_places(labels)
    known, others = Counter[int](), Counter[str]()
    for label in (in_form(one) for record in found for one in record):
        place = place_of(label)
        if place is None:
            others[label] += 1
        else:
            known[place] += 1
    named = [(name, known[place]) for place, name in enumerate(labels)]
    return (*named, *(("", count) for _, count in others.most_common()))


def misfits(path: Path, contract: Contract) -> list[int]:
    """The places, from 1, of the records that are not what the contract says.

    Raises:
        ConfideError: the codes of the readers, for a row that is no record.
    """
    text, target, person = contract.text, contract.target or None, contract.person or None
    records = read_records(
        path, text=text, target=target, person=person, lists=_lists(contract), own_screen=True
    )
    return [place for place, r in enumerate(records, start=1) if _misfit(r, contract)]


def _misfit(record: Record, contract: Contract) -> str:
    """Why the contract does not hold for a record in each of its tasks; empty where it does."""
    if contract.unit == "person" and record.person is None:
        return f"it names no person in {contract.person!r}"
    for kind in contract.tasks:
        if not contract.fits(record, kind):
            return f"for {kind}, {contract.in_words(kind):.300}"
    return ""


def propose_contract(
    path: Path, *, text: str = "text", label: str = "", person: str = ""
) -> Contract:
    """What a file's contract could be: classes where there are few different targets, numbers where
    all are some, otherwise texts to be written.

    Args:
        label, person: columns; empty for none.

    Raises:
        ConfideError: the codes of the readers, for a file with a row that is no record.
    """
    records = read_records(
        path, text=text, target=label or None, person=person or None, lists=True, own_screen=True
    )
    several = bool(person) and max(Counter(r.person for r in records).values()) > 1
    targets = sorted({in_form(r.target) for r in records if r.target is not None})
    said = Contract(text=text, target=label, person=person, unit="person" if several else "record")
    if all(record.messages for record in records):
        return replace(said, tasks=_for("messages"), format=CHAT)
    if any(record.listed for record in records):
        some = sorted({label for r in records if isinstance(r.cell, list) for label in r.cell})
        return replace(said, tasks=_for("label sets"), labels=tuple(some))
    if not label:
        return replace(said, tasks=_for("alone"))
    if _is_scale(targets):
        numbers = [float(target) for target in targets]
        return replace(said, tasks=_for("scale"), low=min(numbers), high=max(numbers))
    if 2 <= len(targets) <= MOST_LABELS:
        return replace(said, tasks=_for("labels"), labels=tuple(targets))
    return replace(said, tasks=_for("texts"))


def _for(shape: Shape) -> tuple[str, ...]:
    """The tasks that are proposed for a file of that shape."""
    return tuple(kind for kind, task in TASKS.items() if shape in task.learns_from)


def _is_scale(targets: Sequence[str]) -> bool:
    """Whether different targets are numbers of a scale, rather than the names of classes: some of
    them with a fraction."""
    try:
        numbers = [float(target) for target in targets]
    except ValueError:
        return False
    finite = all(map(math.isfinite, numbers))
    return finite and len(numbers) > 1 and not all(number.is_integer() for number in numbers)


def _of_texts(records: Sequence[Record], found: Findings) -> list[str]:
    again = len(records) - len({r.text for r in records})
    short = sum(len(r.text.split()) == 1 for r in records)
    nobody = sum(r.person is None for r in records) if found.persons is not None else 0
    said = []
    if found.unfit:
        said.append(
            f"{found.unfit} rows are no record, or not what [data] in the policy says. A run does"
            " not use them, and is not told."
        )
    if again:
        said.append(
            f"{again} records repeat the text of another. Each copy counts as a record of its own:"
            " what is said n times is protected n times less. Remove copies, or protect persons."
        )
    if short:
        said.append(f"{short} records are one word long. Check that the column is the right one.")
    if nobody:
        said.append(
            f"{nobody} records name no person. A run that protects persons does not use them."
        )
    return said


def _of_forms(records: Sequence[Record], found: Findings, labels: Sequence[str]) -> list[str]:
    """Words that look alike and differ, and lines that some programs would have cut."""
    persons = alike(r.person for r in records if r.person is not None)
    classes = alike(labels)
    lines = sum(OTHER_ENDS.search(r.text) is not None for r in records)
    only = "only by case, blanks, invisible characters or the form of letters and numbers"
    said = []
    if persons:
        said.append(
            f"{persons} persons differ from another {only}, and count as persons of their own: if"
            " they are one, they are protected as half. Write each person in one way."
        )
    if classes:
        said.append(
            f"{classes} labels differ from another {only}, and count as labels of their own."
            " Write each label in one way."
        )
    if lines and found.file.lower().endswith(".txt"):
        said.append(
            f"{lines} records hold a form feed or another separator that ends lines in some"
            " programs; here LF, CRLF and CR end a line, and each of these stays one record."
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
            "Most labels occur once or twice. Check that the label's column is the right one; where"
            " it holds answers to be written, say so by --task seq2seq or causal."
        )
    elif rare := sum(0 < count < RARE for count in counts):
        said.append(f"{rare} labels have fewer than {RARE} records: too few to be learnt.")
    if labels and strange:
        said.append(
            f"{strange} records have a label that was not named. A run that declares these labels"
            " alone does not use them; upper and lower case are different labels."
        )
    return said


def _of_privacy(found: Findings, delta: float, *, whole: bool) -> list[str]:
    """``whole``: whether the contract protects whole persons already."""
    units = found.records if found.persons is None else found.persons
    name = "record" if found.persons is None else "person"
    said = []
    if not delta * units < 1:
        said.append(
            f"delta = {delta:g} is not below 1/{units}: publishing one {name} whole would be within"
            f" it. Set max-delta in the policy to at most {0.1 / max(units, 1):.1g}; no run is"
            " refused for it by itself, since that would tell how many there are."
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
    if found.persons is not None and found.persons < found.records and not whole:
        said.append(
            'Some persons have several records: let [data] in the policy have unit = "person",'
            " with this column."
        )
    return said
