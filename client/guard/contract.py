"""The contract: what a holder says once, of its own accord, of what its text is.

Its administrator writes it into the policy (``[data]``; ``confide client init --data FILE``
proposes it), so that a request is held against the contract and never against the text. Otherwise
whether a request is answered, and how, would tell what the text holds: any column, any label, the
largest number of a scale, how many different values a column has. A request that does not fit is
refused with a ``contract.`` code that contract and request alone decide. A record that is not what
the contract says contributes nothing, and nobody but the administrator is told.

The unit of privacy is part of it: a request can neither choose another, nor bind the ledger to one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import Any, NoReturn

from ...common.errors import ConfideError
from ...common.privacy import UNITS
from ...common.settings import Settings
from ...common.tasks import TASKS
from ...common.text.readers import Record
from ...common.text.rows import columns_of, in_form, label_places

CHAT = "chat"  # of task.template, too
FORMATS = ("text", CHAT)
_NUMBERS = {1: "one", 2: "two"}


def _said(default: Any, says: str, *known: str) -> Any:
    """A key with the comment that ``confide client init`` writes above it, and its words if only
    some are known."""
    return field(default=default, metadata={"says": says, "known": known})


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the text is.

    Attributes:
        text, target, person: columns; empty where there is none.
        unit: what a run protects: ``record``, or ``person``, told apart by the column ``person``.
        tasks: what may be learnt from it, kinds of ``common.tasks``.
        labels: every label that a record may have; of classes alone.
        low, high: the least and the largest number of a scale; of a regression alone.
        format: ``text``, or ``chat`` for lists of messages.
    """

    text: str = _said(
        "text", "The column with the text; of several, with commas between, all of them."
    )
    target: str = _said("", "The column with what is learnt from a text; empty: the text alone.")
    person: str = _said("", "The column whose equal values are one person; empty: there is none.")
    unit: str = _said(
        "record",
        "What every run protects: each record, or each person with all of their records. If one\n"
        "person has several records, choose person. It stays so for good: the ledger adds up one.",
        *UNITS,
    )
    tasks: tuple[str, ...] = _said((), f"What may be learnt: {', '.join(TASKS)}.", *TASKS)
    labels: tuple[str, ...] = _said((), "Every label that a record may have, of tasks with labels.")
    low: float = _said(0.0, "The least number of the scale, of tasks with one.")
    high: float = _said(1.0, "The largest number of the scale, of tasks with one.")
    format: str = _said("text", "text, or chat where a text is a list of messages.", *FORMATS)

    def check(self, settings: Settings) -> None:
        """Refuse a request that does not fit. Nothing is read but both of them.

        Raises:
            ConfideError: ``contract.`` and what of it does not fit.
        """
        data, kind = settings.data, settings.task.kind
        _listed("tasks", "task.kind", kind, self.tasks)
        _same("text", "data.text", data.text, (self.text,))
        task = TASKS[kind]
        needs = task.target == "needed"
        _same("target", "data.target", data.target, (self.target,) if needs else (self.target, ""))
        _same("unit", "privacy.unit", settings.privacy.unit, (self.unit,))
        persons = (self.person,) if self.unit == "person" else (self.person, "")
        _same("person", "data.person", data.person, persons)
        if settings.task.template != CHAT:
            _same("format", "The format without task.template = 'chat'", "text", (self.format,))
        if task.fewest_labels:
            place_of, taken = label_places(settings.task.label_names), set[int | None]({None})
            for label in self.labels:
                if place_of(label) in taken:  # or two labels of this text would be one class
                    _unlisted("labels", "A label of this text", label, settings.task.label_names)
                taken.add(place_of(label))
        low, high = settings.task.low, settings.task.high
        if task.scale and not low <= self.low <= self.high <= high:
            _refuse(
                "range",
                f"task.low to task.high is {low:g} to {high:g}, the scale of this text is"
                f" {self.low:g} to {self.high:g}.",
                "Start a run whose scale holds it.",
            )

    def in_words(self, kind: str) -> str:
        """What a record has to be for a kind of task, for people."""
        said = f"{self.text!r} holds {'messages' if self.format == CHAT else 'text'}"
        targets = TASKS[kind].in_words(self.target, self)
        said += f", {targets}" if targets else ""
        return said + (f", {self.person!r} a person" if self.unit == "person" else "")

    def fits(self, record: Record, kind: str) -> bool:
        """Whether a record, read by the contract's columns, is what it says. A person is not looked
        at here: who is no person has no unit (``client.text.corpus``)."""
        if bool(record.messages) != (self.format == CHAT):
            return False
        return TASKS[kind].fits(record.target, self)


def check_contract(contract: Contract) -> None:
    """Refuse a contract that contradicts itself.

    Raises:
        ConfideError: ``contract.format``, with the key's name.
    """
    c = contract
    scored = [kind for kind in c.tasks if TASKS[kind].target == "needed"]
    fewest = max((TASKS[kind].fewest_labels for kind in c.tasks), default=0)
    different = len({in_form(x) for x in c.labels})
    problems = (
        (not c.text, "text is empty", "Name the column that holds the text."),
        (not c.tasks, "tasks is empty", f"List some of {', '.join(TASKS)}."),
        (
            c.unit == "person" and not c.person,
            "unit is 'person', but person names no column",
            "Name the column whose equal values belong to one person.",
        ),
        (
            bool(scored) and not c.target,
            f"target is empty, but {', '.join(scored)} learns one",
            "Name the column that holds it, or take that task out of tasks.",
        ),
        (
            different < fewest,
            f"labels names {different} of the classes",
            f"List every label that a record may have, at least {_NUMBERS.get(fewest, fewest)}.",
        ),
        (
            any("," in label or label != label.strip() or not label for label in c.labels),
            "labels has one with a comma or blanks around it, or an empty one",
            "Runs write labels with commas between; rename it in the text.",
        ),
        (
            any(TASKS[kind].scale for kind in c.tasks) and not c.low < c.high,
            f"low = {c.low:g} is not below high = {c.high:g}",
            "Write the least and the largest number of the scale.",
        ),
    )
    for wrong, what, hint in problems:
        if wrong:
            raise ConfideError("contract.format", f"In [data], {what}.", hint)


def missing(
    file: str | PathLike[str] = "FILE", named: Mapping[str, str | None] = MappingProxyType({})
) -> ConfideError:
    """The error of a policy that says nothing of the text; ``named`` are columns of it."""
    options = "".join(f" --{key} {shlex.quote(name)}" for key, name in named.items() if name)
    return ConfideError(
        "contract.missing",
        "This holder's policy has no [data]: it does not say what its text is.",
        f"Run `confide client init DIR --data {file}{options}`, which proposes one; approve it.",
    )


def check_columns(contract: Contract, named: Mapping[str, str | None]) -> None:
    """Refuse columns that an administrator names and the contract does not: a run reads, and
    protects, what the contract says.

    Args:
        named: ``text``, ``target`` and ``person``; None where nothing was named.

    Raises:
        ConfideError: ``contract.text``, ``contract.target`` or ``contract.person``.
    """
    for key, name in named.items():
        said = getattr(contract, key)
        if name is None or columns_of(name) == columns_of(said):
            continue
        unit = " and unit = 'person'" if key == "person" and name else ""
        _refuse(
            key,
            f"--{key} is {name!r:.100}, but [data] in the policy has {key} = {said!r:.100}, and a"
            " run does what stands there.",
            f"Write {key} = {name!r:.100}{unit} into [data], or leave --{key} out.",
        )
    if named.get("person") and contract.unit != "person":
        raise ConfideError(
            "contract.unit",
            f"--person names {contract.person!r:.100}, but [data] in the policy has unit ="
            f" {contract.unit!r}: single records are protected, not persons.",
            "Write unit = 'person' into [data], or leave --person out.",
        )


def _same(name: str, what: str, value: str, allowed: Iterable[str]) -> None:
    if columns_of(value) not in map(columns_of, allowed):
        said = " or ".join(repr(word) for word in dict.fromkeys(allowed))
        _refuse(name, f"{what} is {value!r:.100}, this text's is {said}.", "Start a run with that.")


def _listed(name: str, what: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        _unlisted(name, what, value, allowed)


def _unlisted(name: str, what: str, value: str, allowed: Iterable[str]) -> NoReturn:
    said = ", ".join(allowed) or "none"
    _refuse(
        name,
        f"{what}, {value!r:.100}, is none of {said:.300}.",
        "Start a run that fits this contract.",
    )


def _refuse(name: str, message: str, hint: str) -> NoReturn:
    raise ConfideError(f"contract.{name}", message, hint)
