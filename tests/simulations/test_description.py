"""A task description is a whole configuration, as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.text.readers import read_records
from confide.server.run import run
from confide.simulations.description import TASKS
from confide.simulations.inprocess import federation
from confide.simulations.scenario import load_scenario, prepare, run_config
from tests import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def described(folder: Path, suffix: str = ".json", **changes: Any) -> Path:
    """The description of the issue, with its two files."""
    for name, count in (("train", 20), ("val", 6)):
        rows = tiny.rows(count, seed=count)
        (folder / f"{name}.txt").write_text("\n".join(row["text"] for row in rows))
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)
    content = {"task": "text-generation", "data": {"train": "train.txt", "val": "val.txt"}}
    content |= changes
    path = folder / f"mine{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(content))
        return path
    top = "\n".join(f"{k} = {json.dumps(v)}" for k, v in content.items() if k != "data")
    data = "\n".join(f"{k} = {json.dumps(v)}" for k, v in content["data"].items())  # type: ignore[attr-defined]
    path.write_text(f"{top}\n[data]\n{data}\n")
    return path


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_the_two_files_and_a_task_are_a_configuration(tmp_path: Path, suffix: str) -> None:
    scenario = load_scenario(str(described(tmp_path, suffix)))
    settings = from_flat(run_config(scenario))
    assert (settings.task.kind, settings.data.target) == ("causal", "")
    folder = prepare(scenario)
    shares = [read_records(file, target=None) for file in sorted(folder.glob("holder-*.jsonl"))]
    assert [len(share) for share in shares] == [5, 5, 5, 5]
    whole = {r.text for r in read_records(tmp_path / "train.txt")}
    assert {r.text for share in shares for r in share} == whole
    assert len(read_records(folder / "public.jsonl", target=None)) == 6
    before = (folder / "public.jsonl").stat().st_mtime_ns
    assert (prepare(scenario) / "public.jsonl").stat().st_mtime_ns == before


def test_it_runs_with_a_model_of_its_own(tmp_path: Path) -> None:
    model = tiny.save_task_model(tmp_path / "model", "prompt")
    config = {"train.max-length": 32, "task.target-length": 8, "round.count": 1, "train.lr": 1.0}
    config |= {"privacy.noise-multiplier": 2.0, "privacy.delta": 1e-3, "run.out": str(tmp_path)}
    scenario = load_scenario(str(described(tmp_path, model=str(model), holders=2, config=config)))
    folder = prepare(scenario)
    files = sorted(folder.glob("holder-*.jsonl"))
    done = run(run_config(scenario), federation(files, tmp_path / "ledgers"))
    report = json.loads((done.path / "report.json").read_text())
    assert report["utility"]["metric"] == "perplexity"
    assert report["run"]["holders"] == 2


@pytest.mark.parametrize("task", TASKS)
def test_every_name_of_a_task_gives_settings_that_are_accepted(tmp_path: Path, task: str) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl"}
    settings = from_flat(run_config(load_scenario(str(described(tmp_path, task=task, data=data)))))
    assert settings.task.kind == TASKS[task]["task.kind"]
    if task == "text-classification":
        assert settings.task.label_names == ("negative", "positive")


def test_whole_persons_lie_at_one_holder(tmp_path: Path) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl", "person": "person"}
    scenario = load_scenario(str(described(tmp_path, data=data, holders=3)))
    shares = [
        {r.person for r in read_records(file, target=None, person="person")}
        for file in prepare(scenario).glob("holder-*.jsonl")
    ]
    assert sum(len(share) for share in shares) == len(set.union(*shares)) == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "text-generatoin"}, ("'text-generatoin'", "'text-generation'")),
        ({"data": {"train": "train.txt"}}, ("data.val", ".jsonl")),
        ({"data": {"train": "train.txt", "vall": "val.txt"}}, ("data.vall", "'val'")),
        ({"modle": "x"}, ("'modle'", "'model'")),
        ({"holders": "many"}, ("holders", "whole number")),
        ({"config": {"train.bach": 3}}, ("'train.bach'", "'train.batch'")),
    ],
)
def test_a_slip_is_named(tmp_path: Path, changes: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(ConfideError) as caught:
        load_scenario(str(described(tmp_path, **changes)))
    assert caught.value.code == "scenario.format"
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in says)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = described(tmp_path)
    (tmp_path / "train.txt").unlink()
    with pytest.raises(ConfideError, match=r"data\.missing-file.*train\.txt"):
        prepare(load_scenario(str(path)))
