"""``confide server run``: which settings it takes, and the lines that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import known_keys
from confide.server.deploy import federation
from confide.server.deploy import run as module
from confide.server.run_folder import RunFolder
from confide.simulations import deploy_cli, ready
from confide.simulations.deploy_cli import _config, _line


def test_a_scenario_gives_every_setting_and_a_change_is_made_last() -> None:
    config = _config("nyt", ["round.count=3", "run.coordinator=hospital"])
    assert sorted(config) == sorted(known_keys())
    assert (config["round.count"], config["run.coordinator"]) == (3, "hospital")
    assert config["run.resume"] == ""


def test_a_run_folder_gives_its_own_settings_and_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path), "it")
    settings = {**_config("nyt", ["round.count=7"]), "run.out": str(tmp_path)}
    folder.write_config(settings)
    config = _config(str(folder.path), [])
    assert config == {**settings, "run.resume": str(folder.path)}


def test_an_unknown_scenario_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        _config("nowhere", [])
    assert caught.value.code == "scenario.unknown"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"event": "holders", "states": {"south": "policy.max-epsilon", "north": "training"}},
            "holders: north training, south policy.max-epsilon",
        ),
        (
            {
                "event": "round",
                "round": 2,
                "seconds": 11.4,
                "accepted": [{"receipt": {"epsilon": 1.5}}, {"receipt": {"epsilon": 2.25}}],
                "left_out": [{"holder": "south", "code": "ledger.unit"}],
            },
            "round 2: 2 updates in 11 s, epsilon so far 2.25; without south ledger.unit",
        ),
        (
            {
                "event": "round",
                "round": 1,
                "seconds": 3.0,
                "accepted": [{"receipt": {"epsilon": 1.5}}, {"receipt": {"epsilon": None}}],
                "left_out": [],
            },
            "round 1: 2 updates in 3 s",
        ),
        (
            {"event": "evaluation", "round": 2, "metric": "accuracy", "accuracy": 0.5, "loss": 0.7},
            "round 2: accuracy 0.500, loss 0.700",
        ),
        ({"event": "away", "seconds": 15}, "the coordinator does not answer, since 15 s"),
        (
            {"event": "ready", "ready": 2, "refused": [{"holder": "n", "code": "policy.max-clip"}]},
            "2 holders can take part; without n policy.max-clip",
        ),
        ({"event": "again", "round": 4}, "the run died; it goes on after round 4"),
        ({"event": "end", "status": "failed", "code": "run.no-round"}, "end failed run.no-round"),
    ],
)
def test_each_event_is_a_line(event: dict[str, Any], line: str) -> None:
    assert _line(event) == line


def test_the_outcome_names_claim_adapter_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}}
    report = {
        "claim": {"sentence": "At most.", "epsilon": 1.0, "delta": 1e-5, "private": True, "runs": 1}
        | {"unit": "record"},
        "utility": {"metric": "accuracy", "kept": None, **scores},
        "run": {"rounds": 1, "rounds_planned": 30},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(federation, "load_federation", lambda folder: folder)
    monkeypatch.setattr(ready, "check_start", lambda settings: None)
    monkeypatch.setattr(ready, "check_model", lambda settings: None)
    monkeypatch.setattr(module, "run_over", lambda *_, wait: tmp_path)
    deploy_cli.run("nyt", federation=tmp_path)
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "At most.",
        f"Adapter: {tmp_path / 'adapter'}",
        f"Report: {tmp_path / 'report.html'}",
        "Accuracy 50.0 % before, 75.0 % after, for (epsilon, delta) = (1.00, 1e-05) per record."
        " 1 of 30 rounds counted.",
    ]


def test_what_a_run_warns_of_stands_before_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    deploy_cli._say({"event": "start", "warnings": ["both factors under noise"]})
    assert capsys.readouterr().err == "warning: both factors under noise\nstart\n"
