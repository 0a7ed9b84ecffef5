"""After every round, what the coordinator needs to go on: adapter, optimizer state, round.

One safetensors file, replaced atomically, so a coordinator killed at any instant finds either the
last round or this one. It holds public values only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.errors import ConfideError
from .run_folder import RunFolder

FILE = "checkpoint/state.safetensors"
_OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """State after ``round``: the whole adapter (N,), optimizer tensors, and the schema's digest."""

    round: int
    schema: str
    adapter: Tensor
    optimizer: dict[str, Tensor]


def save_checkpoint(folder: RunFolder, state: Checkpoint) -> None:
    """Replace the run's checkpoint, durably."""
    tensors = {"adapter": state.adapter.contiguous()}
    tensors |= {_OPTIMIZER + name: tensor.contiguous() for name, tensor in state.optimizer.items()}
    header = {"state": json.dumps({"round": state.round, "schema": state.schema})}
    folder.write(FILE, save(tensors, metadata=header))


def load_checkpoint(folder: RunFolder, schema: str) -> Checkpoint:
    """Read the checkpoint of a run.

    Raises:
        ConfideError: ``run.resume`` when it is missing, unreadable or of another adapter.
    """
    path = folder.path / FILE
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = Checkpoint(
            round=header["round"],
            schema=header["schema"],
            adapter=tensors.pop("adapter"),
            optimizer={name.removeprefix(_OPTIMIZER): t for name, t in tensors.items()},
        )
    except Exception as error:  # noqa: BLE001 - safetensors raises a type of its own and others
        raise ConfideError(
            "run.resume", f"{path} cannot be read ({type(error).__name__}).", "Start a new run."
        ) from None
    if found.schema != schema:
        raise ConfideError(
            "run.resume",
            f"{path} is of another model, rank or set of layers than the settings name.",
            "Resume with the settings in the run's config.toml.",
        )
    return found
