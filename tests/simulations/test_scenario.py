"""Scenarios are found by name or path, and refused with what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.simulations.partition import PARTITIONS
from confide.simulations.scenario import Scenario, load_scenario, run_config, scenario_names
from confide.simulations.sources import SOURCES

# Whose promise is to whole persons as it stands.
OF_PERSONS = ("shakespeare",)
WHOLE = 'source = "nyt"\nholders = 2\npartition = "iid"\n'


def write(folder: Path, content: str) -> str:
    path = folder / "mine.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_that_comes_along_makes_a_valid_run(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.source in SOURCES
    assert scenario.partition in PARTITIONS
    settings = from_flat(scenario.run_config())
    assert settings.data.path == f"{name}-{scenario.holders}"
    assert settings.run.name == name


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_protects_records_or_persons_and_can_protect_persons(name: str) -> None:
    scenario = load_scenario(name)
    own = "person" if name in OF_PERSONS else "record"
    assert from_flat(run_config(scenario)).privacy.unit == own
    changes = ["privacy.unit=person", "data.person=person", "privacy.records-per-person=4"]
    privacy = from_flat(run_config(scenario, changes)).privacy
    assert (privacy.unit, privacy.records_per_person) == ("person", 4)


def test_the_demo_is_ten_holders_of_whole_articles() -> None:
    nyt = load_scenario("nyt")
    assert (nyt.federation, nyt.partition, nyt.limit) == ("nyt-10", "unit", None)


def test_a_scenario_of_ones_own_is_called_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE + "alpha = 2\n[config]\n'round.count' = 3\ntrain.lr = 0.5\n")
    assert load_scenario(path) == Scenario(
        name="mine",
        source="nyt",
        holders=2,
        partition="iid",
        alpha=2.0,
        config={"round.count": 3, "train.lr": 0.5},
    )


@pytest.mark.parametrize("name", ["nyyt", "../scenarios/nyt", ""])
def test_an_unknown_name_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(ConfideError, match=r"scenario\.unknown.*nyt"):
        load_scenario(name)


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"scenario\.unknown.*gone\.toml.*nyt"):
        load_scenario(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("source = ", "is not TOML"),
        (WHOLE.replace("holders = 2\n", ""), "has no holders"),
        (WHOLE + "seeds = 1\n", "Did you mean 'seed'"),
        (WHOLE.replace("2", '"2"'), "holders = '2', which is not a whole number"),
        (WHOLE.replace("2", "true"), "holders = True, which is not a whole number"),
        (WHOLE + "alpha = 'x'\n", "which is not a number"),
        (WHOLE + "config = 3\n", "which is not a table"),
        (WHOLE + "[config]\n'round.counts' = 3\n", "Did you mean 'round.count'"),
        (WHOLE + "[config]\n'round.count' = [3]\n", "round.count to a list"),
    ],
    ids=str,
)
def test_a_scenario_with_a_fault_is_refused_with_the_fault(
    tmp_path: Path, content: str, found: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        load_scenario(write(tmp_path, content))
    assert caught.value.code == "scenario.format"
    assert found in str(caught.value)
    assert caught.value.hint


def test_the_apps_own_config_is_the_demo_scenarios(root: Path) -> None:
    app = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{room}.{name}": value for room, values in app.items() for name, value in values.items()
    }
    assert flat == {**run_config(load_scenario("nyt")), "run.name": "demo"}


def test_changes_take_the_type_of_the_setting() -> None:
    config = run_config(
        load_scenario("nyt"), ["privacy.epsilon=3.5", "round.count = 4", "task.labels=a,b"]
    )
    assert (config["privacy.epsilon"], config["round.count"]) == (3.5, 4)
    assert config["task.labels"] == "a,b"


@pytest.mark.parametrize("change", ["privacy.epsilom=3", "privacy.epsilon", "=3", ""])
def test_a_change_of_no_setting_is_refused(change: str) -> None:
    with pytest.raises(ConfideError, match=r"settings\.unknown-key"):
        run_config(load_scenario("nyt"), [change])
