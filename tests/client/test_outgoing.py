"""Every field that leaves a holder is on the list with what protects it, and no other leaves."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client import app as app_module
from confide.client.app import app
from confide.common.models.loading import load_model
from confide.common.privacy.ledger import Receipt
from confide.common.settings import from_flat, known_keys
from confide.common.wire.messages import Ready, Refusal, Reply, Update, request_to_records
from confide.common.wire.outgoing import (
    NOT_SENT,
    OUTGOING,
    PARTS,
    SUMS,
    Protection,
    in_words,
    not_accounted,
    public,
    table,
)
from tests.client.conftest import Place
from tests.messages import opened


def listed(of: str) -> set[str]:
    return {field.name for field in OUTGOING if field.of == of}


@pytest.fixture
def context(place: Place, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(app_module, "_HOLDERS", {place.site: place.holder})
    monkeypatch.setattr(app_module, "site_of", lambda *_: place.site)
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def ask(place: Place, context: Context, kind: str = "train", **changes: Any) -> Message:
    message = Message(
        content=request_to_records(place.task(**changes)), dst_node_id=1, message_type=kind
    )
    return app(message, context)


def test_every_field_of_the_messages_is_listed() -> None:
    assert listed("update") == {f.name for f in fields(Update)} | {"kind"}
    assert listed("refusal") == {f.name for f in fields(Refusal)} | {"kind"}
    assert listed("ready") == {f.name for f in fields(Ready)} | {"kind"}
    assert {type_.__name__.lower() for type_ in get_args(Reply)} <= {field.of for field in OUTGOING}
    assert listed("receipt") == {f.name for f in fields(Receipt)}
    pairs = [(field.of, field.name) for field in OUTGOING]
    assert len(pairs) == len(set(pairs))
    assert all(field.why for field in OUTGOING)


def test_people_are_told_of_every_field_in_one_place_with_its_protection() -> None:
    told = {field.part for field in OUTGOING}
    assert told | {SUMS} == set(PARTS), "sums are values of an update, too"
    for field in OUTGOING:
        assert PARTS[field.part].protection is field.protection, field.name


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("unprotected", [True, False])
def test_the_consent_tells_of_all_that_is_not_the_coordinators_own(
    sums: bool, unprotected: bool
) -> None:
    words = in_words(unit="person", sums=sums, unprotected=unprotected)
    whole = "\n".join(words)
    for key, part in PARTS.items():
        if key == SUMS:
            assert ("sums over your text" in whole) is sums
        elif part.protection is not Protection.PUBLIC:
            assert part.what in whole, key
    assert ("EXCEPT in runs without noise" in whole) is unprotected
    assert "Each person's part" in whole
    if not sums:
        assert not re.search(r"\b(count|how many records each class|score)", whole)


def test_the_report_tells_of_all_that_is_outside_the_guarantee() -> None:
    outside = {p.title: p.why for p in PARTS.values() if p.protection is Protection.OUTSIDE}
    assert dict(not_accounted()) == outside
    known = {p.title: p.why for p in PARTS.values() if p.protection is Protection.PUBLIC}
    assert dict(public()).items() >= known.items()
    assert len(outside) == 5


def test_the_table_for_coordinators_and_holders_is_made_from_the_list(root: Path) -> None:
    page = (root / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = page.partition("## What my coordinator can and cannot see\n")[2]
    lines = section.partition("\n## ")[0].strip().splitlines()
    wanted = table()
    start = lines.index(wanted[0])
    assert lines[start : start + len(wanted)] == wanted, "\n".join(wanted)


def test_an_update_is_what_the_list_says_byte_for_byte(place: Place, context: Context) -> None:
    reply = ask(place, context)
    assert not reply.has_error()
    header, values = opened(reply.content)
    assert set(header) == listed("update") - {"values"}
    array = reply.content["message"]["values"]
    told = {n: value for n, value in vars(array).items() if n not in ("data", "_is_dirty")}
    assert told == {"dtype": "uint8", "shape": (len(array.data),), "stype": "confide.raw"}
    schema = load_model(from_flat(place.settings)).schema
    assert len(values) == 4 * schema.trained_size, "the change, and not a byte more"
    receipt = header["receipt"]
    assert set(receipt) == listed("receipt")
    assert [set(step) for step in receipt["steps_run"]] == [listed("steps")]
    assert len(context.state) == 0


def test_a_refusal_is_what_the_list_says(place: Place, context: Context) -> None:
    content = ask(place, context, number=9).content
    header, payload = opened(content)
    assert (set(header), payload) == (listed("refusal"), b"")


def test_a_yes_is_what_the_list_says(place: Place, context: Context) -> None:
    content = ask(place, context, dry=True).content
    header, payload = opened(content)
    assert (set(header), payload) == (listed("ready") - {"card"}, b"")


@pytest.mark.parametrize("number", [1, 9])
def test_what_flower_adds_to_a_reply_is_listed(place: Place, context: Context, number: int) -> None:
    metadata = ask(place, context, number=number).metadata
    assert {name.removeprefix("_") for name in vars(metadata)} == listed("message")


def test_a_query_is_for_the_opening_of_a_sum_alone(place: Place, context: Context) -> None:
    header, payload = opened(ask(place, context, "query").content)
    assert (header["kind"], header["code"], payload) == ("refusal", "wire.malformed", b"")
    assert not place.site.ledger.exists()


@pytest.mark.parametrize("kind", ["evaluate", "query.other", "train.other"])
def test_no_other_question_is_answered(place: Place, context: Context, kind: str) -> None:
    with pytest.raises(ValueError, match="No") as refused:
        ask(place, context, kind)
    assert str(place.data) not in str(refused.value)
    assert not place.site.ledger.exists()


def test_the_length_of_an_update_is_the_schemas_whatever_the_text(
    place: Place, context: Context
) -> None:
    sizes = {len(place.holder.handle(place.task(n)).values) for n in (1, 2)}  # type: ignore[union-attr]
    assert len(sizes) == 1


def test_nothing_of_the_kind_that_others_send_has_a_field() -> None:
    names = {field.name for field in OUTGOING}
    others = ("num", "example", "record", "loss", "accura", "metric", "label", "class", "norm")
    assert [n for n in names for word in others if word in n and n != "num"] == []
    asked = ("weight", "early", "patience", "stop", "metric", "report")
    found = {key for key in known_keys() for word in asked if word in key}
    assert found == {
        "task.metric",  # of the coordinator's own public text
        "round.patience",  # as is this: the public loss decides
        "task.class-weights",  # the coordinator's numbers, or from a noisy sum that is charged
        "round.holder-metric",  # nothing but a noisy sum that is charged
        "train.weight-decay",  # of the adapter, whatever the text
    }
    assert len(NOT_SENT) >= 6


def test_only_the_change_is_called_protected_by_noise() -> None:
    accounted = [f for f in OUTGOING if f.protection is Protection.ACCOUNTED]
    assert [(f.of, f.name) for f in accounted] == [("update", "values")]


def test_only_release_makes_an_update(root: Path) -> None:
    makers = [
        file.name
        for file in (root / "client").rglob("*.py")
        if "Update(" in file.read_text(encoding="utf-8")
    ]
    assert makers == ["release.py"]
