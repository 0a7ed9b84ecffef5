"""Utility on the coordinator's own public, held-out text; private text is never measured here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.batches import EncodedText, forward
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.settings import Settings
from ..common.tasks import task_for
from ..common.text.readers import read_records

PUBLIC_FILE = "public.jsonl"


@dataclass(frozen=True)
class Score:
    """Mean loss in nats and accuracy over ``examples`` public records."""

    examples: int
    loss: float
    accuracy: float


class Evaluator:
    """The held-out text, encoded once; the frozen layers are computed once, too."""

    def __init__(self, loaded: LoadedModel, settings: Settings, folder: Path) -> None:
        path = folder / PUBLIC_FILE
        if not path.is_file():
            raise ConfideError(
                "data.missing-file",
                f"There is no {PUBLIC_FILE} in {folder}.",
                "The coordinator needs held-out public text to see what a round brought.",
            )
        self._task, self._loaded = task_for(settings.task), loaded
        records = read_records(path, text=settings.data.text, target=settings.data.target)
        examples = self._task.encode(records, loaded.tokenizer, loaded.max_length)
        self._text = EncodedText(examples, loaded)

    @torch.no_grad()
    def score(self) -> Score:
        """Score the adapter that the model carries now."""
        loss, right = 0.0, 0
        for batch in self._text.batches():
            logits = forward(self._loaded, self._task, batch)
            loss += float(self._task.losses(logits, batch.targets).sum())
            right += int((logits.argmax(-1) == batch.targets).sum())
        count = len(self._text)
        return Score(examples=count, loss=loss / count, accuracy=right / count)
