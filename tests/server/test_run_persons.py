"""A whole run that protects persons: counted, drawn, charged, claimed and verified as persons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps, epsilon_pld
from confide.common.privacy.ledger import Ledger
from confide.common.privacy.plan import Unit
from confide.server.report.verify import verify_run
from confide.server.run import run
from confide.simulations.inprocess import federation
from tests.server.federated import NOISE, config, events

PERSONS, BATCH, ROUNDS, DELTA = 8, 4, 2, 1e-3  # 24 records a holder, three of each person
BY_PERSON = {
    "privacy__unit": "person",
    "privacy__records_per_person": 2,
    "data__person": "person",
    "train__batch": BATCH,
    "train__rate": BATCH / PERSONS,
}
STEPS = GaussianSteps(noise_multiplier=NOISE, sampling_rate=BATCH / PERSONS, steps=ROUNDS)


@pytest.mark.parametrize("mode", ["gradient", "steps"])
def test_a_run_for_persons_from_the_text_to_a_verified_report(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, mode: str
) -> None:
    files, ledgers = sorted(tiny_federation.glob("holder-*.jsonl")), tmp_path / "runs" / "ledgers"
    flat = config(tiny_model, tiny_federation, tmp_path / "runs", round__mode=mode, **BY_PERSON)
    folder = run(flat, federation(files, ledgers))
    accepted = [row["holder"] for line in events(folder, "round") for row in line["accepted"]]
    assert accepted == ["holder-00", "holder-01", "holder-02"] * ROUNDS
    weights = load_file(str(folder.path / "adapter" / "adapter_model.safetensors"))
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    for file in files:
        with Ledger.open(ledgers / file.stem / "ledger.sqlite", create=False) as ledger:
            unit, steps = ledger.unit, ledger.steps()
        assert (unit, steps) == ((Unit.PERSON, "person"), (STEPS,))

    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    claim = report["claim"]
    assert claim["private"], [check for check in report["checks"] if check["state"] != "passed"]
    assert (claim["unit"], claim["epsilon"]) == ("person", epsilon_pld([STEPS], DELTA))
    assert claim["groups"] == []
    (folder.path / "holders").symlink_to(ledgers)
    assert verify_run(folder.path).agrees

    by_record = config(tiny_model, tiny_federation, tmp_path / "again", run__name="again")
    with pytest.raises(ConfideError, match=r"holder-02 said ledger\.unit"):
        run(by_record, federation(files, ledgers))
