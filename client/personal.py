"""What stays at the holder under ``fedsa``: LoRA's B, and with it an adapter of its own.

Guo et al. 2024, "Selective aggregation for low-rank adaptation in federated learning" (FedSA-LoRA):
A is shared and averaged, B never leaves. Both are trained, by the one private step over all that is
trained, clipped together and with noise on both: what leaves, the change of A and of the head, is
a part of what that step may publish, so that its promise is the plan's. B could be published, too;
that it stays makes the adapter personal, not private. The noise of B multiplies that of A all the
same, now in each holder's product and without an average over the holders' B: few trained values
and a large epsilon, or it is mostly noise (``confide doctor`` says so).

One file for each run beside the ledger, for this user alone, replaced durably before the update
is released: after a crash in between B is a round ahead, never behind what has left. It is the
whole adapter as this holder trained it last, with the settings of its run.
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

from ..common.adapter import AdapterSchema, check_adapter, set_adapter
from ..common.errors import ConfideError
from ..common.hub import write_adapter
from ..common.models import load_model
from ..common.paths import replace_durably
from ..common.settings import from_flat

_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Personal:
    """An adapter (float32, by name), the round after which it is, and the settings of its run."""

    adapter: Mapping[str, Tensor]
    round: int
    settings: Mapping[str, Any]


def personal_file(ledger: Path, run: str) -> Path:
    """Where the adapter of a run lies.

    Raises:
        ConfideError: ``task.run`` for an id that is no file name.
    """
    if not _RUN.fullmatch(run):
        raise ConfideError("task.run", "The run's id is not 1 to 128 of A-Z a-z 0-9 . _ -")
    return ledger.with_name(f"{ledger.name}.personal") / f"{run}.safetensors"


def save_personal(path: Path, personal: Personal) -> None:
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


def load_personal(path: Path, schema: AdapterSchema | None = None) -> Personal:
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
        found = Personal(adapter=adapter, round=told["round"], settings=told["settings"])
        if schema is not None:
            check_adapter(adapter, dict(schema.shapes))
    except Exception as error:  # noqa: BLE001 - safetensors raises a type of its own and others
        raise ConfideError(
            "personal.damaged",
            f"{path} is no personal adapter of this run ({type(error).__name__}).",
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
        raise ConfideError("personal.folder", f"{folder} is there already.", "Name a new folder.")
    personal = load_personal(path)
    settings = from_flat(personal.settings)
    loaded = load_model(settings)
    set_adapter(loaded.model, personal.adapter)
    write_adapter(settings, loaded, folder)
    return personal.round
