"""The utility table: intervals, rows, rates chosen on other records, and a whole small one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

from confide.common.adapter.schema import WEIGHTS_FILE
from confide.common.errors import ConfideError
from confide.common.methods import METHODS
from confide.common.models import batches
from confide.common.plans import plan_of
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from confide.server.run import run
from confide.server.run_folder import RunFolder
from confide.simulations.benchmarks import places
from confide.simulations.benchmarks import utility as bench
from confide.simulations.benchmarks.places import Place, half_of, that_fit
from confide.simulations.benchmarks.results import Measured, Results, markdown
from confide.simulations.benchmarks.utility import TRUSTS, Table, compared_methods, rates, utility
from confide.simulations.inprocess import federation
from confide.simulations.partition import prepare_federation
from confide.simulations.scenario import Scenario, changed, load_scenario
from confide.simulations.sources import Split
from tests import tiny

BARE = [name for name, method in METHODS.items() if method.noise.verdict == "refused"]


@pytest.fixture(scope="module")
def scenario(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scenario:
    """One round on the tiny model."""
    out = tmp_path_factory.mktemp("utility")
    config = tiny.config(tiny_model, tiny_federation, out, round__count=1)
    return Scenario(
        name="tiny", config={"federation.source": "x", "federation.holders": 3, **config}
    )


def table(scenario: Scenario, folder: Path, **changes: Any) -> Table:
    own = Place(scenario=scenario, partition="own", folder=folder)
    plain = Table(
        scenario=scenario, methods=["ffa", "head"], epsilons=[None, 3.0], places=[own], seeds=2
    )
    return replace(plain, **changes)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The settings of every run that is really done, which then does nothing but answer."""
    done: list[dict[str, Any]] = []

    def fake(config: dict[str, Any], where: Place, part: str) -> dict[str, Any]:
        told = {"where": where.partition, "of": where.scenario.name, "pooled": where.pooled}
        done.append({**config, "part": part, **told})
        rate = float(config["train.lr"])
        if rate > 5:
            raise ConfideError("adapter.not-finite", "It ran away.")
        return {
            "metric": "accuracy",
            "before": 0.5,
            "value": min(rate, 2.0),  # 2 and 5 are alike
            "loss": rate,
            "others": {},
            "bytes_up": 1,
            "bytes_down": 2,
        }

    monkeypatch.setattr(bench, "_run", fake)
    return done


def test_methods_for_runs_without_noise_have_no_line_at_an_epsilon_and_that_is_said(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    said: list[str] = []
    asked = table(scenario, tiny_federation, methods=["fedex", "flora", "ffa"], seeds=1)
    rows = utility(asked, Results(), said.append)
    assert [(r.method, r.epsilon) for r in rows] == [
        ("fedex", None),
        ("flora", None),
        ("ffa", None),
        ("ffa", 3.0),
    ]
    assert [line for line in said if "left out" in line] == [
        "fedex, epsilon 3.0: left out, it is for runs without noise",
        "flora, epsilon 3.0: left out, it is for runs without noise",
    ]


def test_whom_one_trusts_is_a_line_of_its_own(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    asked = table(
        scenario, tiny_federation, methods=["head"], trusts=TRUSTS, seeds=1, epsilons=[3.0]
    )
    rows = utility(asked, Results())
    assert [row.method for row in rows] == ["head", "head, distributed", "head, central"]
    local, distributed, central = runs
    assert [run["pooled"] for run in runs] == [False, False, True]
    assert local["privacy.trust"] == "local"
    assert distributed["privacy.trust"] == "distributed"
    assert (distributed["privacy.colluding"], distributed["round.min-holders"]) == (1, 3)
    assert (central["round.min-holders"], central["train.batch"]) == (1, 3 * 32)


def test_a_scenario_may_name_how_many_collude(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    named = replace(scenario, config={**scenario.config, "privacy.colluding": 2})
    asked = table(
        named, tiny_federation, methods=["head"], trusts=["distributed"], seeds=1, epsilons=[3.0]
    )
    utility(asked, Results())
    assert [run["privacy.colluding"] for run in runs] == [2]


def test_central_and_distributed_runs_are_runs(scenario: Scenario, tiny_federation: Path) -> None:
    asked = table(
        scenario, tiny_federation, methods=["head"], trusts=TRUSTS[1:], seeds=1, epsilons=[3.0]
    )
    distributed, central = utility(asked, Results())
    assert not distributed.failed
    assert not central.failed
    assert distributed.bytes_up > central.bytes_up


def test_rates_may_be_chosen_on_another_text_with_all_of_its_public_records(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    other = replace(scenario, name="other")
    elsewhere = [Place(scenario=other, partition="own", folder=tiny_federation)]
    asked = table(scenario, tiny_federation, methods=["head"], seeds=1, epsilons=[3.0], trials=3)
    chooses = replace(asked, scenario=other, places=elsewhere, whole=True)
    (row,) = utility(replace(asked, other=chooses), Results())
    assert {run["part"] for run in runs} == {"all"}
    assert [run["of"] for run in runs] == ["other"] * (len(runs) - 1) + ["tiny"]
    assert row.rate == runs[-1]["train.lr"]


def test_a_centre_takes_the_step_of_the_federation_with_the_noise_of_one(
    scenario: Scenario, tiny_federation: Path
) -> None:
    """What stands for a trusted centre is central DP-SGD: the same sum over the same number, and
    z C of noise on it, which the federation's holders have each."""
    where = Place(scenario=scenario, partition="own", folder=tiny_federation)
    asked = table(scenario, tiny_federation)
    cell = bench._Cell(asked, where, "head", 3.0, Results(), print)
    own, centre = (replace(cell, trust=trust).config(0) for trust in ("local", "central"))
    bare = {"privacy.trust": "off"}
    federated = bench._run({**own, **bare}, where, "all")
    pooled = bench._run({**centre, **bare}, replace(where, pooled=True), "all")
    assert pooled["loss"] == pytest.approx(federated["loss"], abs=2e-6)
    assert pooled["loss"] != pytest.approx(math.log(2), abs=1e-3)  # it did learn
    assert plan_of(from_flat(centre)) == plan_of(from_flat(own))


def test_no_trust_has_a_line_that_says_nothing(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    """Without noise all are alike, and some methods make more of the updates than their sum."""
    more = next(name for name, one in METHODS.items() if not one.summed and name not in BARE)
    said: list[str] = []
    asked = table(scenario, tiny_federation, methods=[more], trusts=TRUSTS, seeds=1)
    rows = utility(asked, Results(), said.append)
    assert [(row.method, row.epsilon) for row in rows] == [
        (more, None),
        (more, 3.0),
        (f"{more}, central", 3.0),
    ]
    assert sum("nobody has to be trusted" in line for line in said) == 2
    assert f"{more}, distributed, epsilon 3.0: left out" in "\n".join(said)


@pytest.mark.parametrize(
    ("name", "trials", "named"), [("r8", 5, "train.batch=320"), ("movies", 0, "--tune-rates 5")]
)
def test_a_rate_that_would_mean_something_else_is_refused(
    name: str, trials: int, named: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        places.check_rates(load_scenario(name), load_scenario("nyt"), trials)
    assert caught.value.code == "bench.rates"
    assert named in caught.value.hint


def test_a_method_of_several_ranks_has_a_line_only_where_ranks_differ_or_its_equal_has_none(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    said: list[str] = []

    def methods(folder: Path, *asked: str) -> list[str]:
        wanted = table(scenario, folder, methods=asked, epsilons=[None], seeds=1)
        return [row.method for row in utility(wanted, Results(), said.append)]

    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_federation, mixed)
    (mixed / "holder-01.policy.toml").write_text("max-rank = 1\n", encoding="utf-8")
    every = ("ffa", "hetlora", "fedsvd", "flexlora")
    assert methods(tiny_federation, *every) == ["ffa", "fedsvd"]
    assert [line.partition(": left out, ")[2] for line in said if "left out" in line] == [
        "where no holder's rank is smaller it is ffa",
        "where no holder's rank is smaller it is fedsvd",
    ]
    assert methods(tiny_federation, "hetlora", "fedsvd") == ["hetlora", "fedsvd"]
    assert methods(mixed, *every) == list(every)


def test_a_language_model_has_no_line_of_what_is_seen_in_a_head_alone(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    said: list[str] = []
    speaks = scenario.with_({"task.kind": "causal", "task.labels": "", "data.target": ""})
    asked = table(speaks, tiny_federation, methods=["ffa", "head", "fedsa"])
    rows = utility(replace(asked, epsilons=[None], seeds=1), Results(), said.append)
    assert [row.method for row in rows] == ["ffa"]
    assert [line.partition(": left out, ")[0] for line in said if "left out" in line] == [
        "head, epsilon off",
        "fedsa, epsilon off",
    ]


def test_every_method_of_the_table_is_one_that_settings_allow_where_it_is_run(
    scenario: Scenario, tiny_federation: Path
) -> None:
    for method in compared_methods():
        for epsilon in [None] if method in BARE else [None, 3.0]:
            cell = bench._Cell(
                table(scenario, tiny_federation),
                Place(scenario=scenario, partition="own", folder=tiny_federation),
                method,
                epsilon,
                Results(),
                lambda _: None,
            )
            allowed = from_flat(cell.config(0))
            assert (allowed.privacy.trust == "off") == (epsilon is None)
            assert method in (allowed.aggregate.method, allowed.lora.method)


def test_the_table_has_a_line_for_every_method_and_epsilon(
    scenario: Scenario, tiny_federation: Path
) -> None:
    rows = utility(table(scenario, tiny_federation), Results())
    assert [(r.method, r.epsilon, len(r.values)) for r in rows] == [
        ("ffa", None, 2),
        ("ffa", 3.0, 2),
        ("head", None, 2),
        ("head", 3.0, 2),
    ]
    assert rows[0].bytes_up > rows[2].bytes_up > 0
    assert rows[0].bytes_down == 0  # the seed gives what the first round begins with
    assert markdown(rows).count("\n") == 5
    assert "| no privacy |" in markdown(rows)


def test_the_rates_are_as_many_for_all_and_evenly_spaced_by_their_logarithm() -> None:
    assert rates(2.5, 0) == rates(2.5, 1) == [2.5]
    assert rates(8.0, 4) == [1.0, 4.0, 16.0, 64.0]
    assert rates(2.0, 5)[2] == 2.0


def test_a_rate_is_chosen_for_each_method_and_epsilon_on_records_that_are_not_reported(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    rows = utility(table(scenario, tiny_federation, trials=4, seeds=3), Results())
    # Of 0.125, 0.5, 2 and 8 the last one fails.
    assert [r.rate for r in rows] == [2.0] * 4
    trials = [r for r in runs if r["part"] == "choose"]
    reported = [r for r in runs if r["part"] == "report"]
    assert len(trials) == 4 * (4 + 2)
    assert len(reported) == 4 * 3
    assert {r["run.seed"] for r in trials}.isdisjoint({0, 1, 2})
    assert {(r["run.seed"], r["train.lr"]) for r in reported} == {(s, 2.0) for s in range(3)}


def test_the_two_best_rates_are_tried_twice_so_that_one_lucky_run_does_not_choose(
    scenario: Scenario,
    tiny_federation: Path,
    runs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = bench._run

    def lucky(config: Any, where: Place, part: str) -> dict[str, Any]:
        found = answer(config, where, part)
        first = config["run.seed"] == bench._TUNING_SEEDS[0]
        values = {0.125: 0.4, 0.5: 0.6, 1.0: 0.7, 4.0: 0.9 if first else 0.45}
        return {**found, "value": values[config["train.lr"]]}

    monkeypatch.setattr(bench, "_run", lucky)
    monkeypatch.setattr(bench, "rates", lambda *_: [0.125, 0.5, 1.0, 4.0])
    asked = {"trials": 4, "seeds": 1, "methods": ["ffa"], "epsilons": [3.0]}
    (only,) = utility(table(scenario, tiny_federation, **asked), Results())
    assert only.rate == 1.0
    trials = [(r["run.seed"], r["train.lr"]) for r in runs if r["part"] == "choose"]
    again = bench._TUNING_SEEDS[1]
    assert trials[4:] == [(again, 1.0), (again, 4.0)]


@pytest.mark.parametrize(("fails_from", "chosen"), [(2.0, 0.5), (0.1, 0.125)])
def test_a_rate_that_fails_the_second_time_is_not_chosen(
    fails_from: float,
    chosen: float,
    scenario: Scenario,
    tiny_federation: Path,
    runs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = bench._run

    def fails(config: Any, where: Place, part: str) -> dict[str, Any]:
        if config["run.seed"] == bench._TUNING_SEEDS[1] and config["train.lr"] >= fails_from:
            raise ConfideError("adapter.not-finite", "It ran away.")
        return answer(config, where, part)

    monkeypatch.setattr(bench, "_run", fails)
    asked = {"trials": 4, "seeds": 1, "methods": ["ffa"], "epsilons": [3.0]}
    # Of 0.125, 0.5, 2 and 8 the last one always fails.
    (only,) = utility(table(scenario, tiny_federation, **asked), Results())
    assert only.rate == chosen


def test_of_rates_that_are_alike_the_one_with_the_smaller_loss_is_chosen(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    wide = replace(scenario, config={**scenario.config, "train.lr": 4.0})
    (only,) = utility(
        table(wide, tiny_federation, trials=7, seeds=1, methods=["ffa"], epsilons=[3.0]), Results()
    )
    assert rates(4.0, 7)[2:4] == [2.0, 4.0]
    assert only.rate == 2.0


def test_a_method_that_fails_at_every_rate_has_a_line_that_says_so(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    wild = replace(scenario, config={**scenario.config, "train.lr": 100.0})
    (only,) = utility(
        table(wild, tiny_federation, trials=2, methods=["ffa"], epsilons=[3.0]), Results()
    )
    assert (only.rate, only.values) == (100.0, ())
    assert only.failed == ("adapter.not-finite",) * 2
    told = markdown([only]).splitlines()[-1]
    assert "| ffa | 3 | 100 | - | - | 0 (2 failed: adapter.not-finite) |" in told
    assert json.loads(json.dumps(only.to_json(), allow_nan=False))["mean"] is None


def test_a_run_that_fails_is_kept_and_the_table_goes_on(
    scenario: Scenario,
    tiny_federation: Path,
    tmp_path: Path,
    runs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = bench._run

    def fails(config: Any, where: Place, part: str) -> dict[str, Any]:
        found = answer(config, where, part)
        if (where.partition, config["run.seed"]) == ("other", 1):
            raise ConfideError("run.no-round", "Nobody answered.")
        return found

    monkeypatch.setattr(bench, "_run", fails)
    copy = shutil.copytree(tiny_federation, tmp_path / "copy")
    (copy / "holder-00.policy.toml").write_text("max-rank = 1\n", encoding="utf-8")
    both = [
        Place(scenario=scenario, partition="own", folder=tiny_federation),
        Place(scenario=scenario, partition="other", folder=copy),
    ]
    results = Results(tmp_path / "runs.jsonl")
    asked = table(scenario, tiny_federation, places=both, seeds=3, methods=["ffa"], epsilons=[3.0])
    own, other = utility(asked, results)
    assert (len(own.values), own.failed) == (3, ())
    assert (len(other.values), other.failed) == (2, ("run.no-round",))
    assert " | 2 (1 failed: run.no-round) | " in markdown([own, other])
    done = len(runs)
    assert utility(asked, results) == [own, other]
    assert len(runs) == done


def test_the_line_says_when_the_rate_is_the_largest_that_was_tried(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]]
) -> None:
    low = replace(scenario, config={**scenario.config, "train.lr": 0.1})
    asked = {"trials": 3, "seeds": 1, "methods": ["ffa"], "epsilons": [3.0]}
    (edge,) = utility(table(low, tiny_federation, **asked), Results())
    (inside,) = utility(table(scenario, tiny_federation, **{**asked, "trials": 5}), Results())
    assert (edge.rate, edge.at_edge) == (0.8, True)
    assert not inside.at_edge
    assert "| 0.8 (edge) |" in markdown([edge])


def test_a_holder_of_another_rank_is_another_place(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_federation, tmp_path / "copy")
    digests = []
    for limit in ("", "max-rank = 1\n", "max-rank = 2\n"):
        (copy / "holder-01.policy.toml").write_text(limit, encoding="utf-8")
        digests.append(Place(scenario=scenario, partition="own", folder=copy).digest("all"))
    assert len(set(digests)) == 3


def test_the_seconds_of_a_line_are_those_of_its_middle_run(scenario: Scenario) -> None:
    runs = [
        Measured(
            of=str(seed),
            scenario="s",
            partition="own",
            method="ffa",
            epsilon=None,
            seed=seed,
            rate=1.0,
            trial=False,
            metric="accuracy",
            others={},
            seconds=seconds,
        )
        for seed, seconds in enumerate((90.0, 10.0, 12.0))
    ]
    assert bench._row(runs, table(scenario, Path())).seconds == 12.0


def test_every_method_runs_with_rates_of_its_own_at_two_places(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path
) -> None:
    """The whole table, small, with the scenarios' momentum: nothing here is made up."""
    moved = {**scenario.config, "aggregate.optimizer": "momentum"}
    scenario = replace(scenario, config=moved)
    other = tiny.save_federation(tmp_path / "other", records=12)
    two = [
        Place(scenario=scenario, partition="iid", folder=tiny_federation),
        Place(scenario=scenario, partition="dirichlet", folder=other),
    ]
    asked = table(
        scenario, tiny_federation, places=two, trials=2, seeds=1, methods=list(compared_methods())
    )
    kept = Results(tmp_path / "runs.jsonl")
    rows = utility(asked, kept)
    bare = [m for m in compared_methods() if m not in ("hetlora", "flexlora")]
    noisy = [m for m in bare if m not in BARE]
    expected = {(place, m, None) for place in ("iid", "dirichlet") for m in bare}
    expected |= {(place, m, 3.0) for place in ("iid", "dirichlet") for m in noisy}
    assert {(r.partition, r.method, r.epsilon) for r in rows} == expected
    assert not any(r.failed for r in rows)
    assert all(0 <= r.mean <= 1 and r.bytes_up > 0 for r in rows)
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == (len(bare) + len(noisy)) * (2 + 2)
    assert sum(json.loads(line)["trial"] for line in lines) == len(lines) // 2
    assert len(markdown(rows).splitlines()) == 2 + len(expected)


def test_a_table_that_was_killed_goes_on_where_it_was(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path, runs: list[dict[str, Any]]
) -> None:
    file = tmp_path / "new" / "runs.jsonl"
    whole = utility(table(scenario, tiny_federation, trials=3), Results(file))
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == len(runs) == 4 * (3 + 2 + 2)  # trials, the best two once more, seeds
    runs.clear()
    file.write_text("".join(lines[:-2]) + lines[-2][:40], encoding="utf-8")
    assert utility(table(scenario, tiny_federation, trials=3), Results(file)) == whole
    assert len(runs) == 2
    assert [json.loads(x) for x in file.read_text(encoding="utf-8").splitlines()] == [
        {**json.loads(x), "seconds": pytest.approx(json.loads(x)["seconds"], abs=1)} for x in lines
    ]


@pytest.mark.parametrize("change", ["train.batch=31", "privacy.delta=0.002"])
def test_a_run_under_other_settings_is_another_run(
    scenario: Scenario, tiny_federation: Path, runs: list[dict[str, Any]], change: str
) -> None:
    results = Results()
    utility(table(scenario, tiny_federation), results)
    done = len(runs)
    utility(table(scenario, tiny_federation), results)
    assert len(runs) == done
    utility(table(scenario.with_(changed([change])), tiny_federation), results)
    assert len(runs) == 2 * done


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note": 1}\n', encoding="utf-8")
    with pytest.raises(ConfideError) as caught:
        Results(file)
    assert caught.value.code == "bench.out"
    assert file.read_text(encoding="utf-8") == '{"note": 1}\n'


def test_a_result_is_on_disk_when_it_is_kept(tmp_path: Path) -> None:
    result = Measured(
        of="a",
        scenario="s",
        partition="own",
        method="ffa",
        epsilon=None,
        seed=0,
        rate=1.0,
        trial=False,
        others={"f1": 0.5},
        seconds=1.0,
    )
    Results(tmp_path / "r.jsonl").add(result)
    assert Results(tmp_path / "r.jsonl").get("a") == result


def test_the_public_records_are_cut_in_two_by_person(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path
) -> None:
    where = Place(scenario=scenario, partition="own", folder=tiny_federation)
    found: dict[str, list[dict[str, str]]] = {}
    for part in ("choose", "report", "all"):
        folder = where.public(part, {"data.person": "", "data.text": "text"}, tmp_path / part)
        lines = (folder / "public.jsonl").read_text(encoding="utf-8").splitlines()
        found[part] = [json.loads(line) for line in lines]
    assert len(found["choose"]) + len(found["report"]) == len(found["all"]) == 40
    assert min(len(found["choose"]), len(found["report"])) > 5
    persons = [{r["person"] for r in found[part]} for part in ("choose", "report")]
    assert persons[0].isdisjoint(persons[1])


def test_equal_texts_without_a_person_are_in_the_same_half() -> None:
    config = {"data.person": "", "data.text": "body"}
    halves = [half_of({"body": f"text {i}"}, config) for i in range(40)]
    assert {"choose", "report"} == set(halves)
    assert halves == [half_of({"body": f"text {i}", "label": "x"}, config) for i in range(40)]


def _prepared(records: Sequence[Record]) -> Any:
    def prepare(scenario: Scenario) -> Path:
        return prepare_federation(
            scenario.federation,
            source=scenario.text.source,
            holders=scenario.text.holders,
            partition=scenario.text.partition,
            alpha=scenario.text.alpha,
            limit=scenario.text.limit or None,
            load=lambda _: Split(list(records), []),
        )

    return prepare


def _records(persons: int, label: str | None = "good") -> list[Record]:
    return [
        Record(text=f"text {i}", target=label and f"{label}{i % 2}", person=str(i % persons))
        for i in range(60)
    ]


def test_one_text_is_shared_out_in_three_ways(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "prepare", _prepared(_records(persons=20)))
    made, unfit = that_fit(scenario, ["iid", "dirichlet", "natural"], limit=30)
    assert not unfit
    assert len({where.folder for where in made}) == 3
    assert len({where.digest("all") for where in made}) == 3
    for where in made:
        assert sum(len(p.read_text().splitlines()) for p in where.holders) == 30
    persons = [
        {json.loads(line)["person"] for line in path.read_text().splitlines()}
        for path in made[2].holders
    ]
    assert all(a.isdisjoint(b) for i, a in enumerate(persons) for b in persons[:i])


def test_a_text_without_users_or_labels_says_so(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "prepare", _prepared(_records(persons=60, label=None)))
    made, unfit = that_fit(replace(scenario, name="plain"), ["iid", "dirichlet", "natural"])
    assert [where.partition for where in made] == ["iid"]
    assert [reason.split(" has ")[1].split(":")[0] for reason in unfit] == [
        "no labels to be shared out unevenly.",
        "no natural users",
    ]
    with pytest.raises(ConfideError) as caught:
        that_fit(replace(scenario, name="plain"), ["natural"])
    assert caught.value.code == "bench.partition"


def _adapter(scenario: Scenario, data: Path, out: Path, method: str) -> bytes:
    """The adapter of a run whose noise repeats itself."""
    config = {**scenario.config, "aggregate.method": method, "run.out": str(out)}
    generator = SecureGenerator.insecure_seeded(1)
    members = federation(sorted(data.glob("holder-*.jsonl")), out / "l", generator=generator)
    folder: RunFolder = run({**config, "data.path": str(data)}, members)
    return (folder.path / "adapter" / WEIGHTS_FILE).read_bytes()


def test_runs_that_share_their_frozen_layers_end_in_the_same_bytes(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = batches.EncodedText._make_hidden

    def counted(self: batches.EncodedText) -> list[Tensor]:
        made.append(len(self))
        return make(self)

    monkeypatch.setattr(batches.EncodedText, "_make_hidden", counted)
    methods = ("ffa", "lora")
    alone = [_adapter(scenario, tiny_federation, tmp_path / f"alone-{m}", m) for m in methods]
    count = len(made)
    assert made.count(24) == 2 * 3  # three holders, twice
    with batches.frozen_layers_shared():
        shared = [_adapter(scenario, tiny_federation, tmp_path / f"shared-{m}", m) for m in methods]
    assert made[count:].count(24) == 3
    assert alone == shared
    assert alone[0] != alone[1]


def test_the_command_goes_on_with_its_file(
    scenario: Scenario, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.__main__ import build_app

    monkeypatch.setattr(places, "prepare", lambda _: tiny_federation)
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(scenario.config), encoding="utf-8")
    told = ["bench", "utility", str(file), "--methods", "head", "--epsilons", "3", "--seeds", "1"]
    told += ["--tune-rates", "2", "--out", str(tmp_path / "runs.jsonl")]
    first = CliRunner().invoke(build_app(), [*told, "--json"])
    again = CliRunner().invoke(build_app(), [*told, "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["rate"] in rates(1.0, 2)
    assert first.stdout == again.stdout
    assert len((tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()) == 3
