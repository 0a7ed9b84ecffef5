"""A run that counts its classes first and measures at its holders last, from start to report."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from confide.client.guard.policy import SIMULATION
from confide.common.errors import ConfideError
from confide.common.plans import plan_of, steps_of_sums
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Ledger
from confide.common.settings import from_flat
from confide.common.wire.messages import Refusal, Reply, TrainRequest
from confide.server.report.build import build_report
from confide.server.report.html import render
from confide.server.report.terminal import show
from confide.server.report.verify import verify_run
from confide.server.run import run
from confide.server.sums import COUNTED_FILE
from tests import tiny
from tests.server.federated import Transport, config, events, holders, only_folder

NOISE, EPSILON, DELTA, RARE, COMMON = 2.0, 6.0, 1e-3, 4, 40


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three holders, each with ten times as many of one class as of the other."""
    folder = tiny.save_federation(tmp_path_factory.mktemp("imbalanced"))
    for seed, path in enumerate(sorted(folder.glob("holder-*.jsonl"))):
        rows = tiny.rows(400, seed=seed)
        chosen = [row for row in rows if row["label"] == "negative"][:COMMON]
        tiny.write_jsonl(path, chosen + [r for r in rows if r["label"] == "positive"][:RARE])
    return folder


class Place:
    """A run with its holders' ledgers in its own folder, as a simulation has them."""

    def __init__(self, model: Path, data: Path, out: Path, **changes: Any) -> None:
        self.out, self.ledgers = out / "runs", out / "ledgers"
        wanted = {
            "privacy__noise_multiplier": "auto",
            "privacy__epsilon": EPSILON,
            "privacy__delta": DELTA,
            "privacy__sum_noise": NOISE,
            "train__batch": 100,
            "task__class_weights": "counted",
            "round__holder_metric": "accuracy",
        }
        self.config = config(model, data, self.out, **(wanted | changes))
        self.transport = Spoiled(holders(data, self.ledgers))

    def run(self) -> Path:
        folder = run(self.config, self.transport).path
        if not (folder / "holders").exists():
            self.ledgers.rename(folder / "holders")
        return folder


class Spoiled(Transport):
    """``silent`` nodes give no answer to the task of that number."""

    silent: tuple[tuple[int, int], ...] = ()

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        lost = Refusal(holder="", task_hash=task.hash, code="transport.no-answer")
        return {n: lost if (n, task.round) in self.silent else r for n, r in replies.items()}


@pytest.fixture(scope="module")
def done(
    tiny_model: Path, imbalanced: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, Path]:
    place = Place(tiny_model, imbalanced, tmp_path_factory.mktemp("done"))
    return place, place.run()


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def test_weights_are_counted_first_and_travel_from_the_first_round_on(
    done: tuple[Place, Path],
) -> None:
    place, folder = done
    numbers = [task.round for task in place.transport.tasks]
    assert numbers == [0, 1, 2, 3]
    sent = [task.settings["task.class-weights"] for task in place.transport.tasks]
    assert sent[0] == "counted"
    assert len(set(sent[1:])) == 1
    common, rare = from_flat(place.config | {"task.class-weights": sent[1]}).task.weights
    # 120 and 12 with noise of 3.5: a rare class counts more, by about ten times.
    assert 3 < rare / common < 40
    (first, last) = events(folder, "sum")
    assert first["gave"] == {"task.class-weights": sent[1]}
    assert first["totals"] != [3 * COMMON, 3 * RARE]
    assert abs(first["totals"][0] - 3 * COMMON) < 6 * first["noise_std"]
    assert last["of"] == "accuracy"
    assert 0 <= last["value"] <= 1


def test_steps_and_sums_together_spend_the_epsilon_of_the_run(done: tuple[Place, Path]) -> None:
    place, folder = done
    settings = from_flat(place.config)
    plan = plan_of(settings)
    for name in ("holder-00", "holder-01", "holder-02"):
        with Ledger.open(folder / "holders" / name / "ledger.sqlite", create=False) as ledger:
            whole = (plan.steps(2), *steps_of_sums(settings))
            assert ledger.epsilon(DELTA) == epsilon_pld(whole, DELTA)
            assert 0.995 * EPSILON < ledger.epsilon(DELTA) <= EPSILON
            assert ledger.charged(folder.name) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_the_report_holds_the_sums_and_its_checks_pass(done: tuple[Place, Path]) -> None:
    told = report(done[1])
    assert [c["name"] for c in told["checks"] if c["hard"] and c["state"] == "failed"] == []
    assert told["claim"]["private"]
    assert 0.995 * EPSILON < told["claim"]["epsilon"] <= EPSILON
    assert [(row["rounds"], row["sums"]) for row in told["holders"]] == [(2, 2)] * 3
    assert [line["of"] for line in told["sums"]] == ["classes", "accuracy"]
    accounted = [thing["what"] for thing in told["released"]["accounted"]]
    assert len(accounted) == 3
    assert "how many of each class there are" in accounted[1]
    assert "how many the final adapter gets right" in accounted[2]


def test_the_page_says_what_was_counted_and_that_the_metric_is_of_known_text(
    done: tuple[Place, Path],
) -> None:
    told, screen = report(done[1]), io.StringIO()
    show(told, Console(file=screen, width=1000))
    for shown in (render(told), screen.getvalue()):
        assert "Classes were counted before the first round, by noisy sums of 3 holders" in shown
        assert "on the text that they trained on, so no measure of new text" in shown
        assert "standard error" in shown


def test_the_report_is_verified_from_the_ledgers_alone(done: tuple[Place, Path]) -> None:
    verdict = verify_run(done[1])
    assert verdict.differences == ()
    assert all(holder.checked for holder in verdict.holders)


def test_a_report_that_leaves_out_a_sum_is_found_out(
    done: tuple[Place, Path], tmp_path: Path
) -> None:
    folder = tmp_path / done[1].name
    shutil.copytree(done[1], folder)
    told = report(done[1])
    row = told["holders"][0]
    row["events"] = [e for e in row["events"] if e["noise_multiplier"] != NOISE]
    (folder / "report.json").write_text(json.dumps(told), encoding="utf-8")
    assert any("holder-00 / events" in text for text in verify_run(folder).differences)
    row["sums"] = 3
    (folder / "report.json").write_text(json.dumps(told), encoding="utf-8")
    assert any("holder-00 / sums" in text for text in verify_run(folder).differences)


def test_what_a_silent_holder_may_have_charged_for_a_sum_is_counted(
    tiny_model: Path, imbalanced: Path, tmp_path: Path
) -> None:
    place = Place(tiny_model, imbalanced, tmp_path, privacy__noise_multiplier=8.0)
    place.transport.silent = ((1, 3),)
    folder = run(place.config, place.transport).path  # the ledgers stay with the holders
    told = build_report(folder, prv=False)
    by_name = {row["name"]: row for row in told["holders"]}
    assert by_name["holder-01"]["sums"] == 1
    sums = [e["steps"] for e in by_name["holder-01"]["events"] if e["noise_multiplier"] == NOISE]
    assert sums == [2]
    assert told["faults"] == [{"round": 3, "holder": "node-1", "code": "transport.no-answer"}]
    assert by_name["holder-01"]["epsilon_pld"] == by_name["holder-00"]["epsilon_pld"]


def test_a_run_that_ends_during_its_count_is_resumed_with_the_same_bytes(
    tiny_model: Path, imbalanced: Path, tmp_path: Path
) -> None:
    place = Place(tiny_model, imbalanced, tmp_path)
    place.transport.silent = ((1, 0), (2, 0))
    with pytest.raises(ConfideError) as stopped:
        run(place.config, place.transport)
    assert stopped.value.code == "run.no-count"
    folder = only_folder(place.out)
    assert not (folder / COUNTED_FILE).exists()
    (line,) = events(folder, "sum")
    assert (line["abandoned"], len(line["accepted"])) == (True, 1)
    place.transport.silent = ()
    place.config["run.resume"] = str(folder)
    run(place.config, place.transport)
    hashes = [task.hash for task in place.transport.tasks if task.round == 0]
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    assert booked(place) == [1 + 2 * 4] * 3  # count, two rounds, metric: charged and released once
    kept = (folder / COUNTED_FILE).read_text(encoding="utf-8")
    run(place.config, place.transport)  # once more: nobody counts, and the metric is the same
    assert sum(task.round == 0 for task in place.transport.tasks) == 2
    assert (folder / COUNTED_FILE).read_text(encoding="utf-8") == kept
    first, again = [line for line in events(folder, "sum") if line["of"] == "accuracy"]
    assert first == again
    assert booked(place) == [1 + 2 * 4] * 3
    assert {row["sums"] for row in report(folder)["holders"]} == {2}


def booked(place: Place) -> list[int]:
    """How many entries each ledger has."""
    counts = []
    for path in place.ledgers.glob("*/ledger.sqlite"):
        with sqlite3.connect(path) as sql:
            counts += [count for (count,) in sql.execute("SELECT count(*) FROM entries")]
    return counts


def test_without_noise_sums_are_exact_and_nothing_is_promised(
    tiny_model: Path, imbalanced: Path, tmp_path: Path
) -> None:
    place = Place(tiny_model, imbalanced, tmp_path, privacy__trust="off")
    folder = place.run()
    first, last = events(folder, "sum")
    assert first["totals"] == [3 * COMMON, 3 * RARE]
    assert first["gave"] == {"task.class-weights": "counted 0.55,5.5"}
    assert sum(last["totals"]) == 3 * (COMMON + RARE)
    told = report(folder)
    assert not told["claim"]["private"]
    assert told["released"]["accounted"] == []
    assert "NOT PRIVATE" in render(told)


def test_a_holder_that_refuses_sums_trains_with_the_others(
    tiny_model: Path, imbalanced: Path, tmp_path: Path
) -> None:
    place = Place(tiny_model, imbalanced, tmp_path)
    refusing = dataclasses.replace(SIMULATION, allow_sums=False)
    members = holders(imbalanced, place.ledgers)[:2]
    members += holders(imbalanced, place.ledgers, refusing)[2:]
    place.transport = Spoiled(members)
    folder = place.run()
    for line in events(folder, "sum"):
        assert line["left_out"] == [{"holder": "holder-02", "code": "policy.allow-sums"}]
    assert [len(line["accepted"]) for line in events(folder, "round")] == [3, 3]
    told = report(folder)
    assert told["claim"]["private"]
    assert {row["name"]: row["sums"] for row in told["holders"]}["holder-02"] == 0
    assert verify_run(folder).differences == ()
