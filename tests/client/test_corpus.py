"""The text of a holder: one state of one file, and its identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from confide.client.corpus import Corpus, identity_of
from confide.common.errors import ConfideError
from confide.common.models import LoadedModel, load_model
from confide.common.settings import DataSpec, Settings, from_flat
from tests import tiny

ROWS = 7
KEY = b"the key of a ledger"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "text.jsonl", tiny.rows(ROWS, seed=1))


def prepared(model: Path, scratch: Path, **changes: object) -> tuple[Settings, LoadedModel]:
    settings = from_flat(tiny.config(model, scratch, scratch, **changes))
    return settings, load_model(settings)


def test_the_identity_is_that_of_the_bytes_under_the_key(data: Path) -> None:
    first = identity_of(data, KEY)
    assert first == identity_of(data, KEY)
    assert first != identity_of(data, b"another key")
    assert first != hashlib.sha256(data.read_bytes()).hexdigest()
    content = bytearray(data.read_bytes())
    content[-2] ^= 1
    data.write_bytes(content)
    assert first != identity_of(data, KEY)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_what_cannot_be_read_has_no_identity(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfideError, match=r"data\.missing-file"):
        identity_of(tmp_path / name, KEY)


def test_a_corpus_is_the_file_at_one_moment(data: Path) -> None:
    corpus = Corpus(data, DataSpec(), KEY)
    identity = corpus.identity
    tiny.write_jsonl(data, tiny.rows(ROWS + 1, seed=2))
    assert len(corpus.records) == ROWS
    assert corpus.identity == identity != identity_of(data, KEY)


def test_reading_does_not_write(data: Path) -> None:
    before = data.read_bytes()
    Corpus(data, DataSpec(), KEY)
    assert data.read_bytes() == before
    assert list(data.parent.iterdir()) == [data]


def test_persons_are_read_when_the_column_is_named(data: Path) -> None:
    assert {r.person for r in Corpus(data, DataSpec(), KEY).records} == {None}
    named = Corpus(data, DataSpec(person="person"), KEY).records
    assert [r.person for r in named] == [str(i // 3) for i in range(ROWS)]


def test_the_units_are_records_or_persons_and_grouped_once(data: Path) -> None:
    corpus = Corpus(data, DataSpec(person="person"), KEY)
    assert corpus.units("record") == [[i] for i in range(ROWS)]
    assert corpus.units("person") == [[0, 1, 2], [3, 4, 5], [6]]
    assert corpus.units("person") is corpus.units("person")


def test_a_record_of_nobody_is_no_unit(data: Path) -> None:
    rows = [{**row, "person": ""} for row in tiny.rows(ROWS, seed=1)]
    tiny.write_jsonl(data, rows)
    corpus = Corpus(data, DataSpec(person="person"), KEY)
    with pytest.raises(ConfideError, match=r"data\.missing-person"):
        corpus.units("person")


def test_the_text_is_encoded_once_for_a_model(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    corpus = Corpus(data, DataSpec(), KEY)
    _, loaded = prepared(tiny_model, tmp_path)
    text = corpus.encoded(loaded)
    assert len(text) == ROWS
    assert corpus.encoded(loaded) is text


def test_another_model_or_task_replaces_the_encoded_text(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    corpus = Corpus(data, DataSpec(), KEY)
    _, loaded = prepared(tiny_model, tmp_path)
    _, short = prepared(tiny_model, tmp_path, train__max_length=8)
    first = corpus.encoded(loaded)
    cut = corpus.encoded(short)
    assert cut is not first
    assert max(len(e.ids) for e in cut._examples) == 8 < max(len(e.ids) for e in first._examples)
    _, swapped = prepared(
        tiny_model, tmp_path, task__labels="positive,negative", train__max_length=8
    )
    turned = corpus.encoded(swapped)
    assert [e.target for e in turned._examples] == [1 - e.target for e in cut._examples]
