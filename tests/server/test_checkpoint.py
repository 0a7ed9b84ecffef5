"""The checkpoint: whole or the old one, and refused when it is another's."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from confide.common.adapter.schema import AdapterSchema
from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Receipt
from confide.server import run_folder
from confide.server.checkpoint import FILE, FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from confide.server.run_folder import RunFolder

SCHEMA = AdapterSchema(shapes=(("frozen", (4,)), ("head", (2, 3))), trained=frozenset({"head"}))
RECEIPT = Receipt(
    ledger_id="ab" * 16,
    head="0" * 64,
    entries=4,
    delta=1e-5,
    epsilon=math.inf,
    proven=math.inf,
    unmasked=math.inf,
    runs=1,
    limit=None,
    steps_run=(GaussianSteps(noise_multiplier=1.0, sampling_rate=0.5, steps=3),),
)


def state(number: int = 3, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "round": number,
        "advanced": number - 1,
        "schema": SCHEMA.digest,
        "adapter": torch.arange(10.0) + number,
        "optimizer": {"momentum_buffer": torch.arange(6.0), "step": torch.tensor(3.0)},
        "receipts": {"holder-00": RECEIPT},
        "barred": frozenset({"holder-01"}),
        "best": torch.arange(10.0) - 1,
    }
    return Checkpoint(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(str(tmp_path), "test")


def same(a: Checkpoint, b: Checkpoint) -> bool:
    plain = ("round", "advanced", "schema", "receipts", "barred")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and torch.equal(a.adapter, b.adapter)
        and torch.equal(a.outcome, b.outcome)
        and a.optimizer.keys() == b.optimizer.keys()
        and all(torch.equal(a.optimizer[name], b.optimizer[name]) for name in a.optimizer)
    )


def test_a_checkpoint_comes_back_bit_for_bit(folder: RunFolder) -> None:
    save_checkpoint(folder, state())
    assert same(load_checkpoint(folder, SCHEMA), state())


def test_the_best_adapter_is_the_outcome_where_there_is_one(folder: RunFolder) -> None:
    save_checkpoint(folder, state())
    assert torch.equal(load_checkpoint(folder, SCHEMA).outcome, torch.arange(10.0) - 1)
    save_checkpoint(folder, state(best=None))
    assert torch.equal(load_checkpoint(folder, SCHEMA).outcome, state().adapter)


def test_the_newest_replaces_the_one_before(folder: RunFolder) -> None:
    for number in (1, 2, 3):
        save_checkpoint(folder, state(number))
    assert load_checkpoint(folder, SCHEMA).round == 3
    assert [p.name for p in (folder.path / "checkpoint").iterdir()] == [Path(FILE).name]


@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError(28, "full")])
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_crash_in_the_middle_of_writing_leaves_the_old_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, place: str, crash: Any
) -> None:
    save_checkpoint(folder, state(1))

    def fail(*_: Any) -> None:
        raise crash

    with monkeypatch.context() as patch:
        patch.setattr(*((run_folder.os, place) if place == "fsync" else (Path, place)), fail)
        with pytest.raises((KeyboardInterrupt, ConfideError)):
            save_checkpoint(folder, state(2))
    assert same(load_checkpoint(folder, SCHEMA), state(1))
    assert len(list((folder.path / "checkpoint").iterdir())) == 1


def test_what_is_written_is_synced_before_it_takes_the_name(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(run_folder.os, "fsync", lambda h: (order.append("sync"), sync(h))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    save_checkpoint(folder, state())
    assert order == ["sync", "replace", "sync"]


def refused(folder: RunFolder) -> str:
    with pytest.raises(ConfideError) as caught:
        load_checkpoint(folder, SCHEMA)
    assert caught.value.hint
    assert str(folder.path) in caught.value.message
    return caught.value.code


def test_a_truncated_file_is_refused_at_every_length(folder: RunFolder) -> None:
    save_checkpoint(folder, state())
    path = folder.path / FILE
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert refused(folder) == "run.resume"


def test_a_missing_file_is_refused(folder: RunFolder) -> None:
    assert refused(folder) == "run.resume"


def test_the_checkpoint_of_another_adapter_is_refused(folder: RunFolder) -> None:
    save_checkpoint(folder, state())
    other = dataclasses.replace(SCHEMA, trained=frozenset({"frozen", "head"}))
    with pytest.raises(ConfideError, match=r"run\.resume.*config\.toml"):
        load_checkpoint(folder, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": -1, "advanced": -1},
        {"round": "3"},
        {"advanced": 4},
        {"adapter": torch.arange(9.0)},
        {"adapter": torch.arange(10.0).double()},
        {"adapter": torch.full((10,), math.nan)},
        {"best": torch.arange(9.0)},
        {"best": torch.full((10,), math.inf)},
        {"optimizer": {"momentum_buffer": torch.arange(5.0)}},
        {"optimizer": {"momentum_buffer": torch.full((6,), math.inf)}},
    ],
    ids=str,
)
def test_a_state_that_no_run_can_go_on_from_is_refused(
    folder: RunFolder, changes: dict[str, Any]
) -> None:
    save_checkpoint(folder, state(**changes))
    assert refused(folder) == "run.resume"


def test_a_file_of_another_format_is_refused_and_says_whose_it_is(folder: RunFolder) -> None:
    fields = {"format": 1, "round": 1, "advanced": 1, "schema": SCHEMA.digest}
    for header in (fields, fields | {"format": "3"}, fields | {"format": None}):
        body = save({"adapter": torch.zeros(10)}, metadata={"state": json.dumps(header)})
        folder.write(FILE, body)
        with pytest.raises(ConfideError, match=r"run\.resume.*another version of confide"):
            load_checkpoint(folder, SCHEMA)


@pytest.mark.parametrize("header", ["", "{}", '{"format": 2}', '{"round": 1}', "[]", "x"])
def test_a_header_that_lacks_something_is_refused(folder: RunFolder, header: str) -> None:
    folder.write(FILE, save({"adapter": torch.zeros(10)}, metadata={"state": header}))
    assert refused(folder) == "run.resume"


def test_a_receipt_that_is_none_is_refused(folder: RunFolder) -> None:
    fields = {
        "format": FORMAT,
        "abandoned": 0,
        "losses": [],
        "round": 1,
        "advanced": 1,
        "schema": SCHEMA.digest,
        "receipts": {"h": {"head": 1}},
        "barred": [],
    }
    body = save({"adapter": torch.zeros(10)}, metadata={"state": json.dumps(fields)})
    folder.write(FILE, body)
    assert refused(folder) == "run.resume"
