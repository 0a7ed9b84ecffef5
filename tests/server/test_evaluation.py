"""The score on public text against a loop over single records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from confide.client.training.trainer import Trainer
from confide.common.adapter.schema import set_adapter, unflatten
from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText
from confide.common.models.loading import LoadedModel, load_model
from confide.common.plans import plan_of
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import Settings, from_flat
from confide.common.tasks import task_for
from confide.common.text.readers import read_records
from confide.server.evaluation import public_evaluator
from tests import tiny

PUBLIC = 40


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Settings:
    return from_flat(tiny.config(tiny_model, tmp_path, tmp_path))


@pytest.fixture
def loaded(settings: Settings) -> LoadedModel:
    """With some adapter; at the start the head is zero and every label is as likely."""
    loaded = load_model(settings)
    generator = torch.Generator().manual_seed(11)
    values = torch.randn(loaded.schema.size, generator=generator)
    set_adapter(loaded.model, unflatten(values, loaded.schema.shapes))
    return loaded


@torch.no_grad()
def by_hand(loaded: LoadedModel) -> tuple[float, float]:
    """Each record alone through the plain model."""
    loss, right = 0.0, 0
    for row in tiny.rows(PUBLIC, seed=1000):
        encoded = loaded.tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=32)
        logits = loaded.model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).logits.mean(1)[0]
        target = ["negative", "positive"].index(row["label"])
        loss -= float(logits.log_softmax(-1)[target])
        right += int(logits.argmax()) == target
    return loss / PUBLIC, right / PUBLIC


def test_the_score_is_that_of_the_records_one_by_one(
    settings: Settings, loaded: LoadedModel, tiny_federation: Path
) -> None:
    score = public_evaluator(loaded, settings, tiny_federation).score()
    loss, accuracy = by_hand(loaded)
    assert score.examples == PUBLIC
    assert score.loss == pytest.approx(loss, abs=1e-5)
    assert (score.metric, score.value) == ("accuracy", accuracy)
    assert 0 < accuracy < 1


def test_the_adapter_that_the_model_carries_now_is_scored(
    settings: Settings, loaded: LoadedModel, tiny_federation: Path
) -> None:
    evaluator = public_evaluator(loaded, settings, tiny_federation)
    before = evaluator.score()
    zero = torch.zeros(loaded.schema.size)
    set_adapter(loaded.model, unflatten(zero, loaded.schema.shapes))
    after = evaluator.score()
    assert after.loss == pytest.approx(0.693147, abs=1e-5)
    assert before.loss != after.loss


def test_dropout_of_the_adapter_is_off_before_and_after_training(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    settings = from_flat(
        {**tiny.config(tiny_model, tmp_path, tmp_path), "lora.dropout": 0.5, "privacy.trust": "off"}
        | {"privacy.noise-multiplier": "auto"}
    )
    loaded = load_model(settings)
    values = torch.randn(loaded.schema.size, generator=torch.Generator().manual_seed(11))
    evaluator = public_evaluator(loaded, settings, tiny_federation)

    def score() -> float:
        set_adapter(loaded.model, unflatten(values, loaded.schema.shapes))
        return evaluator.score().loss

    first = score()
    assert first == pytest.approx(by_hand(loaded)[0], abs=1e-5)
    trainer = Trainer(loaded)
    trainer.prepare(settings)
    assert score() == first
    records = read_records(tiny_federation / "public.jsonl", text="text", target="label")
    text = EncodedText(
        task_for(settings.task).encode(records, loaded.tokenizer, loaded.max_length), loaded
    )
    trainer.train(values, text, settings, plan_of(settings), SecureGenerator())
    assert score() == first


def test_evaluation_leaves_no_gradient_behind(
    settings: Settings, loaded: LoadedModel, tiny_federation: Path
) -> None:
    for parameter in loaded.model.parameters():
        parameter.grad = None
    public_evaluator(loaded, settings, tiny_federation).score()
    assert all(p.grad is None for p in loaded.model.parameters())


def test_without_public_text_the_file_is_named(
    settings: Settings, loaded: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfideError, match=r"data\.missing-file.*public\.jsonl"):
        public_evaluator(loaded, settings, tmp_path)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "data.empty"),
        ('{"text": "a", "label": "unheard of"}\n', "data.unknown-label"),
        ('{"text": "a"}\n', "data.missing-column"),
    ],
)
def test_public_text_that_cannot_be_scored_is_refused(
    settings: Settings, loaded: LoadedModel, tmp_path: Path, text: str, code: str
) -> None:
    (tmp_path / "public.jsonl").write_text(text)
    with pytest.raises(ConfideError) as caught:
        public_evaluator(loaded, settings, tmp_path)
    assert caught.value.code == code
