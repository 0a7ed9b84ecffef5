"""The contract: what does not fit is refused by its name, and nothing of the text decides it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from confide.client.guard.contract import Contract
from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.tasks import TASKS
from confide.common.text.readers import Message, Record

CONTRACT = Contract(
    text="note",
    target="code",
    person="patient",
    tasks=tuple(TASKS),
    labels=("a", "b"),
    low=1.0,
    high=5.0,
)
HONEST: dict[str, Any] = {
    "model.name": "m",
    "data.text": "note",
    "data.target": "code",
    "task.labels": "a,b",
}
NUMBERS = {"task.kind": "regression", "task.labels": "", "task.low": 1.0, "task.high": 5.0}
WRITTEN = {"task.kind": "causal", "task.labels": ""}


FITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"task.labels": "b,c,a"}),
    ({}, {"data.person": "patient"}),
    # khmer-ocr#9: equal where Unicode says so, and where a number is
    ({"labels": ("Jose\u0301", "b")}, {"task.labels": "b,Jos\u00e9"}),
    ({"labels": ("0", "1")}, {"task.labels": "0.0,1.0"}),
    ({"text": "No\u0302te "}, {"data.text": "N\u00f4te"}),
    ({"text": "ask,more"}, {"data.text": "ask, more"}),
    ({"unit": "person"}, {"privacy.unit": "person", "data.person": "patient"}),
    ({}, NUMBERS),
    ({}, NUMBERS | {"task.low": 0.0, "task.high": 9.0}),
    ({}, WRITTEN),
    ({}, WRITTEN | {"data.target": ""}),
    ({"format": "chat"}, WRITTEN | {"data.target": "", "task.template": "chat"}),
    ({}, WRITTEN | {"task.template": "chat"}),
]


@pytest.mark.parametrize(("said", "asked"), FITS)
def test_what_fits_is_answered(said: dict[str, Any], asked: dict[str, Any]) -> None:
    replace(CONTRACT, **said).check(from_flat(HONEST | asked))


MISFITS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tasks", {"tasks": ("causal",)}, {}),
    ("tasks", {"tasks": ()}, {}),
    ("text", {}, {"data.text": "text"}),
    ("text", {}, {"data.text": "code"}),
    ("text", {}, {"data.text": "note,code"}),
    ("text", {"text": "note,code"}, {"data.text": "note"}),
    ("labels", {"labels": ("3.1", "3.10")}, {"task.labels": "3.1,3.2"}),
    ("labels", {"labels": ("A", "b")}, {}),
    ("target", {}, {"data.target": "note"}),
    ("target", {}, {"data.target": "patient"}),
    ("person", {}, {"data.person": "code"}),
    ("person", {"person": ""}, {"data.person": "patient"}),
    ("person", {"unit": "person"}, {"privacy.unit": "person", "data.person": "code"}),
    ("unit", {}, {"privacy.unit": "person", "data.person": "patient"}),
    ("unit", {"unit": "person"}, {}),
    ("labels", {}, {"task.labels": "a,c"}),
    ("labels", {"labels": ("a", "b", "c")}, {}),
    ("range", {}, NUMBERS | {"task.high": 4.9}),
    ("range", {}, NUMBERS | {"task.low": 1.1}),
    ("format", {"format": "chat"}, WRITTEN | {"data.target": ""}),
]


@pytest.mark.parametrize(("what", "said", "asked"), MISFITS)
def test_what_does_not_fit_is_refused_by_its_name(
    what: str, said: dict[str, Any], asked: dict[str, Any]
) -> None:
    with pytest.raises(ConfideError) as caught:
        replace(CONTRACT, **said).check(from_flat(HONEST | asked))
    assert caught.value.code == f"contract.{what}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "record", "fits"),
    [
        ("classification", Record("t", "a"), True),
        ("classification", Record("t", "A"), False),
        ("classification", Record("t", None), False),
        ("regression", Record("t", "1"), True),
        ("regression", Record("t", "5.01"), False),
        ("regression", Record("t", "nan"), False),
        ("regression", Record("t", "five"), False),
        ("regression", Record("t", None), False),
        ("causal", Record("t", None), True),
        ("causal", Record("t", None, None, (Message("user", "t"),)), False),
    ],
)
def test_a_record_is_what_the_contract_says_or_is_not_used(
    kind: str, record: Record, fits: bool
) -> None:
    assert CONTRACT.fits(record, kind) is fits


def test_chat_is_messages_and_nothing_else() -> None:
    chat = replace(CONTRACT, format="chat")
    assert chat.fits(Record("t", None, None, (Message("user", "t"),)), "causal")
    assert not chat.fits(Record("t"), "causal")
