"""Use a run's adapter: load it strictly into its base model, and answer for texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.adapter.schema import load_adapter, set_adapter
from ..common.errors import ConfideError
from ..common.machine.paths import local_or_cached
from ..common.methods import method_of
from ..common.models.batches import EncodedText, forward
from ..common.models.loading import LoadedModel, load_model
from ..common.settings import Settings
from ..common.tasks import Prediction
from ..common.text.readers import Record
from .evaluation import Evaluator, Score, public_evaluator
from .run_folder import run_settings


def open_run(folder: Path) -> tuple[Settings, LoadedModel]:
    """The settings of a run, and its model with the run's adapter in it.

    Raises:
        ConfideError: ``run.missing`` or ``adapter.missing`` for a folder that is no finished run.
    """
    settings = run_settings(folder)
    adapter = load_adapter(folder / "adapter")
    loaded = load_model(method_of(settings.aggregate.method).as_saved(settings, adapter))
    set_adapter(loaded.model, adapter)
    return settings, loaded


@torch.no_grad()
def predict(folder: Path, texts: Sequence[str]) -> list[Prediction]:
    """Answer for each of ``texts`` with the adapter of the run in ``folder``: a label, a number, or
    a text that the model writes.

    Raises:
        ConfideError: ``data.empty`` for a blank text, ``data.too-long`` or ``data.no-mask`` for one
            that the task cannot answer, and what ``open_run`` raises.
    """
    for number, one in enumerate(texts, start=1):
        if not one.strip():
            raise ConfideError("data.empty", f"Text {number} is blank.", "Give it some words.")
    _, loaded = open_run(folder)
    records = [Record(text=text) for text in texts]
    if not loaded.task.by_logits:
        return [Prediction(text) for text in loaded.task.generate(records, loaded, whole=True)]
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length, labelled=False)
    text, out = EncodedText(examples, loaded), list[Prediction]()
    for index in range(len(examples)):
        (batch,) = text.batches([index])
        out += loaded.task.tell(forward(loaded, loaded.task, batch))
    return out


def evaluate_run(
    folder: Path, file: Path | None = None, *, text: str | None = None, target: str | None = None
) -> Score:
    """Score the adapter of the run in ``folder`` on ``file``, or on its federation's public text.

    Args:
        text, target: columns of ``file``; the run's own where they are None.

    Raises:
        ConfideError: ``data.missing-file``, and what ``Evaluator`` and ``open_run`` raise.
    """
    if file is None and (text, target) != (None, None):
        raise ConfideError(
            "data.missing-file",
            "You named columns, but no file.",
            "Name the file with these columns; the run's own text needs none.",
        )
    settings, loaded = open_run(folder)
    if file is not None:
        columns = replace(
            settings.data,
            text=settings.data.text if text is None else text,
            target=settings.data.target if target is None else target,
        )
        return Evaluator(loaded, columns, file, own_screen=True).score()
    data = local_or_cached(settings.data.path, "federations")
    if data is None:
        raise ConfideError(
            "data.missing-file",
            f"The federation {settings.data.path!r} of the run is not on this machine.",
            "Name a file of records to score on.",
        )
    return public_evaluator(loaded, settings, data).score()
