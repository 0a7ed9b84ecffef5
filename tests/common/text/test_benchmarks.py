"""GLUE and SuperGLUE in small folders of the Hub's format, against a table written by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest

from confide.common.errors import ConfideError
from confide.common.metrics import METRICS
from confide.common.text.benchmarks import BENCHMARKS, load_benchmark, load_items, score, spec
from confide.common.text.readers import Record

HUB = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


@dataclass(frozen=True)
class Expected:
    """One benchmark: labels in the Hub's order, a row as the Hub has it, and what it becomes."""

    labels: str
    metrics: str
    row: dict[str, Any]
    text: str
    target: str
    prompt: str
    kind: str = "classification"
    splits: str = "train validation test"
    person: str = "1"
    answers: tuple[str, ...] = field(default=())


TABLE = {
    "glue/cola": Expected(
        "unacceptable acceptable", "mcc",
        {"sentence": "They drank the pub.", "label": 0, "idx": 7},
        "They drank the pub.", "unacceptable", "cola sentence: They drank the pub.",
    ),
    "glue/sst2": Expected(
        "negative positive", "accuracy",
        {"sentence": "a joy {to} watch", "label": 1, "idx": 0},
        "a joy {to} watch", "positive", "sst2 sentence: a joy {to} watch",
    ),
    "glue/mrpc": Expected(
        "not_equivalent equivalent", "f1 accuracy",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "sentence1: A. sentence2: B.", "equivalent", "mrpc sentence1: A. sentence2: B.",
    ),
    "glue/stsb": Expected(
        "", "pearson spearman",
        {"sentence1": "A.", "sentence2": "B.", "label": 3.8, "idx": 0},
        "sentence1: A. sentence2: B.", "3.8", "stsb sentence1: A. sentence2: B.",
        kind="regression",
    ),
    "glue/qqp": Expected(
        "not_duplicate duplicate", "f1 accuracy",
        {"question1": "Why?", "question2": "How so?", "label": 1, "idx": 0},
        "question1: Why? question2: How so?", "duplicate",
        "qqp question1: Why? question2: How so?",
    ),
    "glue/mnli": Expected(
        "entailment neutral contradiction", "accuracy",
        {"premise": "P.", "hypothesis": "H.", "label": 2, "idx": 0},
        "hypothesis: H. premise: P.", "contradiction", "mnli hypothesis: H. premise: P.",
        splits="train validation_matched validation_mismatched test_matched test_mismatched",
    ),
    "glue/qnli": Expected(
        "entailment not_entailment", "accuracy",
        {"question": "Who?", "sentence": "S.", "label": 0, "idx": 0},
        "question: Who? sentence: S.", "entailment", "qnli question: Who? sentence: S.",
    ),
    "glue/rte": Expected(
        "entailment not_entailment", "accuracy",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "sentence1: A. sentence2: B.", "not_entailment", "rte sentence1: A. sentence2: B.",
    ),
    "glue/wnli": Expected(
        "not_entailment entailment", "accuracy",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "sentence1: A. sentence2: B.", "entailment", "wnli sentence1: A. sentence2: B.",
    ),
    "superglue/boolq": Expected(
        "False True", "accuracy",
        {"question": "is it", "passage": "It is.", "idx": 0, "label": 1},
        "passage: It is. question: is it", "True", "boolq passage: It is. question: is it",
    ),
    "superglue/cb": Expected(
        "entailment contradiction neutral", "macro-f1 accuracy",
        {"premise": "P.", "hypothesis": "H.", "idx": 0, "label": 1},
        "hypothesis: H. premise: P.", "contradiction", "cb hypothesis: H. premise: P.",
    ),
    "superglue/copa": Expected(
        "choice1 choice2", "accuracy",
        {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect",
         "idx": 0, "label": 0},
        "choice1: Wet. choice2: Dry. premise: It rained. question: effect", "choice1",
        "copa choice1: Wet. choice2: Dry. premise: It rained. question: effect",
    ),
    "superglue/multirc": Expected(
        "False True", "f1 exact-groups",
        {"paragraph": "<b>Sent 1: </b>Ann ate.<br><b>Sent 2: </b>Bob slept.<br>",
         "question": "Who ate?", "answer": "Ann",
         "idx": {"paragraph": 4, "question": 2, "answer": 9}, "label": 1},
        "question: Who ate? answer: Ann paragraph: Ann ate. Bob slept.", "True",
        "multirc question: Who ate? answer: Ann paragraph: Ann ate. Bob slept.", person="4",
    ),
    "superglue/record": Expected(
        "", "token-f1 exact-match",
        {"passage": "Ann met Bob.\n@highlight\nThey talked\n@highlight\nAnn left",
         "query": "@placeholder left first.", "entities": ["Ann", "Bob", "Ann"],
         "entity_spans": {"text": ["Ann"], "start": [0], "end": [3]},
         "answers": ["Ann", "Annie", "Ann"], "idx": {"passage": 5, "query": 11}},
        "query: @placeholder left first. entities: Ann, Bob passage: Ann met Bob. They talked."
        " Ann left", "Ann",
        "record query: @placeholder left first. entities: Ann, Bob passage: Ann met Bob."
        " They talked. Ann left", kind="seq2seq", person="5", answers=("Ann", "Annie"),
    ),
    "superglue/rte": Expected(
        "entailment not_entailment", "accuracy",
        {"premise": "P.", "hypothesis": "H.", "idx": 0, "label": 0},
        "hypothesis: H. premise: P.", "entailment", "rte hypothesis: H. premise: P.",
    ),
    "superglue/wic": Expected(
        "False True", "accuracy",
        {"word": "bank", "sentence1": "A bank.", "sentence2": "Banks.", "start1": 2, "start2": 0,
         "end1": 6, "end2": 5, "idx": 0, "label": 0},
        "sentence1: A bank. sentence2: Banks. word: bank", "False",
        "wic sentence1: A bank. sentence2: Banks. word: bank",
    ),
    "superglue/wsc": Expected(
        "False True", "accuracy",
        {"text": "The  big dog bit Sam, so he ran.", "span1_index": 0, "span1_text": "The big dog",
         "span2_index": 4, "span2_text": "Sam", "idx": 0, "label": 0},
        "*The big dog* bit #Sam#, so he ran.", "False",
        "wsc text: *The big dog* bit #Sam#, so he ran.",
    ),
}  # fmt: skip
NAMES = list(TABLE)


def write(folder: Path, name: str, split: str, rows: list[dict[str, Any]], suffix: str) -> Path:
    """The rows as the Hub has them: Parquet with its features, or one JSON object a line."""
    labels = TABLE[name].labels.split()
    place = folder / name.split("/")[1]
    place.mkdir(parents=True, exist_ok=True)
    if suffix == "jsonl":
        file = place / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file
    table = datasets.Dataset.from_list(rows)
    if labels:
        table = table.cast_column("label", datasets.ClassLabel(names=labels))
    elif "label" in rows[0]:
        table = table.cast_column("label", datasets.Value("float32"))
    file = place / f"{split}-00000-of-00001.parquet"
    table.to_parquet(str(file))
    return file


def refused(code: str, *arguments: Any) -> ConfideError:
    with pytest.raises(ConfideError) as caught:
        load_benchmark(*arguments)
    assert caught.value.code == code
    assert caught.value.hint
    return caught.value


def test_all_nine_and_all_eight_are_there() -> None:
    assert sorted(BENCHMARKS) == sorted(TABLE)
    assert [name.split("/")[0] for name in NAMES].count("glue") == 9
    assert [name.split("/")[0] for name in NAMES].count("superglue") == 8


@pytest.mark.parametrize("name", NAMES)
def test_the_mapping_is_the_tables(name: str) -> None:
    expected, found = TABLE[name], spec(name)
    assert found.labels == tuple(expected.labels.split())
    assert found.metrics == tuple(expected.metrics.split())
    assert found.splits == tuple(expected.splits.split())
    assert found.kind == expected.kind
    assert found.hub == HUB[name.split("/")[0]]
    assert set(found.metrics) <= {*METRICS, "exact-groups"}
    assert found.template.replace("{text}", expected.text) == expected.prompt


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_becomes_a_record(name: str, suffix: str, tmp_path: Path) -> None:
    expected = TABLE[name]
    for split in expected.splits.split():
        write(tmp_path, name, split, [expected.row], suffix)
        (item,) = load_items(name, split, tmp_path)
        assert item.record == Record(expected.text, expected.target, expected.person)
        assert item.answers == (expected.answers or (expected.target,))


@pytest.mark.parametrize("name", NAMES)
def test_a_test_split_has_no_targets(name: str, tmp_path: Path) -> None:
    expected = TABLE[name]
    hidden = {"answers": []} if "answers" in expected.row else {"label": -1}
    split = expected.splits.split()[-1]
    write(tmp_path, name, split, [{**expected.row, **hidden}], "jsonl")
    (item,) = load_items(name, split, tmp_path)
    assert (item.record.target, item.answers) == (None, ())
    with pytest.raises(ConfideError) as caught:
        score(name, [item], ["anything"])
    assert caught.value.code == "benchmark.value"


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_best_and_wrong_ones_do_not(name: str, tmp_path: Path) -> None:
    expected = TABLE[name]
    rows = [expected.row, expected.row]
    if expected.labels:
        rows = [{**expected.row, "label": number} for number in range(2)]
    elif expected.kind == "regression":
        rows = [{**expected.row, "label": value} for value in (0.5, 3.0)]
    write(tmp_path, name, "train", rows, "jsonl")
    items = load_items(name, "train", tmp_path)
    right: list[Any] = [item.answers[-1] for item in items]
    if expected.kind == "regression":
        right = [float(one) for one in right]
    assert score(name, items, right) == pytest.approx(dict.fromkeys(spec(name).metrics, 1.0))
    wrong = score(name, items, right[::-1] if expected.kind != "seq2seq" else ["x", "y"])
    assert all(value <= 0.0 for value in wrong.values())


def test_words_that_are_no_label_are_wrong_answers(tmp_path: Path) -> None:
    rows = [{**TABLE["superglue/cb"].row, "label": number} for number in (0, 1, 2, 2)]
    write(tmp_path, "superglue/cb", "train", rows, "jsonl")
    items = load_items("cb", "train", tmp_path)
    answers = ["entailment", "contradiction", "neutral", "neutr"]
    expected = {"accuracy": 0.75, "macro-f1": (1 + 1 + 2 / 3) / 3}
    assert score("cb", items, answers) == pytest.approx(expected)


def test_written_answers_of_a_regression_are_read_as_numbers(tmp_path: Path) -> None:
    rows = [{**TABLE["glue/stsb"].row, "label": number} for number in (3.8, 1.0, 5.0, 0.0)]
    write(tmp_path, "glue/stsb", "train", rows, "jsonl")
    items = load_items("stsb", "train", tmp_path)
    written = score("stsb", items, ["3.8", " 1.0", "5", "0.0"])
    assert written == pytest.approx({"pearson": 1.0, "spearman": 1.0})
    unread = score("stsb", items, ["3.8", "nan", "a lot", "0.0"])
    assert unread == score("stsb", items, [3.8, -1.0, -1.0, 0.0])


def test_a_question_counts_once_by_all_of_its_answers(tmp_path: Path) -> None:
    row = TABLE["superglue/multirc"].row
    rows = [
        {**row, "idx": {"paragraph": p, "question": q, "answer": a}, "label": 1}
        for p, q, a in [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 1, 3)]
    ]
    write(tmp_path, "superglue/multirc", "train", rows, "jsonl")
    items = load_items("multirc", "train", tmp_path)
    assert [item.record.person for item in items] == ["0", "0", "0", "1"]
    found = score("multirc", items, ["True", "False", "True", "True"])
    assert found == pytest.approx({"f1": 2 * 3 / (2 * 3 + 1), "exact-groups": 2 / 3})


def test_answers_of_record_may_be_any_of_the_right_ones(tmp_path: Path) -> None:
    write(tmp_path, "superglue/record", "validation", [TABLE["superglue/record"].row], "parquet")
    items = load_items("record", "validation", tmp_path)
    assert score("record", items, ["annie."]) == {"token-f1": 1.0, "exact-match": 1.0}
    assert score("record", items, ["Ann Smith"])["token-f1"] == pytest.approx(2 / 3)


def test_a_name_alone_will_do_where_one_suite_has_it(tmp_path: Path) -> None:
    assert spec("sst2") is spec("glue/sst2")
    assert spec("boolq") is spec("superglue/boolq")
    with pytest.raises(ConfideError, match="both suites") as caught:
        spec("rte")
    assert "glue/rte or superglue/rte" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "near"), [("sst-2", "'sst2'"), ("MNLI", "glue/mnli"), ("superglue/boolQ", "boolq'")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfideError) as caught:
        spec(name)
    assert caught.value.code == "benchmark.unknown"
    assert near in caught.value.hint


def test_an_unknown_split_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "'validation_m" in refused("benchmark.split", "mnli", "validation", tmp_path).hint
    assert "'validation'" in refused("benchmark.split", "sst2", "validate", tmp_path).hint


def test_a_folder_without_the_split_is_refused(tmp_path: Path) -> None:
    assert "sst2/train-*.parquet" in refused("benchmark.missing", "sst2", "train", tmp_path).message
    file = write(tmp_path, "glue/sst2", "train", [TABLE["glue/sst2"].row], "parquet")
    refused("benchmark.missing", "sst2", "test", tmp_path)
    file.write_bytes(b"no table")
    refused("benchmark.missing", "sst2", "train", tmp_path)


def test_a_missing_column_is_refused_by_its_name(tmp_path: Path) -> None:
    row = {k: v for k, v in TABLE["glue/mrpc"].row.items() if k != "sentence2"}
    write(tmp_path, "glue/mrpc", "train", [row], "jsonl")
    assert "'sentence2'" in refused("benchmark.columns", "mrpc", "train", tmp_path).message
    row = {k: v for k, v in TABLE["superglue/wsc"].row.items() if k != "label"}
    write(tmp_path, "superglue/wsc", "train", [row], "jsonl")
    assert "'label'" in refused("benchmark.columns", "wsc", "train", tmp_path).message


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([TABLE["glue/sst2"].row])
    turned = table.cast_column("label", datasets.ClassLabel(names=["positive", "negative"]))
    (tmp_path / "sst2").mkdir()
    turned.to_parquet(str(tmp_path / "sst2" / "train-00000-of-00001.parquet"))
    error = refused("benchmark.labels", "sst2", "train", tmp_path)
    assert "positive, negative, not negative, positive" in error.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("glue/sst2", {"label": 2}),
        ("glue/sst2", {"label": "good"}),
        ("glue/sst2", {"sentence": None}),
        ("glue/stsb", {"label": "three"}),
        ("superglue/wsc", {"span1_index": 7}),
        ("superglue/wsc", {"span2_index": -2}),
        ("superglue/record", {"answers": "Ann"}),
        ("superglue/record", {"entities": None}),
        ("superglue/multirc", {"paragraph": None}),
    ],
)
def test_a_row_that_is_not_the_hubs_is_refused(
    name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, name, "train", [{**TABLE[name].row, **change}], "jsonl")
    assert "row 1" in refused("benchmark.value", name, "train", tmp_path).message


def test_without_a_folder_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: str, **options: str) -> datasets.Dataset:
        asked.append((*arguments, options["split"]))
        return datasets.Dataset.from_list([TABLE["superglue/cb"].row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (record,) = load_benchmark("cb", "validation")
    assert asked == [("aps/super_glue", "cb", "validation")]
    assert record.target == "contradiction"


def test_a_hub_out_of_reach_is_an_error_that_names_the_folders_form() -> None:
    error = refused("benchmark.missing", "glue/rte", "train")
    assert "nyu-mll/glue" in error.message
    assert "rte/train-*.parquet" in error.hint
