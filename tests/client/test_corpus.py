"""The text of a holder: one state of one file, what of it can be used, and its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.contract import Contract
from confide.client.text.corpus import Corpus, check_readable, identity_of
from confide.common.errors import ConfideError
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import Settings, from_flat
from confide.common.tasks.classification import Classification
from confide.common.text.readers import Record
from tests import tiny

ROWS = 7
KEY = b"the key of a ledger"
SETTINGS = from_flat({"model.name": "m", "task.labels": "negative,positive"})
BY_PERSON = from_flat(
    {"model.name": "m", "task.labels": "negative,positive", "data.person": "person"}
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "text.jsonl", tiny.rows(ROWS, seed=1))


def corpus_of(data: Path, settings: Settings = SETTINGS, said: Contract | None = None) -> Corpus:
    return Corpus(data, settings, said, KEY)


def prepared(model: Path, scratch: Path, **changes: object) -> tuple[Settings, LoadedModel]:
    settings = from_flat(tiny.config(model, scratch, scratch, **changes))
    return settings, load_model(settings)


def test_the_identity_is_that_of_the_bytes_under_the_key(data: Path) -> None:
    content = data.read_bytes()
    first = identity_of(content, KEY)
    assert first == corpus_of(data).identity
    assert first != identity_of(content, b"another key")
    assert first != hashlib.sha256(content).hexdigest()
    assert first != identity_of(content[:-2] + b"x\n", KEY)
    assert len(identity_of(b"", KEY)) == len(first)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nowhere.jsonl", "data.missing-file"),
        ("folder.jsonl", "data.missing-file"),
        ("text.doc", "data.unknown-suffix"),
    ],
)
def test_what_the_system_says_is_not_there_is_refused(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfideError) as caught:
        check_readable(tmp_path / name)
    assert caught.value.code == code


def test_a_corpus_is_the_file_at_one_moment(data: Path) -> None:
    corpus = corpus_of(data)
    identity = corpus.identity
    assert corpus.is_that_of(data, SETTINGS, None, KEY)
    tiny.write_jsonl(data, tiny.rows(ROWS + 1, seed=2))
    assert len(corpus.records) == ROWS
    assert corpus.identity == identity
    assert not corpus.is_that_of(data, SETTINGS, None, KEY)


def test_reading_does_not_write(data: Path) -> None:
    before = data.read_bytes()
    corpus_of(data)
    assert data.read_bytes() == before
    assert list(data.parent.iterdir()) == [data]


def test_a_file_that_goes_away_after_the_charge_is_an_empty_text(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "nowhere.jsonl")
    assert corpus.records == []
    assert corpus.units("record", []) == []


def test_persons_are_read_when_the_column_is_named(data: Path) -> None:
    assert {r.person for r in corpus_of(data).records if r} == {None}
    named = corpus_of(data, BY_PERSON).records
    assert [r.person for r in named if r] == [str(i // 3) for i in range(ROWS)]


def test_the_units_are_records_or_persons(data: Path) -> None:
    corpus = corpus_of(data, BY_PERSON)
    assert corpus.units("record", corpus.records) == [[i] for i in range(ROWS)]
    assert corpus.units("person", corpus.records) == [[0, 1, 2], [3, 4, 5], [6]]


def test_what_cannot_be_used_is_a_unit_of_nothing_or_missing_from_its_person(data: Path) -> None:
    corpus = corpus_of(data, BY_PERSON)
    usable: list[Any] = list(corpus.records)
    usable[1] = usable[6] = None
    assert corpus.units("record", usable) == [[0], [], [1], [2], [3], [4], []]
    assert corpus.units("person", usable) == [[0, 1], [2, 3, 4], []]


def test_a_record_of_nobody_is_a_unit_of_nothing(data: Path) -> None:
    rows = [{**row, "person": ""} for row in tiny.rows(ROWS, seed=1)]
    corpus = corpus_of(tiny.write_jsonl(data, rows), BY_PERSON)
    assert corpus.units("person", corpus.records) == [[]] * ROWS


def test_a_record_that_is_not_as_agreed_is_none(data: Path) -> None:
    said = Contract(target="label", tasks=("classification",), labels=("negative", "positive"))
    rows = tiny.rows(ROWS, seed=1)
    rows[2]["label"] = "mixed"
    corpus = corpus_of(tiny.write_jsonl(data, rows), said=said)
    assert [place for place, record in enumerate(corpus.records) if record is None] == [2]


def test_the_text_is_encoded_once_for_a_model(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    corpus = corpus_of(data)
    _, loaded = prepared(tiny_model, tmp_path)
    text = corpus.text(loaded)
    assert len(text) == len(corpus.examples(loaded)) == ROWS
    assert corpus.text(loaded) is text


def test_another_model_or_task_replaces_the_encoded_text(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    corpus = corpus_of(data)
    _, loaded = prepared(tiny_model, tmp_path)
    _, short = prepared(tiny_model, tmp_path, train__max_length=8)
    first = corpus.text(loaded)
    cut = corpus.text(short)
    assert cut is not first
    assert max(len(e.ids) for e in cut._examples) == 8 < max(len(e.ids) for e in first._examples)
    _, swapped = prepared(
        tiny_model, tmp_path, task__labels="positive,negative", train__max_length=8
    )
    turned = corpus.text(swapped)
    assert [e.target for e in turned._examples] == [1 - e.target for e in cut._examples]


def test_one_record_that_cannot_be_encoded_takes_no_other_with_it(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Classification.encode

    def failing(self: Any, records: Sequence[Record], *args: Any, **kwargs: Any) -> Any:
        if any("zqbad" in record.text for record in records):
            raise RuntimeError("a panic")
        return encode(self, records, *args, **kwargs)

    monkeypatch.setattr(Classification, "encode", failing)
    _, loaded = prepared(tiny_model, tmp_path)
    whole = corpus_of(data).examples(loaded)
    rows = tiny.rows(ROWS, seed=1)
    rows[4]["text"] += " zqbad"
    rest = corpus_of(tiny.write_jsonl(data, rows)).examples(loaded)
    assert rest == [*whole[:4], None, *whole[5:]]


def test_a_token_that_the_model_does_not_have_is_not_used(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded = prepared(tiny_model, tmp_path)
    size = loaded.model.get_input_embeddings().weight.shape[0]
    encode = Classification.encode

    def beyond(self: Any, records: Sequence[Record], *args: Any, **kwargs: Any) -> Any:
        first, *rest = encode(self, records, *args, **kwargs)
        return [type(first)((*first.ids, size), first.target), *rest]

    monkeypatch.setattr(Classification, "encode", beyond)
    examples = corpus_of(data).examples(loaded)
    assert [place for place, example in enumerate(examples) if example is None] == [0]


def test_json_of_any_depth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    good = json.dumps({"text": "a", "label": "positive"})
    path.write_text("\n".join(["[" * 10_000, good, '{"a":' * 10_000]), encoding="utf-8")
    assert [record is not None for record in corpus_of(path).records] == [False, True, False]
