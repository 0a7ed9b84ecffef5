"""Use a run's adapter: load it strictly into its base model and classify texts."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.adapter import load_adapter, set_adapter
from ..common.batches import EncodedText, forward
from ..common.errors import ConfideError
from ..common.models import load_model
from ..common.settings import Settings, from_flat
from ..common.tasks import task_for
from ..common.text.readers import Record


@dataclass(frozen=True)
class Prediction:
    """The most probable label of a text, and every label's probability."""

    label: str
    probabilities: dict[str, float]


def run_settings(folder: Path) -> Settings:
    """The settings of a run, from its config.toml."""
    path = folder / "config.toml"
    if not path.is_file():
        raise ConfideError("run.missing", f"{folder} is no run folder.", "Name a folder in runs/.")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return from_flat({f"{t}.{k}": v for t, values in tables.items() for k, v in values.items()})


@torch.no_grad()
def predict(folder: Path, texts: Sequence[str]) -> list[Prediction]:
    """Classify ``texts`` with the adapter of the run in ``folder``."""
    settings = run_settings(folder)
    loaded, task = load_model(settings), task_for(settings.task)
    set_adapter(loaded.model, load_adapter(folder / "adapter"))
    records = [Record(text=text, target=None, person=None) for text in texts]
    examples = task.encode(records, loaded.tokenizer, loaded.max_length, labelled=False)
    text, out = EncodedText(examples, loaded), []
    for index in range(len(examples)):
        (batch,) = text.batches([index])
        shares = forward(loaded, task, batch).float().softmax(-1)[0].tolist()
        by_label = dict(zip(task.labels, shares, strict=True))
        out.append(Prediction(max(by_label, key=lambda name: by_label[name]), by_label))
    return out
