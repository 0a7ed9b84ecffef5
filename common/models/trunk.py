"""The frozen model: how precisely it is computed, and its layers below the first adapter, which
are computed once per record and then remembered.

With adapters in the top layers only, everything below is a fixed function of the text. ``lower``
computes it; ``upper`` runs the rest of the model on it, through the model's own code, by lending
it layers and an embedding that pass their input through. The list of layers keeps its length: what
a model decides by a layer's place in the list (Qwen2's masks, by two kinds of attention) stays the
same. Nothing here is specific to privacy: it saves repeated work and never changes a result
(``tests/common/test_trunk.py`` compares with the whole model, and so does every holder before it is
charged, ``client.training.self_check``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

# model type -> (backbone, embeddings or None where inputs_embeds skips them, layers, final norm)
_FAMILIES: dict[str, tuple[str, str | None, str, str | None]] = {
    "bert": ("bert", "embeddings", "encoder.layer", None),
    "roberta": ("roberta", "embeddings", "encoder.layer", None),
    "distilbert": ("distilbert", "embeddings", "transformer.layer", None),
    "llama": ("model", None, "layers", "norm"),
    "qwen2": ("model", None, "layers", "norm"),
    "mistral": ("model", None, "layers", "norm"),
}


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    # torch 2.6 does not tell: then the way is taken that is right on every processor.
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _fast(device: torch.device) -> bool:
    """Whether the model's device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return fast_bfloat16()


class _PreciseAttention(TorchFunctionMode):
    """Attention in float32: on a processor its backward pass in bfloat16 takes up to ten times as
    long (torch 2.13; docs/benchmarks.md, "Bfloat16")."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        exact = {name: _precise(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(_precise, args), **exact).to(query.dtype)


def _precise(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class _PassThrough(nn.Module):
    """Stands in for the embeddings: the input is already a hidden state."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            return inputs_embeds
        # DistilBERT hands it over by position, after the ids that are not there.
        return next(a for a in args if isinstance(a, Tensor))


class _Skipped(nn.Module):
    """Stands in for a layer that is not computed here. Its attributes, such as the kind of
    attention, are the layer's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        vars(self)["_layer"] = layer  # no submodule: its weights are no part of this one

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class Trunk:
    """A model cut in two below the adapters.

    Args:
        base: the model with its head (adapters may be attached later: modules are shared).
        frozen: how many of the lowest layers carry no adapter.
        dtype: ``bfloat16`` computes the model under autocast, ``auto`` where that is fast;
            weights, adapters and head stay float32.

    Attributes:
        frozen: how many layers ``lower`` computes.
        bfloat16: whether matrices are multiplied in bfloat16.
    """

    def __init__(self, base: PreTrainedModel, frozen: int, dtype: str = "float32") -> None:
        family = _FAMILIES.get(base.config.model_type)
        self.frozen = frozen if family else 0
        self.bfloat16 = _fast(base.device) if dtype == "auto" else dtype == "bfloat16"
        self._base, self._family, self._dtype = base, family, dtype

    def whole(self) -> Trunk:
        """The same model with nothing frozen: what ``lower`` and ``upper`` together must equal."""
        return Trunk(self._base, 0, self._dtype)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """A context in which the model is to be called. Backward belongs outside of it."""
        kind = "cuda" if self._base.device.type == "cuda" else "cpu"
        precise = self.bfloat16 and kind == "cpu" and torch.is_grad_enabled()
        with (
            torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16),
            _PreciseAttention() if precise else nullcontext(),
        ):
            yield

    def lower(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, T, H) below the first adapter for token ids (B, T)."""
        if not self.frozen or not self._family:
            raise ValueError("no layer is frozen below the adapters")
        backbone = self._base.get_submodule(self._family[0])
        with (
            torch.no_grad(),
            self._lend(range(self.frozen), final_norm=False),
            self.arithmetic(),
        ):
            hidden = backbone(input_ids=input_ids, attention_mask=attention_mask)
        return hidden.last_hidden_state.to(torch.float32)  # type: ignore[no-any-return]

    @contextmanager
    def upper(self) -> Iterator[None]:
        """While open, the model takes ``inputs_embeds`` = the result of ``lower``."""
        total = self._base.config.num_hidden_layers
        with self._lend(range(self.frozen, total), final_norm=True, skip_embeddings=True):
            yield

    @contextmanager
    def _lend(
        self, computed: range, *, final_norm: bool, skip_embeddings: bool = False
    ) -> Iterator[None]:
        if not self._family:
            yield
            return
        backbone_name, embeddings, layers, norm = self._family
        backbone = self._base.get_submodule(backbone_name)
        kept: list[tuple[nn.Module, str, nn.Module]] = []

        def lend(path: str, module: nn.Module) -> None:
            owner_name, _, attribute = path.rpartition(".")
            owner = backbone.get_submodule(owner_name)
            kept.append((owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, module)

        try:
            every = enumerate(backbone.get_submodule(layers).children())
            lend(
                layers,
                nn.ModuleList(one if n in computed else _Skipped(one) for n, one in every),
            )
            if embeddings and skip_embeddings:
                lend(embeddings, _PassThrough())
            if norm and not final_norm:
                lend(norm, nn.Identity())
            yield
        finally:
            for owner, attribute, module in reversed(kept):
                setattr(owner, attribute, module)
