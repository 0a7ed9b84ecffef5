"""kill -9 of the coordinator in any round: resumed, it ends in the same adapter and epsilon."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from confide.common.adapter.schema import WEIGHTS_FILE
from confide.common.privacy.ledger import Ledger
from confide.server.checkpoint import FILE
from confide.server.run import run
from tests import warm
from tests.crash.coordinator import PLACES
from tests.server.federated import Transport, config, events, holders, only_folder

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
KILLED = -9
OFF = {"privacy__trust": "off", "privacy__noise_multiplier": "auto"}
NOISES: dict[str, dict[str, Any]] = {"noise": {}, "no noise": OFF}


def settings(model: Path, data: Path, out: Path, noise: str) -> dict[str, Any]:
    return config(model, data, out, round__count=ROUNDS, train__lr=0.1, **NOISES[noise])


def outcome(folder: Path, ledgers: Path) -> dict[str, Any]:
    """What must not depend on whether the coordinator was killed."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    steps = {}
    for path in sorted(ledgers.glob("*/ledger.sqlite")):
        with Ledger.open(path) as ledger:
            steps[path.parent.name] = sum(s.steps for s in ledger.steps())
    return {
        "adapter": (folder / "adapter" / WEIGHTS_FILE).read_bytes(),
        "epsilon": report["claim"]["epsilon"],
        "events": [row["events"] for row in report["holders"]],
        "steps": steps,
    }


@pytest.fixture(scope="module")
def unbroken(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    @cache
    def make(noise: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("unbroken")
        flat = settings(tiny_model, tiny_federation, out / "runs", noise)
        folder = run(flat, Transport(holders(tiny_federation, out / "ledgers")))
        return outcome(folder.path, out / "ledgers")

    return make


QUICK = [("answered", 1, "noise"), ("written", 2, "no noise")]
EVERY = [(p, n, x) for p in PLACES for n in range(1, ROUNDS + 1) for x in NOISES]


@pytest.mark.parametrize(
    ("place", "at", "noise"),
    [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in EVERY if c not in QUICK)],
)
def test_a_coordinator_that_was_killed_goes_on_bit_for_bit(
    tiny_model: Path,
    tiny_federation: Path,
    tmp_path: Path,
    unbroken: Callable[[str], dict[str, Any]],
    place: str,
    at: int,
    noise: str,
) -> None:
    flat = settings(tiny_model, tiny_federation, tmp_path / "runs", noise)
    (tmp_path / "config.json").write_text(json.dumps(flat), encoding="utf-8")
    arguments = [tmp_path / "config.json", tiny_federation, tmp_path / "ledgers", place, at]
    done = warm.run_module("tests.crash.coordinator", *arguments, cwd=ROOT)
    assert done.returncode == KILLED, done.stderr[-2000:]
    path = only_folder(tmp_path / "runs")
    assert (path / FILE).is_file()
    assert events(path, "end") == []  # it had no time to say anything

    again = Transport(holders(tiny_federation, tmp_path / "ledgers"))
    run({**flat, "run.resume": str(path)}, again)
    first = at + 1 if place == "saved" else at
    assert [task.round for task in again.tasks] == list(range(first, ROUNDS + 1))
    assert outcome(path, tmp_path / "ledgers") == unbroken(noise)
