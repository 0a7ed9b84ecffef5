"""Yardsticks: each is a run of the product on the same text, and lands in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.common.models.loading import load_model
from confide.common.settings import from_flat
from confide.server.evaluation import public_evaluator
from confide.server.report.build import build_report, write_report
from confide.server.report.verify import verify_run
from confide.server.run import run
from confide.simulations import yardsticks
from confide.simulations.inprocess import federation
from confide.simulations.yardsticks import (
    _LORA,
    CENTRAL,
    RECIPE,
    YARDSTICKS,
    fine_tuned,
    measure,
)
from tests import tiny


def test_yardsticks_are_measured_and_stand_in_the_report(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", round__count=1)
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    folder = run(config, federation(files, tmp_path / "ledgers")).path
    said: list[str] = []
    measure(folder, config, said.append)
    rows = {row["name"]: row for row in json.loads((folder / "yardsticks.json").read_text())}
    assert said == [CENTRAL, *(y.name for y in YARDSTICKS)]
    assert set(rows) == {"TF-IDF + logistic regression", *said}
    assert next(iter(rows)) == CENTRAL
    assert rows[CENTRAL]["epsilon"] is None
    assert rows[CENTRAL]["note"] == RECIPE
    # The labels of the tiny text are in its words, so TF-IDF must find nearly all of them.
    assert rows["TF-IDF + logistic regression"]["accuracy"] > 0.9
    assert rows["No privacy"]["epsilon"] is None
    promise = config.get("privacy.epsilon", 8.0)
    for name in ("One holder alone", "Private head alone", "Central, pooled records"):
        assert rows[name]["epsilon"] == pytest.approx(promise, rel=2e-3)
    shown = {row["name"] for row in build_report(folder, prv=False)["utility"]["yardsticks"]}
    assert shown == set(rows)
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("This run") < page.index(CENTRAL) < page.index("TF-IDF")
    assert RECIPE in page
    assert verify_run(folder).agrees


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate at which three epochs of little text teach a model of 16 values something."""
    monkeypatch.setattr(yardsticks, "_RATE", 0.03)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_federation(tmp_path_factory.mktemp("text"), holders=3, records=200)


@pytest.mark.usefixtures("quick")
def test_central_fine_tuning_learns_and_is_the_same_for_a_seed(
    tiny_model: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Issue 19: the yardstick is plain fine-tuning, not our own steps without noise."""
    config = tiny.config(tiny_model, text, tmp_path, lora__rank=2, run__seed=3)
    kept = {k: v for k, v in config.items() if not k.startswith("lora.")}
    settings = from_flat({**kept, **_LORA})
    before = public_evaluator(load_model(settings), settings, text).score()
    state = torch.random.get_rng_state()
    first = fine_tuned(text, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = fine_tuned(text, config)
    after = public_evaluator(load_model(settings), settings, text).score()
    assert first["accuracy"] > 0.8 > before.value
    assert first == again
    assert after == before  # the warm model is as it was
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("quick")
def test_central_fine_tuning_reads_the_text_of_every_holder(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Turned labels at most of the holders turn the answer: nothing is left out."""
    turned = tiny.save_federation(tmp_path / "turned", holders=1, records=200)
    other = {"negative": "positive", "positive": "negative"}
    for number in range(1, 4):
        rows = tiny.rows(200, seed=number)
        told = [{**row, "label": other[row["label"]]} for row in rows]
        tiny.write_jsonl(turned / f"holder-{number:02d}.jsonl", told)
    found = fine_tuned(turned, tiny.config(tiny_model, turned, tmp_path))
    assert found["accuracy"] < 0.3


@pytest.mark.parametrize("task", tiny.TASKS)
def test_central_fine_tuning_is_of_every_task(task: str, tmp_path: Path) -> None:
    """Also where a run weighs classes, or would leave words out: plain fine-tuning does neither."""
    model = tiny.save_task_model(tmp_path / "model", task)
    data = tiny.save_task_federation(tmp_path / "data", task)
    told: dict[str, Any] = {**tiny.TASKS[task]}
    if task == "classification":
        told |= {"task__class_weights": "counted", "task__loss": "focal"}
    config = tiny.config(model, data, tmp_path / "runs", **told)
    found = fine_tuned(data, config)
    settings = from_flat(config)
    assert (
        next(iter(found)) == public_evaluator(load_model(settings), settings, data).score().metric
    )


def test_a_model_that_takes_no_such_adapter_is_told_by_name(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_LORA, "lora.targets", "nothing_of_that_name")  # type: ignore[arg-type]
    row = yardsticks._central(tiny_federation, tiny.config(tiny_model, tiny_federation, tmp_path))
    assert row["name"] == CENTRAL
    assert "accuracy" not in row
    assert row["note"].startswith("not measured: ")
    assert "nothing_of_that_name" in row["note"]
