"""confide from Python: what a researcher types, and what it answers."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import confide
from confide import ConfideError, Run, Settings, as_settings, from_flat, simulate
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.steps import GaussianSteps
from tests import tiny


@pytest.fixture(scope="module")
def settings(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("python")
    return tiny.config(tiny_model, tiny_federation, out, round__count=2)


@pytest.fixture(scope="module")
def run(settings: dict[str, Any]) -> Run:
    heard.clear()
    return simulate(settings, progress=heard.append)


heard: list[dict[str, Any]] = []


def test_every_public_name_is_there_and_loaded_when_it_is_asked_for(root: Path) -> None:
    assert {name: getattr(confide, name) for name in confide.__all__}
    assert set(confide._HOMES) | {"__version__"} == set(confide.__all__) <= set(dir(confide))
    (known,) = [
        node
        for node in ast.parse((root / "confide" / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    named = {n.name: i.module for i in known.body if isinstance(i, ast.ImportFrom) for n in i.names}
    assert named == confide._HOMES, "type checkers see what is imported"
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        confide.simulat  # noqa: B018


def test_importing_confide_imports_nothing_heavy() -> None:
    code = "import sys, confide; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"torch", "transformers", "peft", "opacus", "flwr", "ray", "numpy", "rich"}


def test_a_run_is_read_by_its_parts(run: Run, settings: dict[str, Any]) -> None:
    assert (run.status, run.id) == ("finished", run.path.name)
    assert run.settings.to_flat() == {**from_flat(settings).to_flat(), "run.id": ""}
    assert heard == run.events
    assert [row["round"] for row in run.metrics] == [0, 1, 2]
    assert [row.get("accepted") for row in run.metrics] == [None, 3, 3]
    assert run.metrics[2]["epsilon"] == pytest.approx(run.claim["epsilon"])
    assert run.scores["accuracy"] == pytest.approx(run.metrics[2]["accuracy"], abs=1e-4)
    assert run.report == json.loads((run.path / "report.json").read_text())
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert list(pd.DataFrame(run.metrics)["round"]) == [0, 1, 2]


def test_a_run_predicts_evaluates_verifies_and_is_exported(run: Run, tmp_path: Path) -> None:
    answers = run.predict(["a fine day", "a poor one"])
    assert {answer.answer for answer in answers} <= {"negative", "positive"}
    assert run.evaluate().metrics["accuracy"] == pytest.approx(run.scores["accuracy"], abs=1e-6)
    assert run.verify().agrees
    assert (run.export_merged(tmp_path / "whole") / "model.safetensors").is_file()


def test_a_run_is_repeated_by_its_own_folder_and_its_own_settings(run: Run) -> None:
    for again in (as_settings(run.path), as_settings(run.path / "config.toml"), run.settings):
        assert again == run.settings
    other = simulate(run.path, {"round.count": 1})
    assert other.path != run.path
    assert [row["round"] for row in other.metrics] == [0, 1]


def test_settings_are_one_thing_however_they_are_said(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(settings))
    whole = as_settings(settings, {"train.lr": 0.5})
    assert as_settings(file, ["train.lr=0.5"]) == replace(
        whole, run=replace(whole.run, name="mine")
    )
    assert as_settings(whole) == whole
    assert as_settings(from_flat(settings), {"train.lr": 0.5}) == whole


def test_files_of_ones_own_need_no_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    """Columns and classes are taken from the files, as in a task description."""
    for name, seed in (("train", 1), ("val", 2)):
        rows = [{"body": r["text"], "kind": r["label"]} for r in tiny.rows(24, seed=seed)]
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    own = {k: v for k, v in settings.items() if k not in ("data.path", "task.labels")}
    own |= {f"federation.{name}": str(tmp_path / f"{name}.jsonl") for name in ("train", "val")}
    own |= {"federation.text": "body", "federation.target": "kind", "federation.holders": 2}
    done = simulate(own | {"round.count": 1})
    assert done.settings.task.label_names == ("negative", "positive")
    assert done.report["run"]["holders"] == 2


def test_holders_are_a_number_or_files(
    settings: dict[str, Any], tiny_federation: Path, tmp_path: Path
) -> None:
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    done = simulate(settings, {"round.count": 1}, holders=files[:2])
    assert done.report["run"]["holders"] == 2
    odd = tmp_path / "clinic.csv"
    rows = tiny.rows(12, seed=3)
    odd.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    assert simulate(settings, {"round.count": 1}, holders=[*files[:1], odd]).status == "finished"


@pytest.mark.parametrize(
    ("changes", "options", "code"),
    [
        ({"train.lrr": 1.0}, {}, "settings.unknown-key"),
        ({"train.lr": "much"}, {}, "settings.type"),
        ({"train.lr": -1.0}, {}, "settings.range"),
        ({"round.min-holders": 4}, {}, "run.too-few-holders"),
        ({"round.holders": 9}, {}, "run.too-few-holders"),
        ({"data.path": "nowhere"}, {}, "data.missing-file"),
        ({"data.path": ""}, {}, "data.missing-file"),
        ({"model.name": "nowhere/at-all"}, {}, "model.missing"),
        ({}, {"engine": "flowr"}, "simulation.engine"),
        ({}, {"holders": ["nowhere.jsonl", "nowhere2.jsonl"]}, "data.missing-file"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    options: dict[str, Any],
    code: str,
) -> None:
    """levanter#376's kind: a transport that can never have enough holders waits for nobody."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(ConfideError) as caught:
        simulate(settings, changes, **options)
    assert caught.value.code == code
    assert caught.value.hint
    assert time.monotonic() - began < Settings().round.timeout / 2


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"run\.missing"):
        Run(tmp_path)


def test_a_run_that_ended_early_says_so(settings: dict[str, Any], tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(settings, {"run.out": str(tmp_path)}, progress=stop)
    (folder,) = tmp_path.iterdir()
    ended = Run(folder)
    assert ended.status == "stopped"
    with pytest.raises(ConfideError, match=r"adapter\.missing.*the run is stopped"):
        _ = ended.adapter
    on = simulate(folder, {"run.resume": str(folder)})
    assert (on.path, on.status) == (folder, "finished")
    assert [row["round"] for row in on.metrics] == [0, 1, 2]


def test_epsilon_turns_calibrate_round() -> None:
    how = {"sampling_rate": 0.02, "steps": 500, "delta": 1e-5}
    noise = confide.calibrate(epsilon=2.0, **how)  # type: ignore[arg-type]
    spent = confide.epsilon(noise_multiplier=noise, **how)  # type: ignore[arg-type]
    assert 1.99 < spent <= 2.0
    steps = GaussianSteps(noise_multiplier=noise, sampling_rate=0.02, steps=500)
    assert spent == epsilon_pld([steps], 1e-5)
    assert math.isinf(confide.epsilon(noise_multiplier=0.0, sampling_rate=1.0, steps=1, delta=1e-5))


@pytest.mark.slow
def test_flowers_engine_ends_in_a_run_like_the_other(
    settings: dict[str, Any], tiny_federation: Path
) -> None:
    files = sorted(tiny_federation.glob("holder-*.jsonl"))[:2]
    done = simulate(settings, {"round.count": 1}, holders=files, engine="flower")
    assert (done.status, done.report["run"]["holders"]) == ("finished", 2)


def test_settings_are_what_is_imported() -> None:
    assert Settings is type(from_flat({"model.name": "m", "task.labels": "a,b"}))
