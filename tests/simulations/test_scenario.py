"""Scenarios are found by name or path, and refused with what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.settings.specs import PARTITIONS
from confide.server.run_folder import RunFolder
from confide.simulations.scenario import Scenario, load_scenario, run_config, scenario_names
from confide.simulations.sources import SOURCES

# Whose promise is to whole persons as it stands.
OF_PERSONS = ("shakespeare",)
# What the demo has beside its scenario, which serves any number of holders.
DEMO = {
    "run.name": "demo",
    "privacy.trust": "distributed",
    "privacy.colluding": 2,
    "round.min-holders": 8,
}
WHOLE = '[federation]\nsource = "nyt"\nholders = 2\npartition = "iid"\n'


def write(folder: Path, content: str) -> str:
    path = folder / "mine.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_that_comes_along_makes_a_valid_run(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.text.source in SOURCES
    assert scenario.text.partition in PARTITIONS
    settings = from_flat(scenario.run_config())
    assert settings.data.path == f"{name}-{scenario.text.holders}"
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
    assert (nyt.federation, nyt.text.partition, nyt.text.limit) == ("nyt-10", "unit", 0)


def test_a_scenario_of_ones_own_is_called_by_its_path(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        WHOLE
        + "alpha = 2\n'round.count' = 3\n[train]\nlr = 0.5\n".replace(
            "'round.count'", "[round]\ncount"
        ),
    )
    federation = {"source": "nyt", "holders": 2, "partition": "iid", "alpha": 2}
    assert load_scenario(path) == Scenario(
        name="mine",
        config={f"federation.{key}": value for key, value in federation.items()}
        | {"round.count": 3, "train.lr": 0.5},
    )


def test_text_that_is_shared_out_otherwise_has_another_name() -> None:
    """Two runs at once never take each other's text: what decides the files is in the name."""
    names = [
        load_scenario("nyt", changes).federation
        for changes in ([], ["federation.holders=3"], ["federation.partition=iid"],
                        ["federation.seed=2"], ["federation.limit=10"], ["train.lr=1"])
    ]  # fmt: skip
    assert names[:2] == ["nyt-10", "nyt-3"]
    assert names[5] == "nyt-10"
    assert len(set(names)) == 5


def test_every_kind_of_file_is_one_dialect(tmp_path: Path, root: Path) -> None:
    """A scenario, the config.toml that a run of it leaves, that run's folder, and the demo's."""
    scenario = load_scenario("movies", ["train.lr=0.5"])
    settings = from_flat(run_config(scenario))
    RunFolder(tmp_path).write_config(settings.to_flat())
    for file in (tmp_path, tmp_path / "config.toml"):
        again = load_scenario(file)
        assert from_flat(run_config(again)) == settings
        assert (again.name, again.federation) == ("movies", "movies-10")
    demo = from_flat(run_config(load_scenario(root / "pyproject.toml")))
    changes = [f"{key}={value}" for key, value in DEMO.items()]
    assert demo == from_flat(run_config(load_scenario("nyt", changes)))


def test_a_table_of_an_earlier_scenario_is_told_where_its_keys_are_now(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"'source'.*\[federation\]: federation\.source"):
        load_scenario(write(tmp_path, 'source = "nyt"\n'))


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
        (WHOLE + "seeds = 1\n", "Did you mean 'federation.seed'"),
        (WHOLE + "[round]\ncounts = 3\n", "Did you mean 'round.count'"),
        (WHOLE + "[round]\ncount = [3]\n", "round.count to a list"),
        ("'round.count' = 3\n[round]\ncount = 3\n", "round.count twice"),
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


@pytest.mark.parametrize(
    ("changed", "code", "found"),
    [
        (("2", '"2"'), "settings.type", "federation.holders = '2'"),
        (("2", "true"), "settings.type", "federation.holders = True"),
        (("2", "0"), "settings.range", "federation.holders = 0"),
        (('"iid"', '"odd"'), "settings.range", "federation.partition = 'odd'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(
    tmp_path: Path, changed: tuple[str, str], code: str, found: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        from_flat(run_config(load_scenario(write(tmp_path, WHOLE.replace(*changed)))))
    assert caught.value.code == code
    assert found in caught.value.message


def test_the_apps_own_config_is_the_demo_scenarios(root: Path) -> None:
    app = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{room}.{name}": value for room, values in app.items() for name, value in values.items()
    }
    assert flat == {**run_config(load_scenario("nyt")), **DEMO}


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
