"""Use a run's adapter: load it strictly into its base model, and answer for texts, or write both as
one model in the Hub's format for plain transformers (``export_merged``).

Merged weights are the base's plus the scaled product of LoRA's factors; a trained head takes
the place of the base's. README.md beside them has the code that loads and uses them: a model with
``task.pooling = mean`` is a token classifier whose scores are averaged over a text's tokens. The
family's text classifier would read it wrongly and say nothing, so a weight that it alone has lies
in the file as an empty one, which it refuses (``common.models.hub`` has more of this).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..common.adapter.schema import load_adapter, set_adapter
from ..common.errors import ConfideError
from ..common.machine.paths import local_or_cached, public_name
from ..common.methods import method_of
from ..common.models.batches import EncodedText, forward
from ..common.models.hub import foreign_weights, tokenizer_of, with_labels
from ..common.models.loading import LoadedModel, load_model
from ..common.settings import Settings
from ..common.tasks import Prediction
from ..common.text.readers import Record
from .card import merged_card
from .evaluation import Evaluator, Score, public_evaluator
from .run_folder import run_settings, translated


def export_merged(run: Path, folder: Path) -> None:
    """Write the model of the run into ``folder``, which must be new or empty.

    Raises:
        ConfideError: ``export.folder``, and what ``open_run`` raises.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfideError(
            "export.folder",
            f"{folder} exists already, and is never overwritten.",
            "Name a new folder.",
        )
    settings, loaded = open_run(run)
    # A copy: the model in memory stays warm, with its adapter apart.
    merged: Any = copy.deepcopy(loaded.model).merge_and_unload()
    merged.config.use_cache = True
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        merged.save_pretrained(str(folder), state_dict=_weights(settings, merged))
        if loaded.task.by_logits:
            with_labels(settings, merged.config).save_pretrained(str(folder))
        tokenizer_of(loaded).save_pretrained(str(folder))
        card = merged_card(settings.to_flat(), public_name(settings.model.name))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _weights(settings: Settings, merged: Any) -> dict[str, torch.Tensor]:
    """The weights, with a tensor of no shape that any class takes under a foreign name."""
    foreign = foreign_weights(settings, merged.config)[:1]
    return {**merged.state_dict(), **{name: torch.zeros(0) for name in foreign}}


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
