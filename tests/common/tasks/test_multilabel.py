"""Multi-label classification: a set of labels of each record, one loss for each example."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from confide.client.guard.contract import Contract, check_contract
from confide.client.text.check_data import check_data, misfits, propose_contract
from confide.client.training.sums import shares_of_scores
from confide.common.errors import ConfideError
from confide.common.models.loading import load_model
from confide.common.plans import Sum
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import TaskSpec, from_flat
from confide.common.tasks import Example, task_for
from confide.common.tasks.multilabel import MultiLabel
from confide.common.text.readers import Record, read_records
from tests import tiny

SPEC = TaskSpec(kind="multilabel", labels="spam,abuse,rude")
CONTRACT = Contract(target="label", tasks=("multilabel",), labels=("spam", "abuse", "rude"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def encode(tokenizer: Any, *cells: str | None) -> list[Example]:
    return task_for(SPEC).encode([Record("a day", cell) for cell in cells], tokenizer, 8)


# what a record's labels are


@pytest.mark.parametrize(
    ("cell", "target"),
    [
        ("rude", (0, 0, 1)),
        ("rude,spam", (1, 0, 1)),
        (" spam , rude ", (1, 0, 1)),
        ("spam,spam", (1, 0, 0)),
        ('["abuse", "spam"]', (1, 1, 0)),
        ("[]", (0, 0, 0)),
    ],
)
def test_a_cell_is_a_set_of_labels(tokenizer: Any, cell: str, target: tuple[int, ...]) -> None:
    (example,) = encode(tokenizer, cell)
    assert example.target == target
    assert MultiLabel.fits(cell, CONTRACT)


@pytest.mark.parametrize(
    "cell",
    [
        None, "", "other", "Spam", "spam,other", "spam,", ",", "[spam]", '["spam,abuse"]',
        '[["spam"]]', "[1]", '{"spam": 1}', "[" * 5000,
    ],
)  # fmt: skip
def test_whatever_else_is_named_by_its_place_alone(tokenizer: Any, cell: str | None) -> None:
    with pytest.raises(ConfideError) as caught:
        encode(tokenizer, "spam", cell)
    assert caught.value.code == "data.unknown-label"
    assert "record 2" in caught.value.message
    assert not MultiLabel.fits(cell, CONTRACT)


def test_lists_and_cells_say_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": "one", "label": ["spam", "rude"]}, {"text": "two", "label": []}]
    files = [tiny.write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"]
    pq.write_table(pa.Table.from_pylist(rows), files[1])
    files.append(tmp_path / "a.csv")
    files[2].write_text('text,label\none,"spam,rude"\ntwo,[]\n', encoding="utf-8")
    for file in files:
        records = read_records(file, lists=True)
        assert [MultiLabel.labels_in(r.target or "") for r in records] == [("spam", "rude"), ()]
        assert misfits(file, CONTRACT) == [], file


def test_labels_that_are_numbers_are_found_as_numbers(tokenizer: Any) -> None:
    """khmer-ocr#9, of several: 1.0 in a list is the label 1."""
    task = task_for(TaskSpec(kind="multilabel", labels="1,2"))
    (example,) = task.encode([Record("a", '["1.0", "2"]')], tokenizer, 8)
    assert example.target == (1, 1)


# the loss


def test_each_loss_is_the_mean_binary_cross_entropy_of_its_own_labels() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-5.0, 1.0, 300.0]])
    targets = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    losses = task_for(SPEC).losses(logits, targets)

    def by_hand(row: list[float], own: list[int]) -> float:
        pairs = zip(row, own, strict=True)
        each = [max(x, 0) - x * t + math.log1p(math.exp(-abs(x))) for x, t in pairs]
        return math.fsum(each) / len(each)

    expected = list(map(by_hand, logits.tolist(), targets.tolist()))
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)
    for row in range(3):
        alone = task_for(SPEC).losses(logits[row : row + 1], targets[row : row + 1])
        assert torch.equal(alone[0], losses[row]), "nothing is shared with the others of a batch"
    half = task_for(SPEC).losses(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_weights_are_of_an_examples_own_labels() -> None:
    task = task_for(TaskSpec(kind="multilabel", labels="a,b", class_weights="1,3"))
    logits, targets = torch.tensor([[1.0, -1.0]]), torch.tensor([[0, 1]])
    one = math.log1p(math.exp(1.0))
    assert task.losses(logits, targets).tolist() == pytest.approx([(1 + 3) * one / 2])


def test_a_label_is_given_above_one_half() -> None:
    task, logits = task_for(SPEC), torch.tensor([[2.0, 0.0, -1.0], [-1.0, -1.0, -1.0]])
    assert task.answers(logits) == [(1, 0, 0), (0, 0, 0)]
    first, second = task.tell(logits)
    assert (first.answer, second.answer) == (("spam",), ())
    assert first.probabilities["spam"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert first.probabilities["abuse"] == 0.5
    assert MultiLabel.line("x", first) == "spam (spam 0.88, abuse 0.50, rude 0.27)  x"
    assert MultiLabel.line("x", second).startswith("none (")
    assert json.loads(json.dumps(MultiLabel.told("x", first)))["labels"] == ["spam"]
    assert task.references(torch.tensor([[1, 0, 1]])) == [(1, 0, 1)]


# settings, contract, sums


def flat(**changes: Any) -> Any:
    return from_flat(tiny.config(Path("m"), Path("d"), Path("o"), **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task__labels": ""}, "at least one name"),
        ({"task__labels": "a,a"}, "different"),
        ({"task__labels": "[a,b"}, "bracket"),
        ({"task__class_weights": "counted"}, "counted by a noisy sum"),
        ({"task__class_weights": "1"}, "2 numbers"),
        ({"task__class_rates": "1,1"}, "class-rates"),
        ({"task__loss": "focal"}, "focal"),
        ({"data__target": ""}, "data.target"),
        ({"round__holder_metric": "perplexity"}, "accuracy"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfideError) as caught:
        flat(**{"task__kind": "multilabel", "task__labels": "a,b", **changes})
    assert caught.value.code == "settings.combination"
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_a_metric_of_single_classes_is_refused() -> None:
    with pytest.raises(ConfideError, match=r"settings\.combination.*micro-f1"):
        task_for(TaskSpec(kind="multilabel", labels="a,b", metric="mcc"))


def test_one_label_is_enough() -> None:
    assert flat(task__kind="multilabel", task__labels="spam").task.label_names == ("spam",)
    check_contract(Contract(target="label", tasks=("multilabel",), labels=("spam",)))
    with pytest.raises(ConfideError, match="at least two"):
        check_contract(Contract(target="label", tasks=("classification",), labels=("spam",)))


def test_a_request_lists_every_label_of_the_text() -> None:
    CONTRACT.check(flat(task__kind="multilabel", task__labels="rude,abuse,spam,more"))
    with pytest.raises(ConfideError) as caught:
        CONTRACT.check(flat(task__kind="multilabel", task__labels="rude,abuse"))
    assert caught.value.code == "contract.labels"


def test_a_file_of_lists_proposes_the_contract_and_is_counted(tmp_path: Path) -> None:
    rows = [{"text": f"the day {i}", "label": ["spam", "rude"] if i % 2 else []} for i in range(30)]
    file = tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    said = propose_contract(file, label="label")
    assert (said.tasks, said.labels) == (("multilabel",), ("rude", "spam"))
    check_contract(said)
    tiny.write_jsonl(file, [*rows, {"text": "a town", "label": ["other"]}])
    found = check_data(file, contract=said)
    assert found.labels == (("rude", 15), ("spam", 15))
    assert (found.records, found.unfit) == (30, 1), "told on the holder's own screen alone"


def test_the_sum_over_records_says_where_every_label_is_right(tmp_path: Path) -> None:
    """One share a record, so that it moves the sum by at most 1."""
    model = tiny.save_model(tmp_path / "model")
    settings = flat(model__name=str(model), **tiny.TASKS["multilabel"])
    loaded = load_model(settings)
    records = [Record("the day", "[]"), Record("a town", "town"), Record("a", "bright,town,grim")]
    examples = [*loaded.task.encode(records, loaded.tokenizer, loaded.max_length), None]
    adapter = torch.cat([loaded.initial[name].flatten() for name, _ in loaded.schema.shapes])
    found = shares_of_scores(loaded, adapter, examples, Sum.ACCURACY, SecureGenerator())
    # A new head gives each label a chance of one half, so none of them.
    told = [None if one is None else one.tolist() for one in found]
    assert told == [[1, 0], [0, 1], [0, 1], None]


def test_yardsticks_are_right_by_hand() -> None:
    train = [Record("lovely day", "spam"), Record("lovely town", "spam,rude"), Record("grim", "[]")]
    train *= 5
    found = task_for(SPEC).yardsticks(train, train[:3])
    right = [(1, 0, 0), (1, 0, 1), (0, 0, 0)]
    assert found["Majority of each label"] == ([(1, 0, 0)] * 3, right)
    answers, told = found["TF-IDF + logistic regressions"]
    assert told == right
    assert [row[0] for row in answers] == [1, 1, 0]
    assert np.shape(answers) == (3, 3)
