"""After every round, what the coordinator needs to go on: adapter, optimizer state, receipts.

One safetensors file, replaced atomically, so a coordinator killed at any instant finds either the
last round or this one. It holds public values only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.adapter import AdapterSchema
from ..common.errors import ConfideError
from ..common.privacy.ledger import Receipt
from .aggregation import ServerOptimizer
from .run_folder import RunFolder

FILE = "checkpoint/state.safetensors"
_OPTIMIZER = "optimizer."
# Abandoned rounds in a row before a run gives up: each is charged to whoever released in it. Two
# may be a network's bad minute.
MOST_ABANDONED = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after ``round``.

    Attributes:
        advanced: how many rounds moved the adapter; the others were abandoned.
        schema: the digest of the adapter's schema.
        adapter: the whole adapter (N,).
        merged: what the run has added to the frozen weights (P,); empty where it adds nothing.
        optimizer: the tensors of the optimizer, by name.
        losses: on public text after each round that was not abandoned, and after none (0).
        receipts: the newest of each holder, which the next one has to go on from.
        barred: holders whose ledger went back, whose word is not taken again.
        abandoned: how many rounds were, in a row, up to this one.
        best: the adapter (N,) after the round with the least public loss, where that one is kept.
    """

    round: int
    advanced: int
    schema: str
    adapter: Tensor
    optimizer: dict[str, Tensor]
    losses: Mapping[int, float] = field(default_factory=dict)
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    barred: frozenset[str] = frozenset()
    best: Tensor | None = None
    abandoned: int = 0
    merged: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def outcome(self) -> Tensor:
        """The adapter (N,) that the run leaves."""
        return self.adapter if self.best is None else self.best


@dataclass
class State:
    """A run as it goes: the adapter (N,), the step that moves it, and the rest of a checkpoint,
    with ``round`` as ``done``."""

    adapter: Tensor
    optimizer: ServerOptimizer
    merged: Tensor
    done: int = 0
    advanced: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    best: Tensor | None = None
    abandoned: int = 0

    @classmethod
    def of(cls, found: Checkpoint, optimizer: ServerOptimizer) -> State:
        """As a checkpoint has it. A run that ended since its rounds were abandoned tries again."""
        return cls(
            found.adapter,
            optimizer,
            found.merged,
            found.round,
            found.advanced,
            dict(found.losses),
            dict(found.receipts),
            set(found.barred),
            found.best,
            found.abandoned if found.abandoned < MOST_ABANDONED else 0,
        )

    def checkpoint(self, schema: AdapterSchema) -> Checkpoint:
        """What a resumed run needs of it."""
        return Checkpoint(
            round=self.done,
            advanced=self.advanced,
            schema=schema.digest,
            adapter=self.adapter,
            merged=self.merged,
            optimizer=self.optimizer.state(),
            losses=self.losses,
            receipts=self.receipts,
            barred=frozenset(self.barred),
            best=self.best,
            abandoned=self.abandoned,
        )


def save_checkpoint(folder: RunFolder, state: Checkpoint) -> None:
    """Replace the run's checkpoint, durably."""
    tensors = {"adapter": state.adapter.contiguous(), "merged": state.merged.contiguous()}
    tensors |= {_OPTIMIZER + name: tensor.contiguous() for name, tensor in state.optimizer.items()}
    if state.best is not None:
        tensors["best"] = state.best.contiguous()
    header = {
        "round": state.round,
        "advanced": state.advanced,
        "schema": state.schema,
        "losses": list(state.losses.items()),
        "receipts": {name: receipt.to_json() for name, receipt in state.receipts.items()},
        "barred": sorted(state.barred),
        "abandoned": state.abandoned,
    }
    folder.write(FILE, save(tensors, metadata={"state": json.dumps(header)}))


def load_checkpoint(
    folder: RunFolder, schema: AdapterSchema, merged: int = 0, stepped: int | None = None
) -> Checkpoint:
    """Read the checkpoint of a run.

    Args:
        merged: how many values were added to the frozen weights.
        stepped: how many the optimizer moves; the schema's trained ones, unless a method leaves
            some of them at the holders.

    Raises:
        ConfideError: ``run.resume`` when it is missing, unreadable or of another adapter.
    """
    path = folder.path / FILE
    try:
        found = _read(str(path))
    except Exception as error:  # noqa: BLE001 - safetensors raises a type of its own and others
        raise ConfideError(
            "run.resume", f"{path} cannot be read ({type(error).__name__}).", "Start a new run."
        ) from None
    if found.schema != schema.digest:
        raise ConfideError(
            "run.resume",
            f"{path} is of another model, rank or set of layers than the settings name.",
            "Resume with the settings in the run's config.toml.",
        )
    if not _fits(found, schema, merged, schema.trained_size if stepped is None else stepped):
        raise ConfideError("run.resume", f"{path} is damaged.", "Start a new run.")
    return found


def _read(path: str) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Checkpoint(
        round=header["round"],
        advanced=header["advanced"],
        schema=header["schema"],
        adapter=tensors.pop("adapter"),
        best=tensors.pop("best", None),
        merged=tensors.pop("merged", torch.zeros(0)),
        optimizer={name.removeprefix(_OPTIMIZER): t for name, t in tensors.items()},
        losses={int(number): float(loss) for number, loss in header["losses"]},
        receipts={name: Receipt.from_json(r) for name, r in header["receipts"].items()},
        barred=frozenset(header["barred"]),
        abandoned=header["abandoned"],
    )


def _fits(found: Checkpoint, schema: AdapterSchema, merged: int, stepped: int) -> bool:
    """Whether a run can go on from it: sizes, types, and no NaN that would end it later."""
    states = [tensor for tensor in found.optimizer.values() if tensor.dim()]
    adapters = [found.adapter, found.outcome]
    return (
        type(found.round) is int
        and type(found.advanced) is int
        and type(found.abandoned) is int
        and 0 <= found.advanced <= found.round
        and all(a.shape == (schema.size,) and a.dtype == torch.float32 for a in adapters)
        and found.merged.shape == (merged,)
        and found.merged.dtype == torch.float32
        and all(tensor.shape == (stepped,) for tensor in states)
        and all(bool(torch.isfinite(t).all()) for t in _tensors(found))
    )


def _tensors(found: Checkpoint) -> tuple[Tensor, ...]:
    return found.adapter, found.outcome, found.merged, *found.optimizer.values()
