"""The state of a run, written after every round: adapter, optimizer state, losses, receipts.

One safetensors file, replaced atomically, so a coordinator killed at any instant finds either the
last round or this one. It holds public values only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.adapter.schema import AdapterSchema
from ..common.errors import ConfideError
from ..common.privacy.ledger import Receipt
from .run_folder import RunFolder

FILE = "checkpoint/state.safetensors"
FORMAT = 4  # of the file; what another version of confide has written is not read
_TENSORS = ("adapter", "merged", "best")
_PLAIN = ("schema", "round", "advanced", "abandoned", "clip")
_OPTIMIZER = "optimizer."
# Abandoned rounds in a row before a run gives up: each is charged to whoever released in it. Two
# may be a network's bad minute.
MOST_ABANDONED = 3


@dataclass(kw_only=True)
class SumTroubles:
    """What went wrong with the secure sums of a run, so that a resumed one asks for a sum by the
    very same request.

    Attributes:
        failed: how many sums each opener did not help to open, by name.
        broken: how many sums were opened and wrong since the last one with everybody that was not.
        suspects: who contributed to all of these, and to none that was right.
    """

    failed: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    suspects: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SumTroubles:
        return cls(
            failed={str(name): int(times) for name, times in data["failed"].items()},
            broken=int(data["broken"]),
            suspects=[str(name) for name in data["suspects"]],
        )


@dataclass(kw_only=True)
class Checkpoint:
    """The state of a run after ``round``, which is all that a resumed one needs: rounds change
    this one object and write it.

    Attributes:
        advanced: how many rounds moved the adapter; the others were abandoned.
        schema: the digest of the adapter's schema.
        adapter: the whole adapter (N,).
        merged: what the run has added to the frozen weights (P,); empty where it adds nothing.
        optimizer: the tensors of the server's optimizer, by name.
        clip: the clip norm of the next round; 0 before the first, or where it is fixed.
        losses: on public text after each round that was not abandoned, and after none (0).
        receipts: the newest of each holder, which the next one has to go on from.
        barred: holders whose ledger went back, whose word is not taken again.
        sums: what went wrong with secure sums.
        abandoned: how many rounds were, in a row, up to this one.
        best: the adapter (N,) after the round with the least public loss, where that one is kept.
    """

    schema: str
    adapter: Tensor
    merged: Tensor = field(default_factory=lambda: torch.zeros(0))
    best: Tensor | None = None
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    round: int = 0
    advanced: int = 0
    abandoned: int = 0
    clip: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    sums: SumTroubles = field(default_factory=SumTroubles)

    @property
    def outcome(self) -> Tensor:
        """The adapter (N,) that the run leaves."""
        return self.adapter if self.best is None else self.best


def save_checkpoint(folder: RunFolder, state: Checkpoint) -> None:
    """Replace the run's checkpoint, durably."""
    tensors = {name: getattr(state, name) for name in _TENSORS if getattr(state, name) is not None}
    tensors |= {_OPTIMIZER + name: tensor for name, tensor in state.optimizer.items()}
    header = {name: getattr(state, name) for name in _PLAIN} | {
        "format": FORMAT,
        "losses": list(state.losses.items()),
        "receipts": {name: receipt.to_json() for name, receipt in state.receipts.items()},
        "barred": sorted(state.barred),
        "sums": asdict(state.sums),
    }
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    folder.write(FILE, save(whole, metadata={"state": json.dumps(header)}))


def load_checkpoint(
    folder: RunFolder, schema: AdapterSchema, merged: int = 0, stepped: int | None = None
) -> Checkpoint:
    """Read the checkpoint of a run.

    Args:
        merged: how many values were added to the frozen weights.
        stepped: how many the optimizer moves; the schema's trained ones, unless a method leaves
            some of them at the holders.

    Raises:
        ConfideError: ``run.resume`` when it is missing, unreadable, of another version of confide
            or of another adapter.
    """
    path = folder.path / FILE
    try:
        header, tensors = _read(str(path))
        found = _checkpoint(header, tensors) if header["format"] == FORMAT else None
    except Exception as error:  # noqa: BLE001 - safetensors raises a type of its own and others
        raise ConfideError(
            "run.resume", f"{path} cannot be read ({type(error).__name__}).", "Start a new run."
        ) from None
    if found is None:
        raise ConfideError(
            "run.resume",
            f"{path} is of another version of confide: its format is {header['format']!r}, not"
            f" {FORMAT}.",
            "Resume with the confide that began the run (its report has the version), or start a"
            " new run.",
        )
    if found.schema != schema.digest:
        raise ConfideError(
            "run.resume",
            f"{path} is of another model, rank or set of layers than the settings name.",
            "Resume with the settings in the run's config.toml.",
        )
    if not _fits(found, schema, merged, schema.trained_size if stepped is None else stepped):
        raise ConfideError("run.resume", f"{path} is damaged.", "Start a new run.")
    return found


def _read(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["state"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _checkpoint(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(
        **{name: header[name] for name in _PLAIN},
        adapter=tensors["adapter"],
        merged=tensors["merged"],
        best=tensors.get("best"),
        optimizer={
            name.removeprefix(_OPTIMIZER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_OPTIMIZER)
        },
        losses={int(number): float(loss) for number, loss in header["losses"]},
        receipts={name: Receipt.from_json(r) for name, r in header["receipts"].items()},
        barred=set(header["barred"]),
        sums=SumTroubles.from_json(header["sums"]),
    )


def _fits(found: Checkpoint, schema: AdapterSchema, merged: int, stepped: int) -> bool:
    """Whether a run can go on from it: sizes, types, and no NaN that would end it later."""
    states = [tensor for tensor in found.optimizer.values() if tensor.dim()]
    adapters = [found.adapter, found.outcome]
    return (
        type(found.round) is int
        and type(found.advanced) is int
        and type(found.abandoned) is int
        and type(found.clip) in (int, float)
        and 0 <= found.clip < math.inf
        and 0 <= found.advanced <= found.round
        and all(a.shape == (schema.size,) and a.dtype == torch.float32 for a in adapters)
        and found.merged.shape == (merged,)
        and found.merged.dtype == torch.float32
        and all(tensor.shape == (stepped,) for tensor in states)
        and all(bool(torch.isfinite(t).all()) for t in _tensors(found))
    )


def _tensors(found: Checkpoint) -> tuple[Tensor, ...]:
    return found.adapter, found.outcome, found.merged, *found.optimizer.values()
