"""A method is one module and one line of the table: the example of the docs keeps the contract, and
runs in a federation from settings to report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from confide.common import methods
from confide.common.methods import METHODS, Method
from confide.common.models.loading import load_model
from confide.common.settings import from_flat, rules
from confide.server.predict import predict
from confide.server.report.verify import verify_run
from confide.server.run import run
from confide.simulations.benchmarks.utility import compared_methods
from confide.simulations.doctor import diagnose
from tests.common.methods import test_contract as contract
from tests.server.federated import Transport, config, holders
from tests.server.test_methods import first_adapter

runs = contract.runs


@pytest.fixture
def unit(root: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The example as a module of the package, and its line of the table."""
    page = (root / "docs" / "aggregation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("How to add a method")[2], re.S)
    module = ModuleType("confide.common.methods.unit")
    module.__package__ = methods.__name__
    exec(compile(code, "unit.py", "exec"), vars(module))  # noqa: S102 - what the docs say
    found: Method = module.Unit()
    monkeypatch.setitem(METHODS, found.name, found)
    return found


def test_it_runs_from_settings_to_report(
    unit: Method, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    assert list(rules()["aggregate.method"].options)[-1] == unit.name
    flat = config(tiny_model, tiny_federation, tmp_path / "runs", aggregate__method=unit.name)
    transport = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    folder = run(flat, transport)
    loaded = load_model(from_flat(flat))
    for task in transport.tasks:
        for name, value in first_adapter(task, loaded).items():
            if "lora_A" in name:
                assert torch.allclose(value.norm(dim=1), torch.ones(len(value)), atol=1e-5)
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["aggregate.method"] == unit.name
    assert report["claim"]["epsilon"] > 0
    assert unit.name in (folder.path / "report.html").read_text(encoding="utf-8")
    ledgers = sorted((tmp_path / "ledgers").rglob("ledger.sqlite"))
    assert verify_run(folder.path, ledgers).status == 0
    assert predict(folder.path, ["a lovely day"])
    assert diagnose(str(folder.path)).findings is not None
    assert compared_methods()[unit.name] == {
        "lora.method": "lora",
        "aggregate.method": unit.name,
    }


def test_it_keeps_the_contract(unit: Method, runs: Any, tiny_model: Path, tmp_path: Path) -> None:
    name = unit.name
    contract.test_the_facts_are_whole_and_agree_with_each_other(name)
    contract.test_what_a_method_does_not_speak_of_is_admitted(name)
    contract.test_a_method_that_is_not_sound_under_noise_is_found_and_no_other(name)
    for number in (1, 2):
        contract.test_a_round_sends_the_head_and_the_factors_that_it_trains_but_for_those_that_stay(
            name, number
        )
    contract.test_each_round_is_what_the_holders_would_do_alone_put_together_by_the_formula(
        name, 3, tiny_model, tmp_path
    )
    for kind in (contract.Backwards, contract.Stopping):
        contract.test_neither_the_order_of_the_holders_nor_a_stop_changes_a_bit(
            name, "momentum", kind, runs
        )
    contract.test_a_message_has_the_values_of_what_leaves_and_of_nothing_else(
        name, "momentum", runs, tiny_model
    )
