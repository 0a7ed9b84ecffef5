"""``confide doctor``: what it takes, what it knows of it, what it prints, and its exit status."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.common.settings import Settings
from confide.server.run_folder import RunFolder
from confide.simulations.doctor import add_commands, diagnose
from confide.simulations.scenario import load_scenario, run_config
from confide.simulations.simulation import as_settings
from tests import tiny
from tests.server.report.conftest import MakeRun, make_run, pattern  # noqa: F401 - fixtures

NOT_PRIVATE = 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three holders of 24 records and 8 persons each, called as the demo's federation is."""
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    tiny.save_federation(tmp_path / "cache" / "federations" / "nyt-10")
    return tmp_path / "cache"


def config(path: Path, **changes: Any) -> str:
    """The demo's settings in a file, with changes."""
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    named = run_config(load_scenario("nyt")) | named
    path.write_text("".join(f'"{k}" = {json.dumps(v)}\n' for k, v in named.items()), "utf-8")
    return str(path)


def names(target: str) -> set[str]:
    return {finding.name for finding in diagnose(target).findings}


def doctor(*arguments: str) -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_commands(app)
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_a_scenario_is_looked_at_with_its_prepared_federation(cache: Path) -> None:
    found = diagnose("nyt")
    assert found.facts.sizes == (24, 24, 24)
    assert (found.facts.column, found.facts.most_records) == ("person", 3)
    assert "record-though-persons" in {finding.name for finding in found.findings}


def test_persons_are_the_units_where_they_are_asked_for(cache: Path, tmp_path: Path) -> None:
    asked = config(tmp_path / "a.toml", privacy__unit="person", data__person="person")
    found = diagnose(asked)
    assert found.facts.sizes == (8, 8, 8)
    assert "record-though-persons" not in {finding.name for finding in found.findings}


def test_a_federation_that_names_no_persons_has_none(cache: Path, tmp_path: Path) -> None:
    for file in (cache / "federations" / "nyt-10").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        tiny.write_jsonl(file, [{k: v for k, v in r.items() if k != "person"} for r in rows])
    found = diagnose("nyt").facts
    assert (found.sizes, found.column, found.most_records) == ((24, 24, 24), "", 0)


def test_what_is_not_prepared_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    found = diagnose("nyt")
    assert (found.facts.sizes, found.facts.trained) == ((), 0)
    assert [finding.name for finding in found.findings] == ["facts-unknown"]


def test_a_broken_federation_is_named_without_its_text(cache: Path) -> None:
    broken = cache / "federations" / "nyt-10" / "holder-01.jsonl"
    broken.write_text('{"text": "a private word"\n', encoding="utf-8")
    with pytest.raises(ConfideError) as caught:
        diagnose("nyt")
    assert caught.value.code == "doctor.federation"
    assert "holder-01.jsonl" in caught.value.message
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_settings_that_a_file_lacks_have_their_defaults(cache: Path, tmp_path: Path) -> None:
    """As in every command that takes the file."""
    file = tmp_path / "a.toml"
    file.write_text('[model]\nname = "m"\n[task]\nlabels = "a,b"\n[data]\npath = "nyt-10"\n')
    assert diagnose(str(file)).settings == as_settings(file)
    assert as_settings(file).train.lr == Settings().train.lr


def test_a_runs_own_config_a_pyproject_and_a_scenario_file_are_told_apart(
    cache: Path, tmp_path: Path, root: Path
) -> None:
    off = {"privacy.trust": "off", "model.name": "m", "task.labels": "a,b"}
    RunFolder(tmp_path).write_config(Settings().to_flat() | off)
    found = diagnose(str(tmp_path / "config.toml"))
    assert found.subject == f"the settings of {tmp_path}/config.toml"
    assert "noise-off" in names(str(tmp_path / "config.toml"))
    demo = {"too-few-holders"}  # it asks for eight of ten, and here are fewer
    assert names(str(root / "pyproject.toml")) == names("nyt") | demo
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'task.labels = "a,b"\nmodel.name = "m"\nprivacy.trust = "off"\nround.min-holders = 4\n'
        '[federation]\nsource = "nyt"\nholders = 4\n',
        encoding="utf-8",
    )
    assert names(str(mine)) == {"noise-off", "one-late-holder"}


@pytest.mark.parametrize("method", ["ffa", "lora"])
@pytest.mark.parametrize("adapter", ["lora", "head"])
def test_trained_values_are_as_many_as_the_model_really_has(
    tiny_model: Path, tmp_path: Path, method: str, adapter: str
) -> None:
    from confide.common.models.loading import load_model
    from confide.common.settings import from_flat

    flat = tiny.config(tiny_model, tmp_path, tmp_path)
    flat |= {"aggregate.method": method, "lora.method": adapter, "lora.layers": 2}
    loaded = load_model(from_flat(flat))
    trained = sum(math.prod(shape) for _, shape in loaded.schema.trained_shapes)
    file = config(tmp_path / "a.toml", **{k.replace(".", "__"): v for k, v in flat.items()})
    assert diagnose(file).facts.trained == trained


def test_what_is_not_private_is_status_1_and_anything_else_is_not(
    cache: Path, tmp_path: Path
) -> None:
    assert doctor(config(tmp_path / "a.toml", model__dtype="bfloat16")).exit_code == 0
    done = doctor(config(tmp_path / "b.toml", privacy__trust="off"))
    assert done.exit_code == NOT_PRIVATE
    assert "NOT PRIVATE" in done.stdout
    assert "fix: Set privacy.trust = 'local'" in done.stdout
    assert done.stdout.index("[noise-off]") < done.stdout.index("What no setting")


def test_json_has_every_finding_and_what_cannot_happen(cache: Path, tmp_path: Path) -> None:
    done = doctor(config(tmp_path / "b.toml", privacy__trust="off", round__timeout=5), "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == NOT_PRIVATE
    assert [f["name"] for f in told["findings"]] == ["noise-off", "short-timeout"]
    assert set(told["findings"][0]) == {"name", "severity", "what", "why", "fix"}
    assert told["facts"] == "the prepared federation nyt-10"
    assert told["cannot_happen"][0]["test"].startswith("tests/")


def test_a_run_is_looked_at_by_its_folder_or_as_the_latest(
    make_run: MakeRun,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_run(aggregate__method="lora", privacy__trust="local")
    found = diagnose(str(folder))
    assert found.subject == f"the run {folder.name}"
    assert found.facts.source == "the run's receipts"
    assert {"both-factors", "record-though-persons"} <= {f.name for f in found.findings}
    monkeypatch.chdir(folder.parent.parent)
    assert diagnose("latest") == found


def test_a_run_whose_claim_was_withdrawn_is_status_1(
    make_run: MakeRun,  # noqa: F811
) -> None:
    def bare(lines: list[dict[str, Any]]) -> None:
        first = next(line for line in lines if line["event"] == "round")
        first["accepted"][5]["receipt"]["steps_run"] = []

    done = doctor(str(make_run(bare)))
    assert done.exit_code == NOT_PRIVATE
    assert "[check-failed] Failed: Every accepted update was noised" in done.stdout


def test_nothing_of_the_text_is_printed(cache: Path) -> None:
    words = {*tiny.GOOD, *tiny.BAD}
    shown = doctor("nyt").stdout + doctor("nyt", "--json").stdout
    assert {word for word in words if f" {word} " in shown} == set()


def test_every_scenario_is_diagnosed() -> None:
    assert run_config(load_scenario("movies"))  # there is one beside the demo
    assert "noise-off" not in names("movies")
