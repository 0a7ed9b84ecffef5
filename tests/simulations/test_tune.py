"""A search on the tiny federation: trials, one ledger for all, resume, pruning, the best one."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.common.errors import ConfideError
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Ledger
from confide.common.settings import from_flat
from confide.server.run_folder import by_room
from confide.simulations import trial as of_one
from confide.simulations import tune as module
from confide.simulations.scenario import Scenario, load_scenario, run_config
from confide.simulations.space import default_space, parse_space
from confide.simulations.tune import Outcome, Search, Trial, one_run, tune
from confide.simulations.tune_cli import best_scenario
from confide.simulations.tune_page import cost_sentence, grid_sentence, models, render, table
from tests import tiny

NOISE, DELTA, ROUNDS = 2.0, 1e-3, 2


@pytest.fixture
def scenario(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scenario:
    monkeypatch.setattr(module, "text_of", lambda *_: tiny_federation)
    config = tiny.config(tiny_model, tiny_federation, tmp_path, round__count=ROUNDS)
    config |= {"privacy.noise-multiplier": NOISE}
    return Scenario(
        name="tiny", config={"federation.source": "nyt", "federation.holders": 3, **config}
    )


def search(scenario: Scenario, folder: Path, *space: str, **options: Any) -> Search:
    dimensions = tuple(parse_space(space or ["train.lr=0.1..10 log"], scenario))
    return Search(scenario=scenario, space=dimensions, folder=folder / "study", **options)


def trial(number: int, state: str = "complete", measure: float | None = 0.5, **facts: Any) -> Trial:
    return Trial(
        number=number,
        values={"train.lr": 1.0 + number},
        state=state,
        measure=measure,
        curve=(),
        facts=facts,
    )


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trials end at once, the later the worse, and are kept here."""
    configs: list[dict[str, Any]] = []

    def one_run(config: Any, data: Any, folder: Any, hopeless: Any) -> dict[str, Any]:
        configs.append(config)
        level = 1 / len(configs)
        cut = any(hopeless(number, level) for number in (1, 2))
        base = {"code": "", "message": "", "measure": level, "curve": [(1, level)]}
        return {"state": "pruned" if cut else "complete", **base}

    monkeypatch.setattr(module, "one_run", one_run)
    return configs


def ledgers(folder: Path) -> list[Path]:
    return sorted((folder / "study" / "holders").glob("*/ledger.sqlite"))


def test_trials_are_runs_on_the_same_ledgers_and_the_first_is_the_scenario_itself(
    scenario: Scenario, tmp_path: Path
) -> None:
    said: list[Trial] = []
    found = tune(search(scenario, tmp_path, trials=2), said.append)
    assert tuple(said) == found.trials
    assert [t.state for t in found.trials] == ["complete"] * 2
    assert found.trials[0].values == {"train.lr": 1.0}
    assert len({t.values["train.lr"] for t in found.trials}) == 2
    for one in found.trials:
        report = json.loads(
            (tmp_path / "study" / "runs" / one.facts["run"] / "report.json").read_text()
        )
        assert report["utility"]["after"]["accuracy"] == one.measure == one.curve[-1][1]
        assert [number for number, _ in one.curve] == list(range(ROUNDS + 1))
        assert one.facts["seconds"] > 0
        assert one.facts["bytes_up"] > 0
    assert len(ledgers(tmp_path)) == 3
    with Ledger.open(ledgers(tmp_path)[0], create=False) as ledger:
        steps = ledger.steps()
        assert sum(step.steps for step in steps) == 2 * ROUNDS
        # Each trial was chosen after seeing the ones before: the sum by PLD is no bound then.
        assert found.epsilon == ledger.proven(DELTA, "") > epsilon_pld(steps, DELTA)
    alone = report["holders"][0]["epsilon_pld"]
    assert found.epsilon > 1.3 * alone
    told = cost_sentence(found)
    assert "cost no privacy" in told
    assert f"epsilon {found.epsilon:.1f}" in told


@pytest.mark.usefixtures("made_up")
def test_a_search_goes_on_where_it_stopped(scenario: Scenario, tmp_path: Path) -> None:
    chosen = search(scenario, tmp_path, "train.lr=0.1..10", trials=1, sampler="random")
    first = tune(chosen)
    again = tune(replace(chosen, trials=2))
    assert again.trials[:1] == first.trials
    assert len(again.trials) == 2
    assert tune(replace(chosen, trials=2)).trials == again.trials
    for other in (
        search(scenario, tmp_path, "train.lr=0.1..9", trials=3, sampler="random"),
        replace(chosen, trials=3, sampler="tpe"),
        replace(chosen, trials=3, scenario=scenario.with_({"privacy.clip": 2.0})),
    ):
        with pytest.raises(ConfideError) as caught:
            tune(other)
        assert caught.value.code == "tune.resume"


@pytest.mark.usefixtures("made_up")
def test_a_trial_that_a_crash_cut_off_is_given_up(scenario: Scenario, tmp_path: Path) -> None:
    import optuna

    chosen = search(scenario, tmp_path, trials=1)
    with module._study(optuna, chosen) as study:
        study.ask()
    found = tune(chosen)
    assert [t.number for t in found.trials] == [1]
    assert study.trials[0].state == optuna.trial.TrialState.FAIL  # no sampler learns from it


@pytest.mark.usefixtures("made_up")
def test_two_searches_at_once_in_one_folder_share_the_trials(
    scenario: Scenario, tmp_path: Path
) -> None:
    """hydra#2925: the second took the first one's trial for one that a crash had cut off."""
    import optuna

    chosen = search(scenario, tmp_path, trials=2)
    with module._study(optuna, chosen) as study:
        trial = study.ask()
        found = tune(chosen)
        assert [t.number for t in found.trials] == [1, 2]
        assert study.trials[trial.number].state == optuna.trial.TrialState.RUNNING
        study.tell(trial, 1.0)


def test_a_grid_is_every_combination_once(
    scenario: Scenario, tmp_path: Path, made_up: list[dict[str, Any]]
) -> None:
    chosen = search(
        scenario, tmp_path, "train.lr=0.5,1.0", "lora.rank=1,2", trials=9, sampler="grid"
    )
    found = tune(replace(chosen, scenario=scenario.with_({"round.count": 1})))
    assert [c["lora.rank"] for c in made_up] == [t.values["lora.rank"] for t in found.trials]
    assert {c["round.count"] for c in made_up} == {1}
    assert {tuple(t.values.values()) for t in found.trials} == {
        (lr, rank) for lr in (0.5, 1.0) for rank in (1, 2)
    }
    assert len(found.trials) == 4


@pytest.mark.parametrize(
    ("sampler", "trials", "wanted"),
    [("grid", None, 36), ("grid", 5, 5), ("grid", 99, 36), ("tpe", None, 20), ("tpe", 99, 99)],
)
def test_a_grid_is_tried_as_a_whole_unless_somebody_says_how_many(
    scenario: Scenario, tmp_path: Path, sampler: str, trials: int | None, wanted: int
) -> None:
    dimensions = tuple(parse_space(default_space(run_config(scenario)), scenario))
    chosen = Search(
        scenario=scenario, space=dimensions, folder=tmp_path, sampler=sampler, trials=trials
    )
    assert chosen.wanted == wanted


def test_points_of_a_grid_that_were_left_out_are_told(
    scenario: Scenario, tmp_path: Path, made_up: list[dict[str, Any]]
) -> None:
    space = ("train.lr=0.5,1.0", "lora.rank=1,2")
    some = tune(search(scenario, tmp_path, *space, trials=3, sampler="grid"))
    assert grid_sentence(some).startswith("3 of the grid's 4 points were tried")
    assert grid_sentence(some) in html.unescape(render(some))
    whole = tune(search(scenario, tmp_path, *space, sampler="grid"))
    assert (len(made_up), grid_sentence(whole)) == (4, "")


def test_a_trial_without_hope_ends_before_its_next_round_and_stays_charged(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path
) -> None:
    asked: list[tuple[int, float]] = []

    def hopeless(number: int, measure: float) -> bool:
        asked.append((number, measure))
        return True

    config = run_config(scenario) | {"round.count": 5, "run.out": str(tmp_path / "runs")}
    config["data.path"] = str(tiny_federation)
    found = one_run(config, tiny_federation, tmp_path / "study" / "holders", hopeless)
    assert (found["state"], found["code"]) == ("pruned", "tune.pruned")
    assert found["curve"][-1] == asked[0]
    assert asked[0][0] == 1
    with Ledger.open(ledgers(tmp_path)[0], create=False) as ledger:
        assert sum(step.steps for step in ledger.steps()) == 1


def test_less_of_an_error_is_a_larger_measure() -> None:
    assert of_one._measured({"metric": "token-error", "token-error": 0.2, "loss": 3.0}) == -0.2
    assert of_one._measured({"metric": "perplexity", "perplexity": 9.0, "loss": 3.0}) == -3.0
    assert of_one._measured({"metric": "accuracy", "accuracy": 0.7, "loss": 3.0}) == 0.7


def test_what_was_not_measured_in_a_round_is_not_made_up_for(tmp_path: Path) -> None:
    told = [(0, "bleu", 1.0), (1, "perplexity", 9.0), (1, "bleu", 4.0)]
    for count, measure, curve in ((3, 4.0, [(0, 1.0), (1, 4.0)]), (2, None, [(0, 1.0)])):
        rows = [
            {"event": "evaluation", "round": number, "metric": name, name: value, "loss": 2.0}
            for number, name, value in told[:count]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
        facts = of_one._facts(tmp_path)
        assert (facts["measure"], facts["curve"]) == (measure, curve)


@pytest.mark.usefixtures("made_up")
def test_the_median_ends_trials(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRIALS_BEFORE_PRUNING", 1)
    found = tune(search(scenario, tmp_path, trials=2))
    assert [t.state for t in found.trials] == ["complete", "pruned"]
    assert found.best.number == 0


def test_a_trial_that_fails_is_told_by_its_code_and_the_search_goes_on(
    scenario: Scenario, tmp_path: Path
) -> None:
    found = tune(search(scenario, tmp_path, "lora.layers=1,9", trials=2, sampler="grid"))
    assert sorted(t.state for t in found.trials) == ["complete", "failed"]
    assert found.best.values == {"lora.layers": 1}
    assert "failed: settings.range" in {row[1] for row in table(found)[1]}
    only = replace(found, trials=tuple(t for t in found.trials if t.state == "failed"))
    with pytest.raises(ConfideError, match=r"tune\.no-trial.*settings\.range"):
        _ = only.best


def test_base_models_are_tried_each_in_a_process_of_its_own(
    scenario: Scenario, tiny_model: Path, tmp_path: Path
) -> None:
    space = f"model.name={tiny_model},{tiny.save_model(tmp_path / 'other')}"
    (found,) = tune(search(scenario, tmp_path, space, trials=1)).trials
    assert (found.state, found.facts["code"]) == ("complete", "")
    assert found.values == {"model.name": str(tiny_model)}
    assert found.facts["megabytes"] > 100
    assert found.facts["parameters"] > found.facts["trained"] > 0
    assert len(ledgers(tmp_path)) == 3


def test_base_models_stand_side_by_side_each_by_its_best_trial(
    scenario: Scenario, tmp_path: Path
) -> None:
    facts = {"seconds": 2.5, "megabytes": 812.0, "bytes_up": 4096, "bytes_down": 8192}
    runs = (
        ("a", 0.6, "complete"),
        ("b", 0.7, "complete"),
        ("b", 0.9, "pruned"),
        ("b", 0.8, "complete"),
    )
    trials = tuple(
        replace(trial(i, state, measure, parameters=10**6, **facts), values={"model.name": name})
        for i, (name, measure, state) in enumerate(runs)
    )
    chosen = search(scenario, tmp_path, "model.name=a,b")
    found = Outcome(search=chosen, trials=trials, epsilon=1.0, delta=DELTA)
    _, rows = models(found)
    figures = ["2.5", "812.0", "4,096", "8,192", "1,000,000"]
    assert rows == [["b", "0.800", "3", *figures], ["a", "0.600", "1", *figures]]
    assert [row[0] for row in table(found)[1]] == ["3", "1", "0", "2"]
    assert models(replace(found, search=search(scenario, tmp_path)))[1] == []


def test_the_best_trial_is_a_scenario_that_simulate_takes(
    scenario: Scenario, tmp_path: Path
) -> None:
    named = replace(scenario, name="mine").with_({"round.count": 7})
    chosen = search(named, tmp_path)
    found = Outcome(
        search=chosen,
        trials=(trial(0), trial(1, measure=0.7), trial(2, "pruned", 0.9), trial(3, "failed", None)),
        epsilon=3.0,
        delta=DELTA,
    )
    file = tmp_path / "tiny-tuned.toml"
    limit = named.with_({"federation.public-limit": 40})
    limited = replace(found, search=replace(chosen, scenario=limit))
    file.write_text(best_scenario(limited), encoding="utf-8")
    assert load_scenario(str(file)).text.public_limit == 40
    file.write_text(best_scenario(found), encoding="utf-8")
    loaded = load_scenario(str(file))
    assert (loaded.name, loaded.federation) == (named.name, named.federation)
    assert (loaded.text.source, loaded.text.holders) == ("nyt", 3)
    config = run_config(loaded)
    assert config["train.lr"] == 2.0
    assert config["round.count"] == 7
    assert config["run.out"] == "runs"
    kept = {"model.name", "task.labels", "privacy.noise-multiplier", "train.batch"}
    assert {key: config[key] for key in kept} == {key: scenario.config[key] for key in kept}
    from_flat(config)


@pytest.mark.parametrize("word", tiny.ODD_WORDS)
def test_the_best_trial_keeps_labels_of_any_characters(
    scenario: Scenario, tmp_path: Path, word: str
) -> None:
    """yoetz#208: a DEL or an emoji in a label made a file that tomllib refuses."""
    odd = replace(scenario, config={**scenario.config, "task.labels": f"{word.strip()},other"})
    best = Outcome(search=search(odd, tmp_path), trials=(trial(0),), epsilon=1.0, delta=DELTA)
    file = tmp_path / "odd.toml"
    file.write_text(best_scenario(best), encoding="utf-8", newline="\n")
    assert load_scenario(str(file)).config["task.labels"] == f"{word.strip()},other"


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(
    scenario: Scenario, tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>"
    space = tuple(parse_space([f"model.name={hostile},b", "train.lr=0.1..10 log"], scenario))
    trials = tuple(
        replace(t, values={"model.name": name, "train.lr": 1.0 + t.number})
        for t, name in (
            (trial(0, seconds=1.5, megabytes=812.0), hostile),
            (trial(1, "pruned", 0.4), "b"),
            (trial(2, "failed", None, code="model.missing"), "b"),
        )
    )
    chosen = Search(scenario=scenario, space=space, folder=tmp_path)
    source = render(Outcome(search=chosen, trials=trials, epsilon=2.0, delta=DELTA))
    assert hostile not in source
    assert "&lt;script&gt;" in source
    assert not re.search(r"https?:|url\(|@import|<script|<img|<link| src=", source)
    assert "default-src 'none'" in source
    assert source.count('class="done"') == source.count('class="cut"') == 3  # history, two slices
    assert "failed: model.missing" in source
    assert "flatters" in source


@pytest.mark.usefixtures("made_up")
def test_the_command_leaves_a_page_and_a_scenario(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(tomli_w.dumps(by_room({**scenario.config, "run.name": "mine"})))
    monkeypatch.chdir(tmp_path)
    options = [str(file), "--space", "train.lr=1,2", "--sampler", "grid"]
    done = CliRunner().invoke(build_app(), ["tune", *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "cost no privacy" in done.stdout
    folder = Path("runs") / "tune-mine"
    assert "Search: mine" in (folder / "search.html").read_text(encoding="utf-8")
    assert load_scenario(str(folder / "mine-tuned.toml")).config["train.lr"] in (1.0, 2.0)
    again = CliRunner().invoke(build_app(), ["tune", *options, "--json"], catch_exceptions=False)
    told = json.loads(again.stdout)
    assert (told["trials"], told["points"], told["measure"]) == (2, 2, 1.0)
    assert told["scenario"] == str(folder / "mine-tuned.toml")
    part = [*options, "--trials", "1", "--out", "part"]
    some = CliRunner().invoke(build_app(), ["tune", *part], catch_exceptions=False)
    assert "1 of the grid's 2 points" in some.stdout


def test_a_search_without_noise_says_so(scenario: Scenario, tmp_path: Path) -> None:
    config = {**scenario.config, "privacy.trust": "off", "privacy.noise-multiplier": "auto"}
    chosen = search(replace(scenario, config=config), tmp_path)
    told = cost_sentence(Outcome(search=chosen, trials=(trial(0),), epsilon=9e9, delta=DELTA))
    assert "NOT DIFFERENTIALLY PRIVATE" in told


def test_a_missing_extra_says_what_to_install(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfideError, match=r"extra\.missing.*pip install 'confide\[tune\]'"):
        tune(search(scenario, tmp_path))


def test_an_unknown_sampler_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"tune\.sampler.*Did you mean 'tpe'"):
        tune(search(scenario, tmp_path, sampler="tpee"))
