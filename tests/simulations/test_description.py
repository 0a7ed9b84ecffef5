"""A task description is a whole configuration, as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.tasks import TASKS as KINDS
from confide.common.text.readers import read_records
from confide.server.run import run
from confide.simulations.description import TASKS, task_of
from confide.simulations.inprocess import federation
from confide.simulations.scenario import load_scenario, prepare, run_config
from confide.simulations.tune import Outcome, Search, Trial
from confide.simulations.tune_cli import best_scenario
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
    without = {"causal", "masked", "spans"}
    assert settings.data.target == ("" if settings.task.kind in without else "label")
    if task == "text-classification":
        assert settings.task.label_names == ("negative", "positive")


def test_every_kind_of_task_has_a_name() -> None:
    assert {task_of(kind) for kind in KINDS} <= set(TASKS)


def test_whole_persons_lie_at_one_holder(tmp_path: Path) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl", "person": "person"}
    scenario = load_scenario(str(described(tmp_path, data=data, holders=3)))
    shares = [
        {r.person for r in read_records(file, target=None, person="person")}
        for file in prepare(scenario).glob("holder-*.jsonl")
    ]
    assert sum(len(share) for share in shares) == len(set.union(*shares)) == 7


CLASSES = {"task": "text-classification", "data": {"train": "train.jsonl", "val": "val.jsonl"}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "text-generatoin"}, ("'text-generatoin'", "'text-generation'")),
        ({"data": {"train": "train.txt"}}, ("data.val", ".jsonl")),
        ({"data": {"train": "train.txt", "vall": "val.txt"}}, ("data.vall", "'val'")),
        ({"modle": "x"}, ("'modle'", "'model'")),
        ({"holders": "many"}, ("holders", "whole number")),
        ({"holders": 0}, ("holders = 0", "whole number")),
        ({"holders": True}, ("holders = True", "whole number")),
        ({"seed": -1}, ("seed = -1", "whole number")),
        ({"task": ["text-generation"]}, ("unknown task", "'text-generation'")),
        ({"task": 3}, ("unknown task 3", "Known:")),
        ({"data": []}, ("no data", '"train"')),
        ({"data": {"train": ["train.txt"], "val": "val.txt"}}, ("data.train = ['train.txt']",)),
        ({"data": {"train": "", "val": "val.txt"}}, ("data.train = ''", "not text")),
        ({"data": {"train": "train.txt", "val": "val.txt", "text": 3}}, ("data.text = 3",)),
        ({"model": 3}, ("model = 3", "not text")),
        ({**CLASSES, "labels": "no,yes"}, ("labels", '["no", "yes"]')),
        ({**CLASSES, "labels": ["a", "b,c"]}, ("'b,c'", "comma")),
        ({**CLASSES, "labels": ["a", " "]}, ("' '", "nothing in it")),
        ({**CLASSES, "labels": ["a", "b"], "task": "translation"}, ("labels", "'translation'")),
        ({"config": 3}, ("config", "table")),
        ({"config": {"train.bach": 3}}, ("'train.bach'", "'train.batch'")),
    ],
)
def test_a_slip_is_named(tmp_path: Path, changes: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(ConfideError) as caught:
        load_scenario(str(described(tmp_path, **changes)))
    assert caught.value.code == "scenario.format"
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in says)


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda f: f.unlink(), "data.missing-file", "train.txt"),
        (lambda f: f.write_text(""), "data.empty", "train.txt"),
        (lambda f: f.write_text("\n \n"), "data.empty", "train.txt"),
        (lambda f: f.write_bytes(b"\x00\x01"), "data.binary", "train.txt"),
        (lambda f: (f.unlink(), f.mkdir()), "data.missing-file", "is a folder"),
        (lambda f: f.write_text("one\ntwo\n"), "data.partition", "holders = 4"),
    ],
    ids=["gone", "no bytes", "blank", "binary", "folder", "too few"],
)
def test_a_file_that_cannot_be_shared_out_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], code: str, says: str
) -> None:
    path = described(tmp_path)
    spoil(tmp_path / "train.txt")
    with pytest.raises(ConfideError) as caught:
        prepare(load_scenario(str(path)))
    assert caught.value.code == code
    assert says in caught.value.message


def test_a_label_of_the_public_file_with_a_comma_is_named(tmp_path: Path) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl"}
    path = described(tmp_path, task="text-classification", data=data)
    tiny.write_jsonl(tmp_path / "val.jsonl", [{"text": "a", "label": x} for x in ("b", "c,d")])
    with pytest.raises(ConfideError, match=r"scenario\.format.*val\.jsonl.*'c,d'.*comma"):
        load_scenario(str(path))


TEXT_FILES = {"train": "train.txt", "val": "val.txt"}
NEEDY = ("summarization", "translation", "question-answering", "text-classification",
         "text-regression", "text2text-generation")  # fmt: skip


@pytest.mark.parametrize("task", NEEDY)
@pytest.mark.parametrize("file", ["train", "val"])
def test_a_text_file_is_refused_by_its_name_where_targets_are_needed(
    tmp_path: Path, task: str, file: str
) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl", file: f"{file}.txt"}
    with pytest.raises(ConfideError) as caught:
        load_scenario(str(described(tmp_path, task=task, data=data)))
    assert caught.value.code == "data.missing-target"
    assert caught.value.message.endswith(
        f"{file}.txt: a .txt file has no targets, which the task {task} needs."
    )
    assert "span-corruption" in caught.value.hint


def test_a_target_that_is_named_or_needed_is_looked_for(tmp_path: Path) -> None:
    """Also of a prompt and its answer; the kind of the settings decides, if they name one."""
    named = {**TEXT_FILES, "target": "answer"}
    with pytest.raises(ConfideError, match=r"data\.missing-target.*train\.txt.*text-generation"):
        load_scenario(str(described(tmp_path, data=named)))
    none = {"train": "train.jsonl", "val": "val.jsonl", "target": ""}
    with pytest.raises(ConfideError, match=r"data\.missing-target.*data\.target.*translation"):
        load_scenario(str(described(tmp_path, task="translation", data=none)))
    alone = described(tmp_path, task="translation", data=TEXT_FILES, config={"task.kind": "spans"})
    assert from_flat(run_config(load_scenario(str(alone)))).data.target == ""


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = {"train": "train.jsonl", "val": "val.jsonl", "text": "body"}
    path = described(tmp_path, task="translation", data=data)
    with pytest.raises(ConfideError, match=r"data\.missing-column.*'body'"):
        prepare(load_scenario(str(path)))


QUICK = {"train.max-length": 32, "task.target-length": 8, "round.count": 1, "train.lr": 1.0}
QUICK |= {"privacy.noise-multiplier": 2.0, "privacy.delta": 1e-3}


def test_the_commands_take_a_description(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``assets fetch``, ``simulate`` and ``doctor``; Flower's engine has tests of its own."""

    def in_process(config: Mapping[str, Any], holders: int, progress: Any) -> Path:
        files = sorted((cache / "federations").glob("mine-4-*/holder-*.jsonl"))
        assert len(files) == holders
        return run(config, federation(files, tmp_path / "ledgers")).path

    monkeypatch.setattr("confide.simulations.flower.simulate", in_process)
    monkeypatch.chdir(tmp_path)
    model = tiny.save_task_model(tmp_path / "model", "causal")
    path = str(described(tmp_path, model=str(model), config=QUICK))
    commands = CliRunner()
    fetched = commands.invoke(build_app(), ["assets", "fetch", "--json", path])
    (row,) = json.loads(fetched.stdout)["federations"]
    assert row["name"].startswith("mine-4-")
    told = json.loads(commands.invoke(build_app(), ["simulate", "--json", path]).stdout)
    assert (told["metric"], told["delta"]) == ("perplexity", 1e-3)
    assert (Path(told["run"]) / "adapter" / "README.md").is_file()
    for suffix in (".json", ".toml"):
        file = described(tmp_path, suffix, model=str(model))
        seen = commands.invoke(build_app(), ["doctor", "--json", str(file)])
        assert json.loads(seen.stdout)["subject"] == f"the settings of {file}"


@pytest.mark.parametrize("task", TASKS)
def test_the_best_of_a_search_over_a_description_is_one_again(tmp_path: Path, task: str) -> None:
    (tmp_path / "here").mkdir()
    data = {"train": "train.jsonl", "val": "val.jsonl", "person": "person"}
    path = described(tmp_path / "here", task=task, data=data, holders=3, seed=5)
    scenario = load_scenario(str(path))
    search = Search(scenario=scenario, space=(), folder=tmp_path)
    best = Trial(number=0, values={"train.lr": 2.5}, state="complete", measure=-1.0, curve=(),
                 facts={})  # fmt: skip
    outcome = Outcome(search=search, trials=(best,), epsilon=1.0, delta=1e-3)
    tuned = tmp_path / "mine.toml"
    tuned.write_text(best_scenario(outcome), encoding="utf-8")
    again = load_scenario(str(tuned))
    assert run_config(again) == {**run_config(scenario), "train.lr": 2.5}
    made = {f.name: f.read_bytes() for f in prepare(scenario).iterdir()}
    assert {f.name: f.read_bytes() for f in prepare(again).iterdir()} == made
