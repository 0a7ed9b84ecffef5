"""The rate of a round and the end of a run, by number and public loss alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from confide.common.settings import TrainSpec, from_flat
from confide.server.aggregation.optimizer import best_round, is_done, rate_of
from confide.server.checkpoint import load_checkpoint
from confide.server.predict import evaluate_run
from confide.server.run import run
from tests import tiny
from tests.server import federated

LR, ROUNDS = 0.8, 8


def rates(losses: list[float] | None = None, **changes: Any) -> list[float]:
    train = TrainSpec(lr=LR, **changes)
    return [rate_of(train, n, ROUNDS, losses or []) / LR for n in range(1, ROUNDS + 1)]


def test_a_constant_rate_is_the_very_number() -> None:
    assert rate_of(TrainSpec(lr=0.1), 3, 5, []) == 0.1


def test_a_linear_rate_falls_evenly_and_never_to_nothing() -> None:
    assert rates(schedule="linear") == pytest.approx([n / 8 for n in range(8, 0, -1)])


def test_a_cosine_falls_slowly_at_both_ends() -> None:
    found = rates(schedule="cosine")
    expected = [0.5 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]
    assert found == pytest.approx(expected)
    assert found[-1] > 0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_first_rounds_rise_and_the_rest_is_the_schedule(schedule: str) -> None:
    found = rates(schedule=schedule, warmup=3)
    assert found[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    train = TrainSpec(lr=LR, schedule=schedule)
    assert found[3:] == pytest.approx([rate_of(train, n, 5, []) / LR for n in range(1, 6)])


def test_a_plateau_halves_the_rate_each_time_the_public_loss_stands_still() -> None:
    losses = [1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.71, math.nan, 0.6]
    train = TrainSpec(lr=LR, schedule="plateau")
    found = [rate_of(train, n, 9, losses[:n]) / LR for n in range(1, 10)]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_plateau_goes_on_from_where_the_warm_up_ended() -> None:
    losses = [1.0, 0.9, 0.9, 0.9, 0.8]
    train = TrainSpec(lr=LR, schedule="plateau", warmup=2)
    found = [rate_of(train, n, 5, losses[:n]) / LR for n in range(1, 6)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.5])


def test_a_run_is_done_when_nothing_has_become_better() -> None:
    losses = [1.0, 0.9, 0.91, 0.92]
    assert [is_done(losses[:n], 2) for n in range(5)] == [False, False, False, False, True]
    assert not is_done(losses * 9, 0)
    assert is_done([math.nan, math.nan], 2)


def trained(
    tiny_model: Path, tiny_federation: Path, out: Path, **changes: Any
) -> tuple[Any, federated.Transport]:
    config = federated.config(tiny_model, tiny_federation, out / "runs", **changes)
    transport = federated.Transport(federated.holders(tiny_federation, out / "ledgers"))
    return run(config, transport), transport


def test_with_local_steps_the_rate_travels_in_the_rounds_own_settings(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    changes = {"round__mode": "steps", "train__schedule": "linear", "round__count": 4}
    folder, transport = trained(tiny_model, tiny_federation, tmp_path, **changes)
    sent = [task.settings["train.lr"] for task in transport.tasks]
    assert sent == [1.0, 0.75, 0.5, 0.25]
    assert all(len(row["accepted"]) == 3 for row in federated.events(folder, "round"))


def test_a_gradient_is_asked_for_by_the_same_settings_in_every_round(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    _, transport = trained(tiny_model, tiny_federation, tmp_path, train__schedule="linear")
    assert {task.settings["train.lr"] for task in transport.tasks} == {1.0}


def test_a_run_ends_early_and_its_report_counts_the_rounds(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    # A rate so small that nothing changes.
    changes = {"round__count": 9, "round__patience": 2, "train__lr": 1e-9}
    folder, transport = trained(tiny_model, tiny_federation, tmp_path, **changes)
    assert len(transport.tasks) == 2
    assert "2 of 9 rounds" in (folder.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0: 0.1, 1: 0.9, 2: 0.8, 3: 0.85}, 2),
        ({0: 0.1, 1: 0.9, 3: 0.9, 4: 0.95}, 1),
        ({0: 0.7, 1: math.nan, 2: 0.9}, 2),
        ({0: 0.7, 1: math.nan, 2: math.nan}, 2),
        ({0: 0.7, 1: math.inf}, 1),
        ({0: 0.7}, 0),
    ],
)
def test_the_best_round_has_the_least_loss(losses: dict[int, float], best: int) -> None:
    assert best_round(losses) == best


# The loss goes up, down, and up again: 7 is the best of 8 rounds.
UP_AND_DOWN = {"round__count": 8, "round__patience": 5, "train__lr": 2.0}
# It goes up and up: the first of 3 is the best, and the run ends early.
EARLY = {"round__count": 9, "round__patience": 3, "train__lr": 0.3}
WEIGHTS = "adapter/adapter_model.safetensors"


def losses_of(folder: Any) -> dict[int, float]:
    return {e["round"]: e["loss"] for e in federated.events(folder, "evaluation")}


@pytest.fixture(scope="module")
def whole(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, federated.Transport]:
    """A run whose best adapter is not its last one."""
    place = tmp_path_factory.mktemp("whole")
    return trained(tiny_model, tiny_federation, place, **UP_AND_DOWN)


def test_the_best_adapter_is_kept_and_the_run_says_whose_it_is(
    whole: tuple[Any, federated.Transport],
) -> None:
    folder, transport = whole
    losses = losses_of(folder)
    best = best_round(losses)
    assert (best, max(losses)) == (7, 8)
    (kept,) = federated.events(folder, "kept")
    assert kept["round"] == best
    assert evaluate_run(folder.path).loss == pytest.approx(losses[best], abs=1e-5)
    utility = json.loads((folder.path / "report.json").read_text())["utility"]
    assert utility["kept"] == best
    assert utility["after"]["loss"] == losses[best] != losses[8]
    said = f"The adapter after round {best} is kept"
    assert said in (folder.path / "report.html").read_text()
    assert said in (folder.path / "adapter" / "README.md").read_text()
    # Each round goes on from the last adapter, not from the best.
    assert len({task.adapter for task in transport.tasks}) == len(transport.tasks)


@pytest.fixture(scope="module")
def early(tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run that ends early."""
    return trained(tiny_model, tiny_federation, tmp_path_factory.mktemp("early"), **EARLY)[0]


def test_a_run_that_ends_early_keeps_the_best_of_its_rounds(early: Any) -> None:
    folder = early
    losses = losses_of(folder)
    assert (best_round(losses), max(losses)) == (1, 3)
    assert [e["round"] for e in federated.events(folder, "kept")] == [1]
    assert evaluate_run(folder.path).loss == pytest.approx(losses[1], abs=1e-5)


def test_without_patience_the_last_adapter_is_kept(
    whole: tuple[Any, federated.Transport], tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    changes = {**UP_AND_DOWN, "round__patience": 0}
    folder, _ = trained(tiny_model, tiny_federation, tmp_path, **changes)
    losses = losses_of(folder)
    assert losses == losses_of(whole[0])
    assert federated.events(folder, "kept") == []
    assert evaluate_run(folder.path).loss == pytest.approx(losses[8], abs=1e-5)
    assert json.loads((folder.path / "report.json").read_text())["utility"]["kept"] is None


@pytest.mark.parametrize(("changes", "dies"), [(UP_AND_DOWN, 8), (EARLY, 3)])
def test_the_best_adapter_outlives_a_killed_run(
    whole: tuple[Any, federated.Transport],
    early: Any,
    tiny_model: Path,
    tiny_federation: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    dies: int,
) -> None:
    """In the second the best one was made two rounds before: only the checkpoint has it."""
    expected = early if changes is EARLY else whole[0]

    class Dies(federated.Transport):
        def spoil(self, task: Any, replies: Any) -> Any:
            if task.round == dies:
                raise KeyboardInterrupt
            return replies

    config = federated.config(tiny_model, tiny_federation, tmp_path / "runs", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(config, Dies(federated.holders(tiny_federation, tmp_path / "ledgers")))
    resumed = {**config, "run.resume": str(federated.only_folder(tmp_path / "runs"))}
    again = federated.Transport(federated.holders(tiny_federation, tmp_path / "ledgers"))
    folder = run(resumed, again)
    assert (folder.path / WEIGHTS).read_bytes() == (expected.path / WEIGHTS).read_bytes()
    assert losses_of(folder) == losses_of(expected)


def test_the_text_of_the_kept_adapter_is_what_is_measured_at_the_end(tmp_path: Path) -> None:
    model = tiny.save_task_model(tmp_path / "model", "seq2seq")
    data = tiny.save_task_federation(tmp_path / "data", "seq2seq")
    changes = {"round__count": 4, "round__patience": 3, "train__lr": 40.0}
    folder, _ = trained(model, data, tmp_path, **tiny.TASKS["seq2seq"], **changes)
    (kept,) = federated.events(folder, "kept")
    told = federated.events(folder, "evaluation")
    assert (told[-1]["round"], told[-1]["metric"]) == (kept["round"], "rougeL")
    assert kept["round"] < max(e["round"] for e in told)
    utility = json.loads((folder.path / "report.json").read_text())["utility"]
    assert utility["metric"] == "rougeL"
    assert utility["after"]["rougeL"] == told[-1]["rougeL"]


class Killed(federated.Transport):
    """Dies in a round."""

    def spoil(self, task: Any, replies: Any) -> Any:
        if task.round == 5:
            raise KeyboardInterrupt
        return replies


def test_a_plateau_goes_on_where_a_killed_run_stopped(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    changes = {
        "round__mode": "steps",
        "round__count": 7,
        "train__schedule": "plateau",
        "train__lr": 3.0,
    }
    whole, transport = trained(tiny_model, tiny_federation, tmp_path / "whole", **changes)
    rates_of_all = [task.settings["train.lr"] for task in transport.tasks]
    assert len(set(rates_of_all)) > 1, "the loss must stand still at some time"
    config = federated.config(tiny_model, tiny_federation, tmp_path / "cut" / "runs", **changes)
    members = federated.holders(tiny_federation, tmp_path / "cut" / "ledgers")
    with pytest.raises(KeyboardInterrupt):
        run(config, Killed(members))
    resumed = {**config, "run.resume": str(federated.only_folder(tmp_path / "cut" / "runs"))}
    again = federated.Transport(federated.holders(tiny_federation, tmp_path / "cut" / "ledgers"))
    folder = run(resumed, again)
    assert [task.settings["train.lr"] for task in again.tasks] == rates_of_all[4:]
    weights = "adapter/adapter_model.safetensors"
    assert (folder.path / weights).read_bytes() == (whole.path / weights).read_bytes()


class Abandons(federated.Transport):
    """Nobody but one holder answers in round 2, and the coordinator dies in round 3 if it is to."""

    dies = False

    def spoil(self, task: Any, replies: Any) -> Any:
        if task.round == 2:
            return dict(list(replies.items())[:1])
        if task.round == 3 and self.dies:
            raise KeyboardInterrupt
        return replies


@pytest.mark.parametrize(
    "changes", [{"train__schedule": "plateau", "round__mode": "steps"}, {"round__patience": 2}]
)
def test_an_abandoned_round_before_a_kill_is_no_loss_that_stood_still(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes |= {"round__count": 6, "round__min_holders": 2, "train__lr": 1e-7}
    runs = []
    for name in ("whole", "cut"):
        place = tmp_path / name
        config = federated.config(tiny_model, tiny_federation, place / "runs", **changes)
        transport = Abandons(federated.holders(tiny_federation, place / "ledgers"))
        transport.dies = name == "cut"
        if transport.dies:
            with pytest.raises(KeyboardInterrupt):
                run(config, transport)
            config["run.resume"] = str(federated.only_folder(place / "runs"))
            transport = Abandons(federated.holders(tiny_federation, place / "ledgers"))
        runs.append(run(config, transport))
    whole, cut = runs
    assert [e["abandoned"] for e in federated.events(whole, "round")][:3] == [False, True, False]
    assert (cut.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()
    rounds = [[e["round"] for e in federated.events(folder, "round")] for folder in runs]
    assert rounds[0] == rounds[1]


def test_a_killed_run_still_knows_how_many_rounds_were_abandoned(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Silent(federated.Transport):
        dies = True

        def spoil(self, task: Any, replies: Any) -> Any:
            if task.round == 4 and self.dies:
                raise KeyboardInterrupt
            return replies if task.round == 1 else {}

    config = federated.config(tiny_model, tiny_federation, tmp_path / "runs", round__count=9)
    transport = Silent(federated.holders(tiny_federation, tmp_path / "ledgers"))
    with pytest.raises(KeyboardInterrupt):
        run(config, transport)
    config["run.resume"] = str(federated.only_folder(tmp_path / "runs"))
    again = Silent(federated.holders(tiny_federation, tmp_path / "ledgers"))
    again.dies = False
    folder = run(config, again)
    assert [e["round"] for e in federated.events(folder, "round")] == [1, 2, 3, 4]


def test_the_checkpoint_keeps_the_public_losses(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    from confide.common.models.loading import load_model

    folder, _ = trained(tiny_model, tiny_federation, tmp_path)
    settings = from_flat(federated.config(tiny_model, tiny_federation, tmp_path / "runs"))
    found = load_checkpoint(folder, load_model(settings).schema).losses
    told = {e["round"]: e["loss"] for e in federated.events(folder, "evaluation")}
    assert {number: round(loss, 6) for number, loss in found.items()} == told
