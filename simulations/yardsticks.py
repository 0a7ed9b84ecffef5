"""Yardsticks: what the private federation has to be held against, on the same text.

Without privacy; one holder alone; a private head alone; central training on the pooled records
under the same epsilon; and for classes TF-IDF with logistic regression, which needs no language
model at all. Each is a run of the same code with other settings, in this process, below the run's
own folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.machine.paths import local_or_cached
from ..common.metrics import compute
from ..common.settings import Scalar, Settings, from_flat
from ..common.tasks import TASKS, task_for
from ..common.text.readers import Record, read_records
from .simulation import in_process

_ONE_HOLDER: Mapping[str, Scalar] = {"round.min-holders": 1, "round.holders": 1}


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A comparison: settings that differ, and which of the federation's files take part."""

    name: str
    note: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    files: str = "all"  # all, first, pooled


YARDSTICKS = (
    Yardstick(
        name="No privacy",
        note="the same federation and clipping without noise",
        settings={"privacy.trust": "off", "privacy.noise-multiplier": "auto"},
    ),
    Yardstick(
        name="One holder alone",
        note="holder-00 with its own text, the same epsilon",
        settings=_ONE_HOLDER,
        files="first",
    ),
    Yardstick(
        name="Private head alone",
        note="the same federation and epsilon, no LoRA",
        settings={"lora.method": "head"},
    ),
    Yardstick(
        name="Central, pooled records",
        note="one place holds all records, the same epsilon",
        settings=_ONE_HOLDER,
        files="pooled",
    ),
)


def measure(folder: Path, config: Mapping[str, Scalar], say: Callable[[str], None]) -> None:
    """Run all yardsticks of a finished run and leave ``yardsticks.json`` in its folder."""
    settings = from_flat(config)
    data = local_or_cached(settings.data.path, "federations")
    if data is None:
        raise FileNotFoundError(settings.data.path)
    rows = _without_a_model(data, settings)
    language = TASKS[settings.task.kind].language
    for yardstick in YARDSTICKS:
        if language and yardstick.settings.get("lora.method") == "head":
            continue  # a language model's head is the base model's own, and stays frozen
        say(yardstick.name)
        rows.append(_run(yardstick, folder, data, config))
    (folder / "yardsticks.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _run(
    yardstick: Yardstick, folder: Path, data: Path, config: Mapping[str, Scalar]
) -> dict[str, Any]:
    files = sorted(data.glob("holder-*.jsonl"))
    batch = int(config.get("train.batch", Settings().train.batch))
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        if yardstick.files == "first":
            files = files[:1]
        elif yardstick.files == "pooled":
            pooled = Path(scratch) / "pooled.jsonl"
            pooled.write_bytes(b"".join(path.read_bytes() for path in files))
            batch, files = batch * len(files), [pooled]
        name = yardstick.name.lower().replace(",", "").replace(" ", "-")
        out = Path(scratch) / "runs"
        changed: dict[str, Scalar] = {"run.out": str(out), "run.name": name, "run.resume": ""}
        changed |= {"data.path": str(data), "train.batch": batch, **yardstick.settings}
        overrides = {**config, **changed, "run.id": ""}
        report = in_process(overrides, files).report
    utility = report["utility"]
    private = overrides.get("privacy.trust", "local") != "off"
    return {
        "name": yardstick.name,
        **{name: value for name, value in utility["after"].items() if name != "loss"},
        "epsilon": report["claim"]["epsilon"] if private else None,
        "delta": report["claim"]["delta"] if private else None,
        "note": yardstick.note,
    }


def _without_a_model(data: Path, settings: Settings) -> list[dict[str, Any]]:
    """The task's own yardsticks: pooled, without privacy and a language model."""

    def rows(path: Path) -> list[Record]:
        data, lists = settings.data, TASKS[settings.task.kind].lists
        return read_records(path, text=data.text, target=data.target or None, lists=lists)

    task = task_for(settings.task)
    train = [r for path in sorted(data.glob("holder-*.jsonl")) for r in rows(path)]
    rest = {"epsilon": None, "delta": None, "note": "pooled records, no privacy"}
    return [
        {"name": name, **{m: compute(m, answers, right) for m in task.metrics}, **rest}
        for name, (answers, right) in task.yardsticks(train, rows(data / "public.jsonl")).items()
    ]
