"""Using a run's adapter: the same numbers as plain PEFT gives, and faults that are named."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, AutoTokenizer

from confide.common.adapter.schema import save_adapter, set_adapter, unflatten
from confide.common.errors import ConfideError
from confide.common.models.loading import load_model
from confide.common.settings import from_flat
from confide.server.predict import evaluate_run, predict
from confide.server.run_folder import RunFolder
from tests import tiny

TEXTS = ["the day was lovely and bright", "grim", "a street in town " * 30]
LABELS = ("negative", "positive")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A run folder with a random adapter; the model in memory carries another one."""
    settings = from_flat(tiny.config(tiny_model, tmp_path, tmp_path))
    run = RunFolder.create(str(tmp_path), "predict")
    run.write_config(settings.to_flat())
    loaded = load_model(settings)
    values = 0.3 * torch.randn(loaded.schema.size, generator=torch.Generator().manual_seed(4))
    set_adapter(loaded.model, unflatten(values, loaded.schema.shapes))
    save_adapter(loaded.model, run.path / "adapter", settings.model.name)
    set_adapter(loaded.model, unflatten(0 * values, loaded.schema.shapes))
    return run.path


@torch.no_grad()
def by_peft(folder: Path, model: Path) -> list[list[float]]:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForTokenClassification.from_pretrained(str(model), num_labels=2)
        loaded = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    out = []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        logits = loaded(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).logits
        out.append(logits.mean(1)[0].softmax(-1).tolist())
    return out


def test_predictions_are_those_of_plain_peft(folder: Path, tiny_model: Path) -> None:
    found = predict(folder, TEXTS)
    for one, expected in zip(found, by_peft(folder, tiny_model), strict=True):
        assert tuple(one.probabilities) == LABELS
        assert list(one.probabilities.values()) == pytest.approx(expected, abs=1e-6)
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.answer == LABELS[expected.index(max(expected))]
    assert len({round(one.probabilities["positive"], 4) for one in found}) > 1


def test_texts_do_not_influence_one_another(folder: Path) -> None:
    together, alone = predict(folder, TEXTS)[1], predict(folder, [TEXTS[1]])[0]
    assert together.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_no_text_no_prediction(folder: Path) -> None:
    assert predict(folder, []) == []


@pytest.mark.parametrize("blank", ["", "  \n\t"])
def test_a_blank_text_is_named_by_its_number(folder: Path, blank: str) -> None:
    with pytest.raises(ConfideError, match=r"data\.empty.*Text 2"):
        predict(folder, ["fine", blank])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"run\.missing"):
        predict(tmp_path, TEXTS)


def test_a_run_without_adapter_is_named(folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfideError, match=r"adapter\.missing"):
        predict(folder, TEXTS)


def test_a_file_of_other_columns_is_scored_the_same(folder: Path, tmp_path: Path) -> None:
    rows = tiny.rows(20, seed=2)
    same = evaluate_run(folder, tiny.write_jsonl(tmp_path / "a.jsonl", rows))
    other = [{"review": row["text"], "stars": row["label"]} for row in rows]
    file = tiny.write_jsonl(tmp_path / "b.jsonl", other)
    assert evaluate_run(folder, file, text="review", target="stars") == same
    with pytest.raises(ConfideError, match=r"data\.missing-column.*review, stars.*--target"):
        evaluate_run(folder, file)
    with pytest.raises(ConfideError, match=r"data\.missing-file"):
        evaluate_run(folder, text="review")


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("Jos\u00e9", "Jose\u0301"),
        ("Jose\u0301", "Jos\u00e9"),
        ("1", 1.0),
        ("1.0", 1),
        ("\U0001f600",) * 2,
    ],
)
def test_a_label_is_the_same_in_every_form(
    tiny_model: Path, tmp_path: Path, declared: str, written: object
) -> None:
    """khmer-ocr#9, yoetz#208: equal where Unicode says so, and where a number is."""
    settings = from_flat(tiny.config(tiny_model, tmp_path, tmp_path, task__labels=f"0,{declared}"))
    run = RunFolder.create(str(tmp_path), "form")
    run.write_config(settings.to_flat())
    save_adapter(load_model(settings).model, run.path / "adapter", settings.model.name)
    rows = [{"text": "a lovely day", "label": label} for label in (written, 0)]
    assert evaluate_run(run.path, tiny.write_jsonl(tmp_path / "a.jsonl", rows)).examples == 2
    (told,) = predict(run.path, ["a day"])
    assert told.probabilities is not None
    assert len(told.probabilities) == 2
