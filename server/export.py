"""A run's base model and adapter as one model in the Hub's format, for plain transformers.

The merged weights are the base's plus the scaled product of LoRA's factors; a trained head takes
the place of the base's. README.md beside them has the code that loads and uses them: a model with
``task.pooling = mean`` is a token classifier whose scores are averaged over a text's tokens.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ..common.errors import ConfideError
from .predict import open_run
from .run_folder import translated
from .usage import explained, loading_code


def export_merged(run: Path, folder: Path) -> None:
    """Write the model of the run into ``folder``, which must be new or empty.

    Raises:
        ConfideError: ``export.folder``, and what ``open_run`` raises.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfideError(
            "export.folder",
            f"{folder} is there already, and is never overwritten.",
            "Name a new folder.",
        )
    settings, loaded = open_run(run)
    # A copy: the model in memory stays warm, with its adapter apart.
    merged = copy.deepcopy(loaded.model).merge_and_unload()
    merged.config.use_cache = True
    flat = settings.to_flat()
    code = loading_code(flat, settings.model.name, merged=True)
    base = json.dumps(Path(settings.model.name).name, ensure_ascii=False)
    why = explained(flat)
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        merged.save_pretrained(str(folder))
        loaded.tokenizer.save_pretrained(str(folder))
        text = (
            f"# {base} with the adapter of a run of confide, merged\n\n"
            "The privacy report of the run tells what this model promises.\n\n"
            f"{why}{' ' if why else ''}To use it:\n\n```python\n{code}```\n"
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
