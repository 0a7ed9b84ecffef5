"""Use a run's adapter: load it strictly into its base model and classify texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.adapter import load_adapter, set_adapter
from ..common.batches import EncodedText, forward
from ..common.errors import ConfideError
from ..common.models import load_model
from ..common.tasks import task_for
from ..common.text.readers import Record
from .run_folder import run_settings


@dataclass(frozen=True)
class Prediction:
    """The most probable label of a text, and every label's probability."""

    label: str
    probabilities: dict[str, float]


@torch.no_grad()
def predict(folder: Path, texts: Sequence[str]) -> list[Prediction]:
    """Classify ``texts`` with the adapter of the run in ``folder``.

    Raises:
        ConfideError: ``data.empty`` for a blank text, ``run.missing`` or ``adapter.missing`` for a
            folder that is no finished run.
    """
    for number, one in enumerate(texts, start=1):
        if not one.strip():
            raise ConfideError("data.empty", f"Text {number} is blank.", "Give it some words.")
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
