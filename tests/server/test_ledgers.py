"""The coordinator's memory of ledgers over runs: who went back, who has another one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from confide.common.privacy.ledger import Receipt
from confide.server.ledgers import NEW_LEDGER, Faults, Memory
from confide.server.report.build import build_report
from confide.server.run import run
from tests.server.federated import Transport, config, events, holders

NAMES = ["holder-00", "holder-01", "holder-02"]


class Kept:
    """A memory that a test can look at."""

    def __init__(self) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.faults: list[tuple[str, str, str]] = []
        self.memory = Memory(load=lambda: dict(self.receipts), keep=self._keep)

    def _keep(self, run: str, receipts: Mapping[str, Receipt], faults: Faults) -> None:
        self.receipts |= receipts
        self.faults += [(run, name, code) for name, code in faults.items()]


class Federation:
    """Three holders whose ledgers outlive a run, as in a deployment."""

    def __init__(self, model: Path, data: Path, place: Path) -> None:
        self.model, self.data, self.place = model, data, place
        self.ledgers, self.kept = place / "ledgers", Kept()

    def ledger(self, name: str) -> Path:
        return self.ledgers / name / "ledger.sqlite"

    def run(self, memory: Memory | None, **changes: Any) -> Any:
        flat = config(self.model, self.data, self.place / "runs", round__count=2, **changes)
        return run(flat, Transport(holders(self.data, self.ledgers)), None, memory)


@pytest.fixture
def fed(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> Federation:
    return Federation(tiny_model, tiny_federation, tmp_path)


def left_out(folder: Any) -> list[list[tuple[str, str]]]:
    lines = events(folder, "round")
    return [[(row["holder"], row["code"]) for row in line["left_out"]] for line in lines]


def test_ledgers_that_go_on_are_taken_and_the_newest_receipts_are_kept(fed: Federation) -> None:
    for number in (1, 2):
        folder = fed.run(fed.kept.memory, run__name=f"run-{number}")
        assert left_out(folder) == [[], []]
        last = events(folder, "round")[-1]["accepted"]
        newest = {row["holder"]: Receipt.from_json(row["receipt"]) for row in last}
        assert fed.kept.receipts == newest
    assert fed.kept.faults == []


def test_who_put_a_backup_back_between_two_runs_is_named_and_barred(
    fed: Federation, tmp_path: Path
) -> None:
    """The backup is of a moment within the first run: to itself it is sound and less is spent."""
    fed.run(fed.kept.memory, run__name="run-0")
    backup = shutil.copy(fed.ledger("holder-01"), tmp_path / "backup")
    fed.run(fed.kept.memory, run__name="run-1")
    shutil.copy(backup, fed.ledger("holder-01"))
    folder = fed.run(fed.kept.memory, run__name="run-2")
    assert left_out(folder) == [[("holder-01", "gate.ledger")]] * 2
    assert (folder.id, "holder-01", "gate.ledger") in fed.kept.faults
    assert {name for _, name, _ in fed.kept.faults} == {"holder-01"}
    faults = build_report(folder.path, prv=False)["faults"]
    assert {(row["holder"], row["code"]) for row in faults} == {("holder-01", "gate.ledger")}


def test_another_ledger_of_a_known_holder_is_taken_and_named_once(
    fed: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    fed.run(fed.kept.memory, run__name="run-1")
    fed.ledger("holder-02").unlink()
    with caplog.at_level(logging.WARNING):
        folder = fed.run(fed.kept.memory, run__name="run-2")
    assert left_out(folder) == [[], []]
    assert fed.kept.faults == [(folder.id, "holder-02", NEW_LEDGER)]
    assert caplog.text.count("holder-02 has another ledger, gate.new-ledger") == 1
    assert build_report(folder.path, prv=False)["faults"] == [
        {"round": 1, "holder": "holder-02", "code": NEW_LEDGER}
    ]
    assert left_out(fed.run(fed.kept.memory, run__name="run-3")) == [[], []]
    assert len(fed.kept.faults) == 1


def test_a_new_holder_has_nothing_to_go_on_from(fed: Federation) -> None:
    fed.kept.receipts.clear()
    assert left_out(fed.run(fed.kept.memory)) == [[], []]
    assert fed.kept.faults == []


def test_simulated_runs_share_no_ledgers(fed: Federation) -> None:
    fed.run(None, run__name="run-1")
    for name in NAMES:
        fed.ledger(name).unlink()
    folder = fed.run(None, run__name="run-2")
    assert left_out(folder) == [[], []]
    assert events(folder, "ledger") == []


def test_a_run_that_is_resumed_goes_on_from_its_own_receipts(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that was cut off is answered with the same bytes, whose receipt is known already."""
    fed.run(fed.kept.memory, run__name="run-1")
    stop = stopping_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fed.run(fed.kept.memory, run__name="run-2")
    (folder,) = (path for path in (fed.place / "runs").iterdir() if "run-2" in path.name)
    assert stop == [2], "the receipts of round 2 are kept, and its checkpoint is not"
    again = fed.run(fed.kept.memory, run__name="run-2", run__resume=str(folder))
    assert left_out(again)[-1] == []
    assert fed.kept.faults == []


def stopping_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The coordinator dies once, between a round's receipts and its checkpoint."""
    from confide.server import rounds

    saved: Callable[..., None] = rounds.save_checkpoint
    stopped: list[int] = []

    def save(folder: Any, state: Any) -> None:
        if state.round == 2 and not stopped:
            stopped.append(state.round)
            raise KeyboardInterrupt
        saved(folder, state)

    monkeypatch.setattr(rounds, "save_checkpoint", save)
    return stopped
