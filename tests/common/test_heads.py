"""A trained head in the base model: kept for the labels that it is for, new for all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor

from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from tests import tiny

AUTO = {
    "mean": t.AutoModelForTokenClassification,
    "model": t.AutoModelForSequenceClassification,
}
TEXTS = ("a day", "the people of the town", "grim and cold")


def trained(folder: Path, labels: Sequence[str], pooling: str = "mean", kind: str = "bert") -> Path:
    """A model whose head was trained for ``labels``."""
    tiny.save_model(folder, kind)
    names = dict(enumerate(labels))
    config = t.AutoConfig.from_pretrained(
        folder, id2label=names, label2id={name: i for i, name in names.items()}
    )
    torch.manual_seed(1)
    model = AUTO[pooling].from_pretrained(folder, config=config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, **changes: Any) -> LoadedModel:
    return load_model(from_flat(tiny.config(folder, folder, folder, **changes)))


def answers(loaded: LoadedModel) -> Tensor:
    """What the model says before it is trained, (B, labels)."""
    records = [Record(text) for text in TEXTS]
    examples = loaded.task.encode(records, loaded.tokenizer, 32, labelled=False)
    text = EncodedText(examples, loaded)
    with torch.no_grad():
        return torch.cat([forward(loaded, loaded.task, text.together([i])) for i in range(3)])


def reference(folder: Path, pooling: str = "mean") -> Tensor:
    """The same by transformers alone, in the order of the folder's labels."""
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model, out = AUTO[pooling].from_pretrained(folder).eval(), []
    for text in TEXTS:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        out.append(logits.mean(0) if pooling == "mean" else logits)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("kind", "pooling"), tiny.poolings("bert", "roberta", "distilbert", "llama")
)
def test_a_head_for_the_same_labels_is_kept_whatever_their_order(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    """peft#577: it was zeroed without a word."""
    folder = trained(tmp_path, ["positive", "negative"], pooling, kind)
    loaded = load(folder, task__pooling=pooling)
    expected = reference(folder, pooling)[:, [1, 0]]
    assert expected.abs().min() > 0
    assert torch.allclose(answers(loaded), expected, atol=1e-5)
    assert "own for these labels" in loaded.head
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("labels", [["POSITIVE", "NEGATIVE"], ["Negative ", "positive"]])
def test_case_and_blanks_do_not_make_another_label(labels: list[str], tmp_path: Path) -> None:
    folder = trained(tmp_path, labels)
    order = [0, 1] if labels[0].lower().startswith("neg") else [1, 0]
    assert torch.allclose(answers(load(folder)), reference(folder)[:, order], atol=1e-5)


def test_labels_that_differ_by_case_alone_are_not_taken_for_each_other(tmp_path: Path) -> None:
    loaded = load(trained(tmp_path, ["US", "us"]), task__labels="Us,other")
    assert not answers(loaded).any()


def test_a_label_that_the_head_does_not_know_starts_at_zero(tmp_path: Path) -> None:
    folder = trained(tmp_path, ["negative", "neutral", "positive"])
    loaded = load(folder, task__labels="positive,mixed,negative")
    found, expected = answers(loaded), reference(folder)
    assert torch.allclose(found[:, [0, 2]], expected[:, [2, 0]], atol=1e-5)
    assert not found[:, 1].any()
    assert "at zero, for mixed" in loaded.head
    assert dict(loaded.schema.shapes)["base_model.model.classifier.weight"] == (3, 16)


@pytest.mark.parametrize(
    ("labels", "pooling", "words"),
    [
        (["LABEL_0", "LABEL_1"], "mean", "own is for LABEL_0, LABEL_1"),
        (["sports", "politics", "art"], "mean", "own is for sports, politics, art"),
        (["positive", "negative"], "model", "task.pooling = 'model'"),
    ],
)
def test_a_head_for_something_else_is_new_and_says_why(
    labels: list[str], pooling: str, words: str, tmp_path: Path
) -> None:
    loaded = load(trained(tmp_path, labels, pooling))  # which pools by the mean
    assert not answers(loaded).any()
    assert words in loaded.head
    assert "starts at zero" in loaded.head


def test_a_head_of_which_a_layer_is_missing_is_new(tmp_path: Path) -> None:
    folder = trained(tmp_path, ["positive", "negative"], "model", "distilbert")
    weights = load_file(folder / "model.safetensors")
    kept = {n: w for n, w in weights.items() if not n.startswith("pre_classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load(folder, task__pooling="model")
    assert not answers(loaded).any()
    assert "missing" in loaded.head


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_head_of_a_regression_is_kept(pooling: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, ["value"], pooling)
    loaded = load(folder, task__kind="regression", task__labels="", task__pooling=pooling)
    assert torch.allclose(answers(loaded), reference(folder, pooling), atol=1e-5)
    assert "own" in loaded.head


def test_a_base_model_without_a_head_gets_a_new_one(tiny_model: Path) -> None:
    loaded = load(tiny_model)
    assert not answers(loaded).any()
    assert loaded.head == "The head is new, and starts at zero."


@pytest.mark.parametrize(("kind", "saved"), [("distilbert", "pre_classifier"), ("bert", "")])
def test_new_layers_beside_the_backbone_are_trained_and_travel(
    kind: str, saved: str, tmp_path: Path
) -> None:
    folder = tiny.save_model(tmp_path, kind)
    names = {n.split(".")[2] for n in load(folder, task__pooling="model").schema.trained}
    assert names - {kind} == {"classifier", *([saved] if saved else [])}
