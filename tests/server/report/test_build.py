from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.plans import plan_of, planned_steps
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.groups import group_epsilon
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.server.report import find_run, load_report, wilson
from confide.server.report.build import build_report, write_report
from confide.server.report.reading import read_settings
from tests.server.report.conftest import plan, reseal

MakeRun = Callable[..., Path]
Lines = list[dict[str, Any]]
HOLDERS, ROUNDS, DELTA = 10, 20, 1e-5
SOME_ROUNDS = 18


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(check for check in report["checks"] if check["name"] == name)


def holder(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in report["holders"] if row["name"] == name)


def rounds(lines: Lines) -> Lines:
    return [line for line in lines if line["event"] == "round"]


def drop(lines: Lines, name: str, after: int, seen_as: str, code: str) -> None:
    """After a round, ``name`` is left out under another name, with a code."""
    for line in rounds(lines)[after:]:
        line["accepted"] = [row for row in line["accepted"] if row["holder"] != name]
        line["left_out"].append({"holder": seen_as, "code": code})


def test_the_claim_is_the_largest_epsilon_of_all_holders(torch_free_report: dict[str, Any]) -> None:
    claim = torch_free_report["claim"]
    spent = [row["epsilon_pld"] for row in torch_free_report["holders"]]
    assert len(spent) == HOLDERS
    assert min(spent) < max(spent) == claim["epsilon"]
    assert claim["private"]
    assert 0.99 * claim["planned_epsilon"] < claim["epsilon"] <= claim["planned_epsilon"]
    assert all(row["state"] != "failed" for row in torch_free_report["checks"])


def test_epsilon_is_recomputed_from_the_events_and_never_copied(make_run: MakeRun) -> None:
    def understate(lines: Lines) -> None:
        for line in rounds(lines):
            for row in line["accepted"]:
                row["receipt"]["epsilon"] = 0.1

    report = build_report(make_run(understate), prv=False)
    row = holder(report, "holder-04")
    steps = [GaussianSteps.from_json(event) for event in row["events"]]
    assert row["epsilon_pld"] == epsilon_pld(steps, DELTA)
    assert row["epsilon_all_runs"] == 0.1


def test_the_three_accountants_stand_side_by_side(run_folder: Path) -> None:
    row = build_report(run_folder)["holders"][0]
    assert row["epsilon_prv"] == pytest.approx(row["epsilon_pld"], abs=0.03)
    assert row["epsilon_rdp"] > row["epsilon_pld"]


def test_without_noise_nothing_is_promised(make_run: MakeRun) -> None:
    report = build_report(make_run(privacy__trust="off"), prv=False)
    assert report["claim"]["sentence"].startswith("NOT DIFFERENTIALLY PRIVATE")
    assert not report["claim"]["private"]
    assert report["claim"]["epsilon"] is None
    assert report["released"]["accounted"] == []
    assert "can reveal records" in report["released"]["not_accounted"][0]["why"]


def test_a_receipt_without_noise_withdraws_the_claim(make_run: MakeRun) -> None:
    def silence(lines: Lines) -> None:
        rounds(lines)[-1]["accepted"][4]["receipt"]["steps_run"][0]["noise_multiplier"] = 0.0

    report = build_report(make_run(silence), prv=False)
    assert check(report, "Every accepted update was noised")["state"] == "failed"
    assert report["claim"]["epsilon"] is None
    assert not report["claim"]["private"]
    json.dumps(report, allow_nan=False)


def test_a_holder_over_the_plan_withdraws_the_claim(make_run: MakeRun) -> None:
    report = build_report(make_run(privacy__epsilon=7.0), prv=False)
    assert check(report, "No holder spent more than planned")["state"] == "failed"
    assert report["claim"]["sentence"].startswith("NOT DIFFERENTIALLY PRIVATE")


def test_a_ledger_that_went_back_withdraws_the_claim(make_run: MakeRun) -> None:
    def go_back(lines: Lines) -> None:
        rounds(lines)[10]["accepted"][3]["receipt"]["entries"] = 3

    report = build_report(make_run(go_back), prv=False)
    chained = check(report, "Receipts chain forward")
    assert chained["state"] != "passed"
    assert "holder-03" in chained["detail"]
    assert not report["claim"]["private"]


def test_fewer_steps_charged_than_released_withdraws_the_claim(make_run: MakeRun) -> None:
    def forget(lines: Lines) -> None:
        for line in rounds(lines):
            line["accepted"][5]["receipt"]["steps_run"][0]["steps"] = 1

    report = build_report(make_run(forget), prv=False)
    assert check(report, "Every accepted update was charged")["state"] == "failed"
    assert not report["claim"]["private"]


def test_a_promise_to_persons_is_said_to_be_one_and_has_no_group(make_run: MakeRun) -> None:
    report = build_report(make_run(privacy__unit="person"), prv=False)
    claim = report["claim"]
    assert claim["private"]
    assert claim["unit"] == "person"
    assert "the records of any single person at a holder were used" in claim["sentence"]
    assert "all records of one person at one holder" in claim["sentence"]
    assert claim["groups"] == []
    assert 0.99 * claim["planned_epsilon"] < claim["epsilon"] <= claim["planned_epsilon"]
    assert "those of one particular person" in claim["in_plain_words"]
    assert all(row["state"] != "failed" for row in report["checks"])
    assert "clipped to 1 per person" in report["released"]["accounted"][0]["why"]
    limits = {thing["what"]: thing["why"] for thing in report["not_protected"]}
    assert "A person with several records" not in limits
    assert "'article'" in limits["A person under several names"]
    assert "One person at several holders" in limits


def test_a_promise_to_records_tells_what_it_is_to_a_person(
    torch_free_report: dict[str, Any],
) -> None:
    limits = {thing["what"]: thing["why"] for thing in torch_free_report["not_protected"]}
    told = limits["A person with several records"]
    assert "With 2 at one holder" in told
    assert "'article' names persons, but was not the unit" in told
    assert [group["records"] for group in torch_free_report["claim"]["groups"]] == [2, 5]


@pytest.mark.parametrize(("unit", "charged"), [("person", "record"), ("record", "person")])
def test_a_ledger_charged_for_another_unit_withdraws_the_claim(
    make_run: MakeRun, unit: str, charged: str
) -> None:
    report = build_report(make_run(privacy__unit=unit, charged=charged), prv=False)
    agreed = check(report, "Ledgers agree with the receipts")
    assert agreed["state"] != "passed"
    assert f"its charges are per {charged}" in agreed["detail"]
    assert not report["claim"]["private"]


def test_a_receipt_that_its_ledger_does_not_know_withdraws_the_claim(make_run: MakeRun) -> None:
    def forge(lines: Lines) -> None:
        rounds(lines)[-1]["accepted"][0]["receipt"]["head"] = "f" * 64

    report = build_report(make_run(forge), prv=False)
    assert check(report, "Ledgers agree with the receipts")["state"] == "failed"
    assert not report["claim"]["private"]


@pytest.mark.parametrize("seen_as", ["holder-05", "node-77"])
def test_rounds_without_an_answer_are_counted_as_spent(make_run: MakeRun, seen_as: str) -> None:
    def vanish(lines: Lines) -> None:
        drop(lines, "holder-05", SOME_ROUNDS, seen_as, "transport.no-answer")

    report = build_report(make_run(vanish), prv=False)
    row = holder(report, "holder-05")
    assert row["rounds"] == SOME_ROUNDS
    assert row["open_rounds"] == ROUNDS - SOME_ROUNDS
    assert row["epsilon_pld"] == holder(report, "holder-02")["epsilon_pld"]
    assert len(report["holders"]) == HOLDERS


def test_a_refusal_before_the_charge_costs_nothing(make_run: MakeRun) -> None:
    def refuse(lines: Lines) -> None:
        drop(lines, "holder-05", SOME_ROUNDS, "holder-05", "ledger.budget-exhausted")

    row = holder(build_report(make_run(refuse), prv=False), "holder-05")
    assert row["open_rounds"] == 0
    part = GaussianSteps.from_json({**row["events"][0], "steps": SOME_ROUNDS})
    assert row["epsilon_pld"] == epsilon_pld([part], DELTA)


def test_a_node_that_never_told_its_name_may_have_spent_what_was_planned(make_run: MakeRun) -> None:
    def stranger(lines: Lines) -> None:
        for line in rounds(lines):
            line["left_out"].append({"holder": "node-99", "code": "transport.no-answer"})

    report = build_report(make_run(stranger), prv=False)
    row = holder(report, "node-99")
    assert row["basis"] == "plan"
    assert row["events"] == [plan().steps(ROUNDS).to_json()]
    assert row["epsilon_pld"] == row["epsilon_planned"] == report["claim"]["epsilon"]
    assert row["epsilon_pld"] == epsilon_pld([plan().steps(ROUNDS)], DELTA)


@pytest.mark.parametrize("given", ["auto", 3.0])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_what_a_silent_holder_may_have_spent_is_in_the_plan_of_the_settings(
    make_run: MakeRun, given: str | float, rate: float
) -> None:
    def silent(lines: Lines) -> None:
        for line in rounds(lines)[:SOME_ROUNDS]:
            line["left_out"].append({"holder": "node-99", "code": "transport.no-answer"})

    folder = make_run(silent, privacy__noise_multiplier=given, train__rate=rate)
    settings = read_settings(folder / "config.toml")
    row = holder(build_report(folder, prv=False), "node-99")
    planned = plan_of(settings)
    assert row["open_rounds"] == SOME_ROUNDS
    assert row["events"] == [planned.steps(SOME_ROUNDS).to_json()]
    assert row["epsilon_planned"] == epsilon_pld(planned_steps(settings), DELTA)


def test_of_a_round_done_again_the_last_line_counts(make_run: MakeRun) -> None:
    def again(lines: Lines) -> None:
        lines.insert(-1, {"event": "resume", "time": "2026-01-01T12:05:00+00:00"})
        last = next(e for e in reversed(lines) if e["event"] == "evaluation")
        lines.insert(-1, {**last, "accuracy": 0.5})

    report = build_report(make_run(again), prv=False)
    assert report["utility"]["after"]["accuracy"] == 0.5
    assert len(report["utility"]["rounds"]) == ROUNDS + 1


def test_a_torn_last_line_is_left_out_and_a_torn_one_before_is_refused(run_folder: Path) -> None:
    metrics = run_folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"event": "rou')
    assert build_report(run_folder, prv=False)["run"]["status"] == "finished"
    metrics.write_text('{"event": "sta\n' + whole)
    with pytest.raises(ConfideError) as caught:
        build_report(run_folder, prv=False)
    assert caught.value.code == "report.metrics"
    assert caught.value.hint


def test_an_adapter_that_did_not_move_is_told_without_touching_the_claim(run_folder: Path) -> None:
    adapter = run_folder / "adapter" / "adapter_model.safetensors"
    data = adapter.read_bytes()
    adapter.write_bytes(data[:-4] + bytes(4))
    reseal(run_folder)
    report = build_report(run_folder, prv=False)
    assert "lora_B" in check(report, "The adapter was trained")["detail"]
    assert check(report, "The adapter was trained")["state"] == "failed"
    assert report["claim"]["private"]
    adapter.write_bytes(data[:-4] + b"\0\0\xc0\x7f")  # NaN
    assert (
        "not finite"
        in check(build_report(run_folder, prv=False), "The adapter was trained")["detail"]
    )


def test_no_folder_of_this_machine_is_in_the_report(run_folder: Path) -> None:
    text = json.dumps(write_report(run_folder, prv=False))
    assert "/somewhere" not in text
    assert str(run_folder) not in text


def test_report_json_is_what_was_computed_and_is_found_as_the_latest(run_folder: Path) -> None:
    report = write_report(run_folder, prv=False)
    older = run_folder.parent / "20250101-000000-older"
    older.mkdir()
    (older / "metrics.jsonl").write_text('{"event": "start", "time": "2025-01-01T00:00:00Z"}\n')
    assert load_report(find_run("latest", run_folder.parent)) == json.loads(json.dumps(report))
    assert (run_folder / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("begun", "later"),
    [
        ("2026-11-30T23:00:00+14:00", "2026-11-30T10:00:00+00:00"),
        ("2026-11-30T10:00:00+00:00", "2026-11-30T04:00:00-07:00"),
    ],
)
def test_the_latest_run_is_the_newest_whatever_clock_named_it(
    tmp_path: Path, begun: str, later: str
) -> None:
    """OasisLMF#1936: of runs of two time zones the name that sorts last may be older."""
    for name, time in (("zzz-first", begun), ("aaa-second", later)):
        (tmp_path / name).mkdir()
        lines = [{"event": "start", "time": time}, {"event": "end", "time": "2099-01-01T00:00:00Z"}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    assert find_run("latest", tmp_path).name == "aaa-second"


def test_a_missing_run_and_a_torn_report_are_named(run_folder: Path, tmp_path: Path) -> None:
    for name, runs in (("latest", tmp_path / "none"), (str(tmp_path), None)):
        with pytest.raises(ConfideError) as caught:
            find_run(name, runs)
        assert caught.value.code == "run.missing"
    for content, code in (("{", "report.corrupt"), ('{"schema": "x"}', "report.schema")):
        (run_folder / "report.json").write_text(content)
        with pytest.raises(ConfideError) as caught:
            load_report(run_folder)
        assert caught.value.code == code


def test_the_epsilon_of_two_records_is_the_known_answer() -> None:
    steps = (GaussianSteps(noise_multiplier=1.025, sampling_rate=1 / 32, steps=960),)
    known, coarseness = 13.789, 0.03
    found = group_epsilon(steps, DELTA, 2)
    assert found is not None
    assert known <= found <= known + coarseness
    loud = (GaussianSteps(noise_multiplier=0.05, sampling_rate=1.0, steps=100),)
    assert group_epsilon(loud, DELTA, 5) is None


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = wilson(0.5, 100) or (math.nan, math.nan)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson(None, 100) is None
    assert wilson(0.5, 0) is None


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, confide.server.cli, confide.server.card, confide.server.report.build,"
        " confide.server.report.html, confide.server.report.terminal;"
        "sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60)
    assert done.returncode == 0


def test_a_charge_that_never_reached_the_coordinator_is_counted_from_the_ledger(
    run_folder: Path,
) -> None:
    quiet = Plan(
        clip_norm=1.0,
        noise_multiplier=4.0,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=DELTA,
    )
    with Ledger.open(run_folder / "holders" / "holder-00" / "ledger.sqlite") as ledger:
        charge = Charge(run=run_folder.name, round=21, task_hash="ab" * 32, plan=quiet)
        ledger.charge(charge, None)
    report = build_report(run_folder, prv=False)
    row = holder(report, "holder-00")
    assert row["basis"] == "ledger"
    assert row["epsilon_pld"] > holder(report, "holder-02")["epsilon_pld"]
    assert not report["claim"]["private"]
