"""A whole run from settings to folder, ended in every way that a run can end."""

from __future__ import annotations

import errno
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from confide.common.errors import ConfideError
from confide.common.machine.installed import code_hash
from confide.common.models.loading import load_model
from confide.common.privacy.ledger import Ledger
from confide.common.settings import from_flat
from confide.common.wire.messages import Reply, TrainRequest
from confide.server import run as run_module
from confide.server import run_folder
from confide.server.run import run
from confide.server.run_folder import RunFolder
from confide.simulations.inprocess import federation
from tests import tiny
from tests.server.federated import Transport, config, events, holders, only_folder, received

ROUNDS = 3
BARE = {"privacy__trust": "off", "privacy__noise_multiplier": "auto"}


class Killed(Transport):
    """Stopped in round ``at``, before the holders are asked or when they have answered."""

    def __init__(self, members: Any, at: int, *, early: bool = False) -> None:
        super().__init__(members)
        self.at, self.early = at, early

    def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        if self.early and task.round == self.at:
            raise KeyboardInterrupt
        return super().ask(nodes, task, timeout)

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == self.at:
            raise KeyboardInterrupt
        return replies


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(str(folder.path / "adapter" / "adapter_model.safetensors"))


def report(folder: RunFolder) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder.path / "report.json").read_text("utf-8"))
    return loaded


def charges(ledgers: Path) -> dict[str, int]:
    found = {}
    for path in sorted(ledgers.glob("*/ledger.sqlite")):
        with Ledger.open(path) as ledger:
            found[path.parent.name] = sum(s.steps for s in ledger.steps())
    return found


def ended(path: Path) -> tuple[str, str]:
    event = events(path, "end")[-1]
    return event["status"], event["code"]


def test_a_whole_run_leaves_the_folder_of_the_contract(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    flat = config(tiny_model, tiny_federation, tmp_path / "runs", run__name="whole")
    folder = run(flat, federation(files, tmp_path / "ledgers"))
    there = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}
    assert {
        "config.toml",
        "metrics.jsonl",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "adapter/tokenizer.json",
        "checkpoint/state.safetensors",
        "report.json",
        "report.html",
    } <= there
    assert not [name for name in there if Path(name).name.startswith(".")]
    (start,), (end,) = events(folder, "start"), events(folder, "end")
    assert start["run"] == folder.id == folder.path.name
    assert start["federation"] == {"holders": 3}
    assert start["model"]["trained"] > 0
    assert len(start["model"]["sha256"]) == 64
    assert {"confide", "flwr", "torch", "opacus", "peft"} <= start["software"].keys()
    assert start["code"] == code_hash()
    assert (end["status"], end["code"]) == ("finished", "")
    assert end["peak_memory_mb"] > 0
    claim = report(folder)["claim"]
    assert 0 < claim["epsilon"] < 100
    assert charges(tmp_path / "ledgers") == {f"holder-{i:02d}": 2 for i in range(3)}
    assert any(bool(tensor.any()) for tensor in weights(folder).values())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"aggregate__method": "lora"}, "'lora'"),
        ({"aggregate__method": "fedsa", "round__mode": "steps"}, "'fedsa'"),
        ({"aggregate__method": "lora", **BARE}, ""),
        ({"aggregate__method": "lora", "lora__method": "head"}, ""),
        ({"aggregate__method": "ffa"}, ""),
    ],
)
def test_a_method_that_is_not_sound_under_noise_is_warned_of_with_the_reason(
    tiny_model: Path,
    tiny_federation: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    named: str,
) -> None:
    used = config(tiny_model, tiny_federation, tmp_path / "runs", round__count=1, **changes)
    folder = run(used, federation(sorted(tiny_federation.glob("holder-*")), tmp_path / "ledgers"))
    (start,) = events(folder, "start")
    logged = [r.getMessage() for r in caplog.records if "both factors" in r.getMessage()]
    assert start["warnings"] == logged
    assert len(logged) == bool(named)
    assert all(named in line and "aggregate.method = 'ffa'" in line for line in logged)


def test_without_noise_the_run_is_labelled(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    off = {"privacy__trust": "off", "privacy__noise_multiplier": "auto", "round__count": 1}
    flat = config(tiny_model, tiny_federation, tmp_path / "runs", **off)
    folder = run(flat, Transport(holders(tiny_federation, tmp_path / "ledgers")))
    assert "NOT DIFFERENTIALLY PRIVATE" in report(folder)["claim"]["sentence"].upper()
    assert ended(folder.path) == ("finished", "")


@pytest.fixture(scope="module")
def whole(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[RunFolder, dict[str, int]]]:
    """A run that nobody stopped, by optimizer, and what its ledgers hold."""

    @cache
    def make(optimizer: str) -> tuple[RunFolder, dict[str, int]]:
        scratch = tmp_path_factory.mktemp(optimizer)
        flat = config(tiny_model, tiny_federation, scratch, **fixed(optimizer))
        done = run(flat, Transport(holders(tiny_federation, scratch / "ledgers")))
        return done, charges(scratch / "ledgers")

    return make


def fixed(optimizer: str) -> dict[str, Any]:
    return {"round__count": ROUNDS, "aggregate__optimizer": optimizer, "train__lr": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "at", "early"),
    [
        ("momentum", 1, False),
        ("momentum", 2, True),
        ("momentum", ROUNDS, False),
        ("adam", 2, False),
    ],
)
def test_a_run_killed_in_any_round_and_resumed_ends_as_one_never_killed(
    tiny_model: Path,
    tiny_federation: Path,
    tmp_path: Path,
    whole: Callable[[str], tuple[RunFolder, dict[str, int]]],
    optimizer: str,
    at: int,
    early: bool,
) -> None:
    ledgers = tmp_path / "ledgers"
    flat = config(tiny_model, tiny_federation, tmp_path / "killed", **fixed(optimizer))
    with pytest.raises(KeyboardInterrupt):
        run(flat, Killed(holders(tiny_federation, ledgers), at, early=early))
    path = only_folder(tmp_path / "killed")
    assert ended(path) == ("stopped", "run.stopped")
    assert not (path / "report.json").exists()
    assert set(charges(ledgers).values()) == {at - early}

    resumed = run({**flat, "run.resume": str(path)}, Transport(holders(tiny_federation, ledgers)))
    assert resumed.path == path
    assert ended(path) == ("finished", "")
    assert len(events(path, "resume")) == len(events(path, "start")) == 1
    unbroken, charged = whole(optimizer)
    first, second = weights(unbroken), weights(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert report(unbroken)["claim"]["epsilon"] == report(resumed)["claim"]["epsilon"]
    assert charges(ledgers) == charged
    assert set(charged.values()) == {ROUNDS}


def test_noise_that_repeats_itself_is_what_makes_two_runs_equal(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    made = [
        run(
            config(tiny_model, tiny_federation, tmp_path / name, round__count=1),
            federation(files, tmp_path / name / "ledgers"),
        )
        for name in ("a", "b")
    ]
    first, second = map(weights, made)
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_remembers_the_receipts_of_the_rounds_before(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run(flat, Killed(holders(tiny_federation, tmp_path / "ledgers"), 2, early=True))
    path = only_folder(tmp_path / "runs")
    # The second holder comes back without its ledger, that is with another one.
    (tmp_path / "ledgers" / "holder-01" / "ledger.sqlite").unlink()
    again = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    run({**flat, "run.resume": str(path)}, again)
    last = events(path, "round")[-1]
    assert last["left_out"] == [{"holder": "holder-01", "code": "gate.receipt"}]


def killed(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run(flat, Killed(holders(tiny_federation, tmp_path / "ledgers"), 1, early=True))
    return flat, only_folder(tmp_path / "runs")


@pytest.mark.parametrize(
    "changed",
    [
        {"round.count": 3},
        {"privacy.noise-multiplier": 1.0},
        {"train.batch": 16},
        {"lora.rank": 4},
        {"run.seed": 5},
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    flat, path = killed(tiny_model, tiny_federation, tmp_path)
    before = (path / "metrics.jsonl").read_bytes()
    transport = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    with pytest.raises(ConfideError, match=r"run\.resume.*config\.toml") as caught:
        run({**flat, **changed, "run.resume": str(path)}, transport)
    assert next(iter(changed)) in caught.value.message
    assert transport.asked == []
    assert (path / "metrics.jsonl").read_bytes() == before


def test_a_resume_that_is_refused_leaves_the_old_run_as_it_was(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    flat, path = killed(tiny_model, tiny_federation, tmp_path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    transport = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    for bad in ({"train.lr": "fast"}, {"unknown.key": 1}, {"run.resume": str(tmp_path)}):
        with pytest.raises(ConfideError):
            run({**flat, "run.resume": str(path), **bad}, transport)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"train.lr": "fast"}, "settings.type"),
        ({"privacy.epsilonn": 3.0}, "settings.unknown-key"),
        ({"data.path": "nowhere"}, "data.missing-file"),
        ({"data.path": ""}, "data.missing-file"),
        ({"model.name": "no/such-model"}, "model.missing"),
        ({"lora.layers": 99}, "settings.range"),
        ({"round.min-holders": 9, "round.timeout": 1.0}, "run.too-few-holders"),
    ],
)
def test_a_run_that_cannot_start_leaves_its_reason_in_a_folder(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, changed: dict[str, Any], code: str
) -> None:
    flat = config(tiny_model, tiny_federation, tmp_path / "runs") | changed
    with pytest.raises(ConfideError) as caught:
        run(flat, Transport(holders(tiny_federation, tmp_path / "ledgers")))
    assert caught.value.code == code
    assert ended(only_folder(tmp_path / "runs")) == ("failed", code)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"holders": "many"}'])
def test_a_manifest_that_counts_no_holders_is_named(
    tiny_model: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "federation.json").write_text(text)
    flat = config(tiny_model, tmp_path / "data", tmp_path / "runs")
    with pytest.raises(ConfideError, match=r"data\.format.*federation\.json"):
        run(flat, Transport([]))


def test_when_all_rounds_are_abandoned_the_run_has_failed(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Silent(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            return {}

    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(ConfideError, match=r"run\.no-round"):
        run(flat, Silent(holders(tiny_federation, tmp_path / "ledgers")))
    path = only_folder(tmp_path / "runs")
    assert ended(path) == ("failed", "run.no-round")
    assert not (path / "adapter").exists()


def test_after_an_abandoned_last_round_the_adapter_is_that_of_the_round_before(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class SilentAtTheEnd(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            return replies if task.round == 1 else {}

    flat = config(tiny_model, tiny_federation, tmp_path / "runs", round__mode="steps")
    transport = SilentAtTheEnd(holders(tiny_federation, tmp_path / "ledgers"))
    saved = weights(run(flat, transport))
    left = received(transport.tasks[1], load_model(from_flat(flat)))
    flattened = torch.cat([saved[name].reshape(-1) for name in sorted(saved)])
    assert torch.equal(flattened, left)


def test_a_fault_of_the_transport_ends_the_run_and_its_round_can_be_done_again(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Broken(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            raise RuntimeError("the link is gone")

    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    members = holders(tiny_federation, tmp_path / "ledgers")
    with pytest.raises(RuntimeError):
        run(flat, Broken(members))
    path = only_folder(tmp_path / "runs")
    assert ended(path) == ("failed", "run.failed")
    run({**flat, "run.resume": str(path)}, Transport(members))
    assert set(charges(tmp_path / "ledgers").values()) == {2}


def test_a_disk_that_fills_up_is_one_sentence_and_the_run_can_go_on(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = tempfile.mkstemp, []

    def full(dir: Path, prefix: str) -> Any:  # noqa: A002 - the name that mkstemp has
        calls.append(1)
        if len(calls) > 4:  # config, draw key, the first checkpoint, that of round 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(dir=dir, prefix=prefix)

    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", full)
        with pytest.raises(ConfideError, match=r"disk\.full.*run\.resume"):
            run(flat, Transport(holders(tiny_federation, tmp_path / "ledgers")))
    path = only_folder(tmp_path / "runs")
    assert ended(path) == ("failed", "disk.full")
    again = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    run({**flat, "run.resume": str(path)}, again)
    assert [task.round for task in again.tasks] == [2]


def test_what_ended_the_run_is_told_even_when_that_cannot_be_written(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.os, "write", full)
    flat = config(tiny_model, tiny_federation, tmp_path / "runs") | {"train.lr": "fast"}
    with pytest.raises(ConfideError, match=r"settings\.type"):
        run(flat, Transport([]))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk.full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk.full"),
        (OSError(errno.EACCES, "Permission denied"), "run.folder"),
    ],
)
def test_an_adapter_that_cannot_be_written_is_one_sentence(
    tiny_model: Path,
    tiny_federation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    code: str,
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(run_module, "write_adapter", fail)
    flat = config(tiny_model, tiny_federation, tmp_path / "runs", round__count=1)
    with pytest.raises(ConfideError) as caught:
        run(flat, Transport(holders(tiny_federation, tmp_path / "ledgers")))
    assert caught.value.code == code
    assert ended(only_folder(tmp_path / "runs")) == ("failed", code)


def test_a_run_cannot_start_where_no_folder_can_be_made(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file")
    flat = config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(ConfideError, match=r"run\.folder"):
        run(flat, Transport([]))


def test_a_bound_on_how_many_there_are_is_never_taken_for_how_many(
    tiny_model: Path, tmp_path: Path
) -> None:
    """opacus#74, FAULTS F16: two holders of one record each trained, and the claim was withdrawn
    since train.batch was taken for their number."""
    data = tiny.save_federation(tmp_path / "data", holders=2, records=1)
    changes = {"train__batch": 4096, "privacy__delta": 1e-3, "round__min_holders": 2}
    flat = config(tiny_model, data, tmp_path / "runs", **changes)
    folder = run(flat, Transport(holders(data, tmp_path / "ledgers")))
    claim = report(folder)["claim"]
    assert claim["private"]
    assert math.isfinite(claim["epsilon"])
