"""A synthetic run folder: ten holders, twenty rounds, real ledgers of two of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from confide import __version__
from confide.common.privacy.accountant import GaussianSteps, calibrate, epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger, Receipt
from confide.common.privacy.plan import Plan, Relation, Trust, Unit
from confide.server.seal import seal

HOLDERS, ROUNDS, BATCH, RECORDS = 10, 20, 600, 500
EPSILON, DELTA = 8.0, 1e-5
RUN = "20260101-120000-editorials"
PERSON = "article"
WITH_LEDGER = ("holder-00", "holder-01")
LATE_HOLDER, LATE_ROUND = "holder-07", 12  # it gave no answer in this round

Edit = Callable[[list[dict[str, Any]]], None]
MakeRun = Callable[..., Path]


@lru_cache(maxsize=1)
def plan() -> Plan:
    """Every holder has fewer records than the batch, so that the sampling rate is 1."""
    noise = calibrate(epsilon=EPSILON, delta=DELTA, sampling_rate=1.0, steps=ROUNDS)
    return Plan(
        unit=Unit.RECORD,
        relation=Relation.ADD_OR_REMOVE_ONE,
        trust=Trust.LOCAL,
        clip_norm=1.0,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=ROUNDS,
        delta=DELTA,
    )


def steps_after(rounds: int) -> tuple[GaussianSteps, ...]:
    noise = plan().noise_multiplier
    return (GaussianSteps(noise_multiplier=noise, sampling_rate=1.0, steps=rounds),)


@lru_cache(maxsize=64)
def epsilon_after(rounds: int) -> float:
    return epsilon_pld(steps_after(rounds), DELTA)


def config(**changes: object) -> str:
    rooms: dict[str, dict[str, object]] = {
        "model": {"name": "sentence-transformers/all-MiniLM-L6-v2"},
        "task": {"labels": "negative,positive"},
        "data": {"path": "/somewhere/private/nyt", "person": PERSON},
        "privacy": {"epsilon": EPSILON, "delta": DELTA},
        "train": {"batch": BATCH},
        "round": {"count": ROUNDS},
        "aggregate": {},
        "run": {"name": "editorials"},
    }
    for key, value in changes.items():
        room, _, name = key.partition("__")
        rooms[room][name.replace("_", "-")] = value
    return "\n".join(
        f"[{room}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for room, keys in rooms.items()
    )


def made_up_receipt(holder: str, number: int) -> dict[str, Any]:
    """What a holder whose ledger stays with it says after its ``number``-th charge."""
    return Receipt(
        ledger_id=f"{holder}-ledger",
        head=f"{number:064x}",
        entries=2 + 2 * number,
        delta=DELTA,
        epsilon=epsilon_after(number),
        proven=epsilon_after(ROUNDS),
        unmasked=epsilon_after(ROUNDS),
        runs=1,
        limit=None,
        steps_run=steps_after(number),
    ).to_json()


def real_receipts(
    folder: Path, holder: str, unit: Unit, rounds: int, before: str, limit: float | None
) -> list[dict[str, Any]]:
    """Charge and release every round in a ledger of the run folder, after a whole run ``before``,
    if that has a name."""
    person = PERSON if unit is Unit.PERSON else ""
    charged = replace(plan(), unit=unit)
    path = folder / "holders" / holder / "ledger.sqlite"
    path.parent.mkdir(parents=True)
    receipts = []
    with Ledger.open(path) as ledger:
        earlier = [(before, number) for number in range(1, ROUNDS + 1) if before]
        for run, number in (*earlier, *((RUN, number) for number in range(1, rounds + 1))):
            task_hash = f"{1000 * (run == before) + number:064x}"
            charge = Charge(run=run, round=number, task_hash=task_hash, plan=charged, person=person)
            ledger.charge(charge, limit)
            if run == RUN:
                receipts.append(ledger.receipt(DELTA, RUN).to_json())
            ledger.release(task_hash, b"an update", f"{holder}-text")
    return receipts


def start_line() -> dict[str, Any]:
    return {
        "event": "start",
        "time": "2026-01-01T12:00:00+00:00",
        "run": RUN,
        "model": {
            "name": "sentence-transformers/all-MiniLM-L6-v2",
            "parameters": 22_713_216,
            "trained": 74_498,
            "sent": [74_498],
            "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        "federation": {"holders": HOLDERS},
        "software": {
            "confide": __version__,
            "torch": "2.13.0",
            "opacus": "1.6.0",
            "flwr": "1.41.0",
        },
    }


def events(
    folder: Path, unit: Unit, rounds: int, before: str, limit: float | None
) -> list[dict[str, Any]]:
    names = [f"holder-{index:02d}" for index in range(HOLDERS)]
    receipts = {
        name: real_receipts(folder, name, unit, rounds, before, limit) for name in WITH_LEDGER
    }
    charged = dict.fromkeys(names, 0)
    lines = [start_line(), evaluation(0)]
    for number in range(1, ROUNDS + 1):
        accepted, left_out = [], []
        for name in names:
            if (name, number) == (LATE_HOLDER, LATE_ROUND):
                left_out.append({"holder": name, "code": "policy.rounds"})
                continue
            charged[name] += 1
            told = receipts.get(name)
            known = told is not None and number <= rounds
            receipt = told[number - 1] if known else made_up_receipt(name, charged[name])
            accepted.append({"holder": name, "bytes_up": 297_992, "receipt": receipt})
        lines.append(
            {
                "event": "round",
                "round": number,
                "seconds": 6.1,
                "bytes_down": 297_992,
                "bytes_up": 297_992,
                "accepted": accepted,
                "left_out": left_out,
                "abandoned": False,
            }
        )
        lines.append(evaluation(number))
    end = {"time": "2026-01-01T12:04:00+00:00", "status": "finished", "code": ""}
    return [*lines, {"event": "end", **end, "seconds": 187.4, "peak_memory_mb": 1830.5}]


def evaluation(number: int) -> dict[str, Any]:
    accuracy = 0.57 + 0.26 * (1 - 0.8**number)
    return {
        "event": "evaluation",
        "round": number,
        "examples": 418,
        "loss": 0.69 - 0.3 * (1 - 0.8**number),
        "accuracy": accuracy,
    }


YARDSTICKS = [
    {"name": "No privacy", "accuracy": 0.846, "epsilon": None, "delta": None, "note": ""},
    {"name": "Central DP on the pooled rows", "accuracy": 0.831, "epsilon": 8.0, "note": ""},
    {"name": "A private head alone", "accuracy": 0.81, "epsilon": 8.0, "note": ""},
    {"name": "One holder alone", "accuracy": 0.689, "epsilon": 8.0, "note": "mean of 10"},
    {
        "name": "TF-IDF + logistic regression, pooled, no privacy",
        "accuracy": 0.65,
        "epsilon": None,
        "note": "",
    },
]


def safetensors(tensors: dict[str, bytes]) -> bytes:
    """A file of float32 vectors in the safetensors format."""
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": [len(data) // 4],
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run folder that every test gets a copy of; forty synced charges take a while."""

    def make(unit: str, rounds: int, before: str, limit: float | None) -> Path:
        place = tmp_path_factory.mktemp("pattern")
        return make_pattern(place, Unit(unit), rounds, before, limit)

    return lru_cache(make)


def make_pattern(place: Path, unit: Unit, rounds: int, before: str, limit: float | None) -> Path:
    folder = place / RUN
    folder.mkdir()
    lines = events(folder, unit, rounds, before, limit)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "yardsticks.json").write_text(json.dumps(YARDSTICKS), encoding="utf-8")
    (folder / "adapter").mkdir()
    trained = safetensors({"lora_A.weight": b"\0\0\x80\x3f", "lora_B.weight": b"\0\0\0\x3f"})
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(trained)
    return folder


@pytest.fixture
def make_run(pattern: Callable[..., Path], tmp_path: Path) -> MakeRun:
    """Make the run folder; ``edit`` may change its metrics, ``charged`` the unit that its ledgers
    were charged for, ``rounds`` how many, ``before`` and ``limit`` what they had to keep to; other
    keywords its config."""

    def make(
        edit: Edit | None = None,
        charged: str = "",
        *,
        rounds: int = ROUNDS,
        before: str = "",
        limit: float | None = None,
        **changes: object,
    ) -> Path:
        folder = tmp_path / "runs" / RUN
        unit = charged or str(changes.get("privacy__unit", "record"))
        if not folder.exists():
            shutil.copytree(pattern(unit, rounds, before, limit), folder)
        lines = events_of(folder)
        if edit:
            edit(lines)
        (folder / "config.toml").write_text(config(**changes), encoding="utf-8")
        write_events(folder, lines)
        return folder

    return make


def write_events(folder: Path, lines: list[dict[str, Any]]) -> None:
    """metrics.jsonl as a run writes it: an end has a seal of all before it."""
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(b"")
    for line in lines:
        told = {**line, "seal": seal(folder)} if line["event"] == "end" else line
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def events_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reseal(folder: Path) -> None:
    """As if the run had ended with what is there now."""
    write_events(folder, events_of(folder))


@pytest.fixture
def run_folder(make_run: MakeRun) -> Path:
    return make_run()


@pytest.fixture
def torch_free_report(run_folder: Path) -> dict[str, Any]:
    from confide.server.report.build import build_report

    return build_report(run_folder, prv=False)
