"""The adapter that a holder keeps to itself, where a method leaves a factor with it (``fedsa``).

One file for each run beside the ledger, for this user alone, replaced durably before the update
is released: after a crash in between it is a round ahead, never behind what has left. It is the
whole adapter as this holder trained it last, with the settings of its run. What of it stays, and
why that protects nobody, is the method's to say (``common.methods``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ...common.adapter.schema import AdapterSchema, check_adapter, set_adapter
from ...common.errors import ConfideError
from ...common.machine.paths import replace_durably
from ...common.models.hub import write_adapter
from ...common.models.loading import load_model
from ...common.settings import from_flat
from ...common.wire.messages import TrainRequest

_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An adapter (float32, by name), the round after which it is, and the settings of its run."""

    adapter: Mapping[str, Tensor]
    round: int
    settings: Mapping[str, Any]


class Personal:
    """What a holder keeps of the run of a task, beside its ledger; nothing is looked at before it
    is asked for.

    Raises:
        ConfideError: as ``personal_file``, ``load_personal`` and ``save_personal``.
    """

    def __init__(self, ledger: Path, request: TrainRequest) -> None:
        self._ledger, self._task = ledger, request

    def load(self, schema: AdapterSchema) -> Mapping[str, Tensor]:
        """The adapter of the last round, by name; empty before the first."""
        path = personal_file(self._ledger, self._task.run)
        return load_personal(path, schema).adapter if path.exists() else {}

    def save(self, adapter: Mapping[str, Tensor]) -> None:
        """Keep the adapter as that of the task's round."""
        request = self._task
        kept = Kept(adapter=adapter, round=request.round, settings=request.settings)
        save_personal(personal_file(self._ledger, request.run), kept)


def personal_file(ledger: Path, run: str) -> Path:
    """Where the adapter of a run lies.

    Raises:
        ConfideError: ``task.run`` for an id that is no file name.
    """
    if not _RUN.fullmatch(run):
        raise ConfideError("task.run", "The run's id is not 1 to 128 of A-Z a-z 0-9 . _ -")
    return ledger.with_name(f"{ledger.name}.personal") / f"{run}.safetensors"


def save_personal(path: Path, personal: Kept) -> None:
    """Replace the file.

    Raises:
        ConfideError: ``personal.write``.
    """
    told = {"round": personal.round, "settings": dict(personal.settings)}
    tensors = {name: tensor.contiguous() for name, tensor in personal.adapter.items()}
    data = save(tensors, metadata={"personal": json.dumps(told)})
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_durably(path, data)
    except OSError as error:
        raise ConfideError(
            "personal.write",
            f"{path} cannot be written: {error.strerror}.",
            "Make room, or let this user write there; the round is charged all the same.",
        ) from None


def load_personal(path: Path, schema: AdapterSchema | None = None) -> Kept:
    """Read the file, strictly if ``schema`` is what it has to be of.

    Raises:
        ConfideError: ``personal.missing`` or ``personal.damaged``.
    """
    if not path.is_file():
        raise ConfideError(
            "personal.missing",
            f"There is no personal adapter {path}.",
            "It is there after the first round of a run with aggregate.method = 'fedsa'.",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["personal"])
            adapter = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = Kept(adapter=adapter, round=told["round"], settings=told["settings"])
        if schema is not None:
            check_adapter(adapter, dict(schema.shapes))
    except Exception as error:  # noqa: BLE001 - safetensors raises a type of its own and others
        raise ConfideError(
            "personal.damaged",
            f"{path} is not a personal adapter of this run ({type(error).__name__}).",
            "Put a copy back, or remove it: this holder's B then starts anew.",
        ) from None
    return found


def export_personal(path: Path, folder: Path) -> int:
    """Write the adapter in the Hub's format, for plain PEFT; returns the round after which it is.

    Raises:
        ConfideError: ``personal.folder`` for one that is not new or empty, and what reading the
            file and loading its model raise.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfideError("personal.folder", f"{folder} exists already.", "Name a new folder.")
    personal = load_personal(path)
    settings = from_flat(personal.settings)
    loaded = load_model(settings)
    set_adapter(loaded.model, personal.adapter)
    write_adapter(settings, loaded, folder)
    return personal.round
