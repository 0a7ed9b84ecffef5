"""A run's base model and adapter as one model in the Hub's format, for plain transformers.

The merged weights are the base's plus the scaled product of LoRA's factors; a trained head takes
the place of the base's. README.md beside them has the code that loads and uses them: a model with
``task.pooling = mean`` is a token classifier whose scores are averaged over a text's tokens. The
family's text classifier would read it wrongly and say nothing, so a weight that it alone has lies
in the file as an empty one, which it refuses (``common.models.hub`` has more of this).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ..common.errors import ConfideError
from ..common.machine.paths import public_name
from ..common.models.hub import foreign_weights, tokenizer_of, with_labels
from ..common.settings import Settings
from .card import merged_card
from .predict import open_run
from .run_folder import translated


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
