"""A benchmark by its name, from a small folder in the Hub's format to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.text.readers import read_records
from confide.server.run import run
from confide.simulations.inprocess import federation
from confide.simulations.scenario import Scenario, load_scenario, prepare, run_config
from confide.simulations.sources import load_source
from tests import tiny

QUICK = {
    "train.max-length": 32,
    "round.count": 1,
    "train.lr": 1.0,
    "lora.rank": 2,
    "privacy.noise-multiplier": 2.0,
    "privacy.delta": 1e-3,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hub_row(config: str, row: dict[str, str], number: int) -> dict[str, Any]:
    """A row of the tiny text as the Hub has it."""
    good = row["label"] == "positive"
    if config == "sst2":
        return {"sentence": row["text"], "label": int(good), "idx": number}
    if config == "stsb":
        pair = {"sentence1": row["text"], "sentence2": "a day"}
        return {**pair, "label": 4.5 if good else 0.5, "idx": number}
    return {
        "passage": row["text"],
        "query": "@placeholder was",
        "entities": ["town", "day"],
        "answers": ["town"],
        "idx": {"passage": number, "query": number},
    }


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three benchmarks, with 24 and 8 rows each, as parquet and as jsonl."""
    for config in ("sst2", "stsb", "record"):
        for split, count in (("train", 24), ("validation", 8)):
            rows = [hub_row(config, r, n) for n, r in enumerate(tiny.rows(count, seed=count))]
            folder = tmp_path / "suite" / config
            folder.mkdir(parents=True, exist_ok=True)
            if config == "sst2":
                told = datasets.Dataset.from_list(rows)
                told.to_parquet(folder / f"{split}-00000-of-00001.parquet")
            else:
                tiny.write_jsonl(folder / f"{split}.jsonl", rows)
    return tmp_path / "suite"


def described(folder: Path, **changes: Any) -> Path:
    content = {"task": "text-classification", "data": {"benchmark": "glue/sst2"}, **changes}
    path = folder / "mine.json"
    path.write_text(json.dumps(content))
    return path


def outcome(scenario: Scenario, tmp_path: Path) -> dict[str, Any]:
    files = sorted(prepare(scenario).glob("holder-*.jsonl"))
    changes = [f"run.out={tmp_path / 'runs'}"]
    done = run(run_config(scenario, changes), federation(files, tmp_path / "ledgers"))
    report: dict[str, Any] = json.loads((done.path / "report.json").read_text())
    return report


def test_a_description_names_a_benchmark_and_runs(suite: Path, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    data = {"benchmark": "glue/sst2", "folder": "suite"}  # beside the description
    path = described(tmp_path, data=data, model=str(model), holders=2, config=QUICK)
    scenario = load_scenario(str(path))
    report = outcome(scenario, tmp_path)
    assert report["utility"]["metric"] == "accuracy"
    assert report["utility"]["examples"] == 8
    assert report["settings"]["task.labels"] == "negative,positive"
    assert report["settings"]["data.benchmark"] == "glue/sst2"
    public = {r.text for r in read_records(prepare(scenario) / "public.jsonl")}
    assert public == {row["text"] for row in tiny.rows(8, seed=8)}
    held = [r for f in prepare(scenario).glob("holder-*.jsonl") for r in read_records(f)]
    assert len(held) == 24


def test_the_public_text_of_mnli_is_the_matched_part_alone(tmp_path: Path) -> None:
    for split in ("train", "validation_matched", "validation_mismatched"):
        pair = {"premise": f"of {split}", "hypothesis": "a day", "label": 0, "idx": 0}
        folder = tmp_path / "suite" / "mnli"
        folder.mkdir(parents=True, exist_ok=True)
        tiny.write_jsonl(folder / f"{split}.jsonl", [pair])
    found = load_source("glue/mnli", tmp_path / "suite")
    assert ["of train" in r.text for r in found.training] == [True]
    assert ["of validation_matched" in r.text for r in found.test] == [True]


@pytest.mark.parametrize(
    ("name", "metric"), [("glue/stsb", "pearson"), ("superglue/record", "token-f1")]
)
def test_a_scenario_of_one_line_runs(suite: Path, tmp_path: Path, name: str, metric: str) -> None:
    kind = "regression" if name == "glue/stsb" else "seq2seq"
    quick = QUICK | {"train.max-length": 64, "task.target-length": 12}
    quick |= {"model.name": str(tiny.save_task_model(tmp_path / "model", kind))}
    rows = "\n".join(f'"{key}" = {json.dumps(value)}' for key, value in quick.items())
    path = tmp_path / "mine.toml"
    head = f'{rows}\nfederation.holders = 2\nfederation.folder = "suite"\n'
    path.write_text(f'{head}"data.benchmark" = "{name}"\n')
    scenario = load_scenario(str(path))
    assert scenario.text.source == name
    report = outcome(scenario, tmp_path)
    assert report["utility"]["metric"] == metric
    assert report["settings"]["task.kind"] == kind
    by_source = path.with_name("other.toml")
    by_source.write_text(f'federation.source = "{name}"\n{head}')
    assert load_scenario(str(by_source)).config["data.benchmark"] == name


def test_rows_that_changed_are_shared_out_anew(suite: Path, tmp_path: Path) -> None:
    path = described(tmp_path, data={"benchmark": "glue/stsb", "folder": str(suite)},
                     task="text-regression")  # fmt: skip
    scenario = load_scenario(str(path))
    made = prepare(scenario) / "public.jsonl"
    before = made.read_text()
    assert prepare(scenario).stat().st_mtime_ns == made.parent.stat().st_mtime_ns
    rows = [hub_row("stsb", r, n) for n, r in enumerate(tiny.rows(6, seed=99))]
    tiny.write_jsonl(suite / "stsb" / "validation.jsonl", rows)
    assert (prepare(scenario) / "public.jsonl").read_text() != before


def test_the_name_alone_is_a_scenario_and_what_it_needs_is_fetched(
    suite: Path, cache: Path
) -> None:
    (cache / "benchmarks").mkdir(parents=True)
    suite.rename(cache / "benchmarks" / "glue")
    scenario = load_scenario("glue/sst2")
    assert from_flat(run_config(scenario)).task.label_names == ("negative", "positive")
    model = cache / "models" / str(scenario.config["model.name"])
    tiny.save_model(model)
    done = CliRunner().invoke(build_app(), ["assets", "fetch", "--json", "glue/stsb"])
    made = json.loads(done.stdout)["federations"]
    assert [row["name"] for row in made] == ["glue-stsb-4"]
    assert len(list(Path(made[0]["path"]).glob("holder-*.jsonl"))) == 4


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"data": {"benchmark": "glue/sst-2"}}, "benchmark.unknown", "'glue/sst2'"),
        ({"data": {"benchmark": "glue/sst2", "train": "t.txt"}}, "scenario.format", "data.train"),
        ({"data": {"benchmark": "glue/sst2", "text": "body"}}, "scenario.format", "data.text"),
        ({"data": {"benchmark": ["glue/sst2"]}}, "scenario.format", "data.benchmark"),
        ({"data": {"benchmark": "glue/stsb"}}, "settings.combination", "'regression'"),
        ({"labels": ["no", "yes"]}, "settings.combination", "'negative,positive'"),
        ({"labels": "no"}, "scenario.format", "not a list"),
        ({"config": {"task.kind": "regression"}}, "settings.combination", "task.kind"),
        ({"data": {"train": "a.txt", "val": "b.txt", "folder": "x"}}, "scenario.format", "folder"),
    ],
)
def test_a_slip_in_a_description_is_named(
    tmp_path: Path, changes: dict[str, Any], code: str, says: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        run_config(load_scenario(str(described(tmp_path, **changes))))
    assert caught.value.code == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ('federation.source = "glue/cola"', "scenario.format", "Leave one out"),
        ('federation.source = "nyt"', "scenario.format", "Leave one out"),
        ("", "settings.combination", "'negative,positive'"),
    ],
)
def test_a_slip_in_a_scenario_is_named(tmp_path: Path, content: str, code: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{content}\n"data.benchmark" = "sst2"\n"task.labels" = "a,b"\n')
    with pytest.raises(ConfideError) as caught:
        run_config(load_scenario(str(path)))
    assert caught.value.code == code
    assert says in str(caught.value)


def test_a_folder_is_for_benchmarks_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[federation]\nsource = "nyt"\nfolder = "here"\nholders = 2\n')
    with pytest.raises(ConfideError, match=r"data\.folder.*'nyt' is none"):
        prepare(load_scenario(str(path)))


def test_a_change_on_the_command_line_may_not_contradict_either() -> None:
    scenario = load_scenario("glue/stsb")
    with pytest.raises(ConfideError, match=r"task\.kind = 'classification'.*'glue/stsb'"):
        run_config(scenario, ["task.kind=classification"])
    assert run_config(load_scenario("nyt"), ["data.benchmark=", "round.count=1"])
