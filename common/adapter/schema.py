"""The adapter: its schema, strict reading and writing, and the Hub format on disk.

PEFT's own loader accepts missing keys, extra keys and NaN, and can overwrite a frozen weight
(its key matching is by suffix), so adapters go in and out of a model through this strict pair
only: exact names, exact shapes, float32, finite. Names are those of PEFT's saved files.

``flatten`` and ``unflatten`` turn named tensors into one flat vector in a fixed order, and back. A
vector is what travels; names and shapes live in the schema that both sides derive from the public
settings, so a message has nothing to say about them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfideError, nearest

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def size_of(shapes: Shapes) -> int:
    """Number of values in tensors of these shapes."""
    return sum(int(torch.Size(shape).numel()) for _, shape in shapes)


def flatten(tensors: Mapping[str, Tensor], shapes: Shapes) -> Tensor:
    """The named tensors as one float32 vector (N,), in the order of ``shapes``."""
    parts = [tensors[name].detach().reshape(-1).to(torch.float32) for name, _ in shapes]
    return torch.cat(parts) if parts else torch.zeros(0)


def unflatten(vector: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Undo ``flatten``; the tensors are views of ``vector`` (N,)."""
    sizes = [size_of([shape]) for shape in shapes]
    if sum(sizes) != vector.numel():
        raise ValueError(f"vector has {vector.numel()} elements, the shapes need {sum(sizes)}")
    parts = vector.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}


# --- the device ---
#
# Where the model is computed on this machine: ``CONFIDE_DEVICE`` = cpu, its default, cuda or auto.
#
# A matter of the machine, never of a run: no coordinator chooses it, and nothing of the promise
# depends on it. Batches, noise and adapters are drawn and kept on the processor everywhere; the
# model and what it computes lie on the device. Before a holder is charged for anything, the
# per-example gradients are held against those of each example alone on that very device
# (``client.training.self_check``). On an accelerator sums come out in another order from time to
# time, so that a run there does not repeat itself bit for bit.


_NAMES = ("cpu", "cuda", "auto")


def chosen_device() -> torch.device:
    """The device of this process.

    Raises:
        ConfideError: ``device.unknown``, or ``device.missing`` for one that is not there.
    """
    name = os.environ.get("CONFIDE_DEVICE") or "cpu"
    if name not in _NAMES:
        raise ConfideError(
            "device.unknown", f"CONFIDE_DEVICE = {name!r:.100}.", nearest(name[:100], _NAMES)
        )
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfideError(
            "device.missing",
            "CONFIDE_DEVICE = 'cuda', but torch finds no such device on this machine.",
            "Set it to auto or cpu, or install a torch that is made for the device.",
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterSchema:
    """Names and shapes of all adapter tensors, in order, and which of them are trained.

    Attributes:
        shapes: every tensor of the saved adapter, all of them float32.
        trained: the names that training may change; they alone travel upwards.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    trained: frozenset[str]

    @property
    def trained_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((name, shape) for name, shape in self.shapes if name in self.trained)

    @property
    def size(self) -> int:
        """Number of values in the whole adapter."""
        return sum(int(torch.Size(shape).numel()) for _, shape in self.shapes)

    @property
    def trained_size(self) -> int:
        """Number of values in an update."""
        return sum(int(torch.Size(shape).numel()) for _, shape in self.trained_shapes)

    @property
    def digest(self) -> str:
        """sha256 over names, shapes and what is trained: both sides must agree on it."""
        rows = [[name, list(shape), name in self.trained] for name, shape in self.shapes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# Of each model, its own name for every saved one. To find them walks through all of its modules
# several times and reads its configuration again, and each task asks half a dozen times.
_own_names: WeakKeyDictionary[PeftModel, Mapping[str, str]] = WeakKeyDictionary()


def adapter_parameters(model: PeftModel) -> dict[str, Tensor]:
    """The live adapter tensors under their saved names, sorted: writing to them changes the
    model, and each keeps its identity, so hooks and optimizers stay attached. What adapter a model
    has is looked up when it is first asked for."""
    if (names := _own_names.get(model)) is None:
        names = _own_names[model] = _look_up(model)
    return {saved: model.get_parameter(own) for saved, own in names.items()}


def _look_up(model: PeftModel) -> dict[str, str]:
    """The model's own name of every adapter tensor, by the saved one, sorted."""
    saved = get_peft_model_state_dict(model)
    by_storage = {tensor.data_ptr(): own for own, tensor in model.named_parameters()}
    names = {name: by_storage.get(tensor.data_ptr()) for name, tensor in saved.items()}
    missing = [name for name, own in names.items() if own is None]
    if missing:
        raise ConfideError("adapter.unknown", f"{missing[0]} is not a parameter of the model.")
    return {name: names[name] for name in sorted(names)}  # type: ignore[misc]


def schema_of(model: PeftModel) -> AdapterSchema:
    """The schema of the adapter that ``model`` carries; trained is what requires a gradient."""
    live = adapter_parameters(model)
    return AdapterSchema(
        shapes=tuple((name, tuple(tensor.shape)) for name, tensor in live.items()),
        trained=frozenset(name for name, tensor in live.items() if tensor.requires_grad),
    )


def get_adapter(model: PeftModel) -> dict[str, Tensor]:
    """A float32 copy of the adapter, on the processor wherever the model is computed."""
    live = adapter_parameters(model)
    return {name: t.detach().to("cpu", torch.float32).clone() for name, t in live.items()}


def set_adapter(model: PeftModel, adapter: Mapping[str, Tensor]) -> None:
    """Write an adapter into the model, strictly.

    Raises:
        ConfideError: ``adapter.names``, ``adapter.shape``, ``adapter.dtype`` or
            ``adapter.not-finite``; the model is unchanged then.
    """
    live = adapter_parameters(model)
    check_adapter(adapter, {name: tuple(tensor.shape) for name, tensor in live.items()})
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(adapter[name])


def check_adapter(adapter: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse anything but exactly these names and shapes, float32 and finite."""
    missing, extra = sorted(shapes.keys() - adapter.keys()), sorted(adapter.keys() - shapes.keys())
    if missing or extra:
        raise ConfideError(
            "adapter.names",
            f"The adapter has {len(missing)} tensors too few and {len(extra)} too many"
            f" (first: {(missing + extra)[0]}).",
            "It was made for another model, rank or set of layers.",
        )
    for name, tensor in adapter.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ConfideError(
                "adapter.shape",
                f"{name} has shape {tuple(tensor.shape)}, but the model needs {shapes[name]}.",
                "It was made for another model or rank.",
            )
        if tensor.dtype != torch.float32:
            raise ConfideError("adapter.dtype", f"{name} is {tensor.dtype}, but must be float32.")
        if not torch.isfinite(tensor).all():
            raise ConfideError("adapter.not-finite", f"{name} contains NaN or infinity.")


def save_adapter(
    model: PeftModel, folder: Path, base_name: str, other: Mapping[str, Tensor] | None = None
) -> None:
    """Write ``adapter_config.json`` and the weights as PEFT does; plain
    ``PeftModel.from_pretrained`` reads them.

    Args:
        base_name: the public name of the base model, not the folder that it was loaded from.
        other: an adapter in place of the model's own, of any rank, and of scale one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = base_name, True
    if other is not None:
        rank = next(len(value) for name, value in other.items() if "lora_A" in name)
        config.r = config.lora_alpha = rank
    config.save_pretrained(str(folder))
    adapter = get_adapter(model) if other is None else other
    weights = {name: tensor.contiguous() for name, tensor in adapter.items()}
    save_file(weights, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a saved adapter."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ConfideError(
            "adapter.missing", f"There is no {WEIGHTS_FILE} in {folder}.", "Name a run's adapter."
        )
    return dict(load_file(str(path)))
