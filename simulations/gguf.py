"""A GGUF file to a plain model folder in the Hub's format.

transformers reads GGUF, but slowly (20 seconds for 135 M parameters), and what it loads stays
flagged as quantised: it can neither be saved nor be merged with an adapter. So the weights are
written out once, with tokenizer and chat template, as float16: that is half of float32, and ten
times closer to the values of the file than bfloat16. Runs compute in float32 all the same.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError
from ..common.extras import need


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
