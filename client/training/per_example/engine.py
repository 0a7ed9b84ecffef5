"""Per-example gradients of all trained parameters, by one backward pass and without a wrapper.

A grad-sample mode in the style of Opacus ("hooks without a wrapper"): ``PerExample(model)`` puts a
forward of its own into each layer that has trained parameters, ``remove_hooks`` takes it out
again. Modules, parameters and the keys of ``state_dict`` stay PEFT's own.

Guarantee: after one forward and one backward pass of a *sum* of per-example losses, every trained
parameter p has ``p.grad_sample`` (B, *p.shape), row i being the gradient of example i's loss, and
``p.grad`` is still None. ``check`` refuses anything else: a trained parameter that is used
anywhere outside a layer known here has a ``p.grad``, and one that is never used has no rows.

| layer | how |
|---|---|
| LoRA, rsLoRA, DoRA over Linear and Conv1D, A frozen or not, dropout | one fused function |
| Linear (heads, ``modules_to_save``) | its own function |
| LayerNorm, RMSNorm, Embedding | Opacus's grad samplers |
| IA3, VeRA, LoRA on embeddings, trainable tokens, prefix tuning, any other | example by example |
| prompt tuning, p-tuning | made once, repeated, pulled back example by example |
| DeBERTa's query and key, on relative positions | each example's beside the others' |
| batch normalisation, dropout inside a layer of the last two kinds | refused |

Refused, too: parameters of a layer that is not given the examples one by one, such as T5's table
of relative positions, which all examples share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from opacus.grad_sample.gsm_base import AbstractGradSampleHooks
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from ....common.errors import ConfideError
from .layers import SAMPLED, BatchSize, Linear, Prompt, Replayed, Rule, by_opacus, one_by_one
from .lora import Branch, Layer, LoraLinear

# The inputs by which a batch's size is known, in the order in which they are asked for.
_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids")
# DeBERTa's method that puts relative positions through the projections of query and key.
_POSITIONS = "disentangled_attention_bias"
# What the base class and DPOptimizer hang on parameters.
_LEFT_BY_OPACUS = ("grad_sample", "summed_grad", "_forward_counter")


class PerExample(AbstractGradSampleHooks):  # type: ignore[misc]
    """See the module's docstring.

    Args:
        model: whose trained parameters get per-example gradients, PEFT's or any other.

    Raises:
        ConfideError: ``train.unsupported-layer``, ``train.attached-twice``.
    """

    def __init__(self, model: nn.Module) -> None:
        if "_per_example" in vars(model):
            raise ConfideError(
                "train.attached-twice",
                "The model has per-example gradients already.",
                "Use the engine that it has, or remove_hooks() first.",
            )
        _refuse_mixing(model)
        _refuse_half(model)
        super().__init__(model, batch_first=True, loss_reduction="sum")
        self._size = BatchSize()
        self._patched: list[tuple[nn.Module, str]] = []
        self._root = model.register_forward_pre_hook(self._note_size, with_kwargs=True)
        vars(model)["_per_example"] = self
        try:
            self._patch(model)
        except BaseException:
            self.remove_hooks()
            raise

    @property
    def trained(self) -> list[nn.Parameter]:
        """Every parameter that requires a gradient."""
        return [p for p in self._module.parameters() if p.requires_grad]

    def train(self) -> None:
        """Put the layers with trained parameters into training mode and all frozen ones into
        evaluation mode, so that nothing in the frozen ones draws at random (noise on the scores of
        experts, layers left out, blocks of attention)."""
        self._module.eval()
        self._module.training = True
        for module, name in self._patched:
            if name == "forward":
                module.train()

    def check(self) -> None:
        """Refuse to go on unless the guarantee holds for the batch that has just gone through.

        Raises:
            ConfideError: ``train.no-gradient`` or ``train.unsupported-layer``.
        """
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                continue
            rows = parameter.grad_sample
            if parameter.grad is not None:
                _refuse(name, "is used outside the layer that it belongs to")
            if rows is None or len(rows) != self._size.value:
                raise ConfideError(
                    "train.no-gradient",
                    f"{name} has no gradient of its own for each of {self._size.value} examples.",
                    "Freeze it, or choose lora.targets and a head that the loss depends on.",
                )

    def forget(self) -> None:
        """Remove everything of the last batch from the model."""
        for parameter in self.trained:
            kept: Any = parameter
            kept.grad, kept.grad_sample, kept.summed_grad = None, None, None

    def remove_hooks(self) -> None:
        """The model and its parameters as they were; nothing of the last batch stays on them."""
        self._root.remove()
        for module, name in self._patched:
            vars(module).pop(name, None)
        self._patched.clear()
        self._module.__dict__.pop("_per_example", None)
        for parameter in self._module.parameters():
            kept: dict[str, Any] = vars(parameter)
            for name in _LEFT_BY_OPACUS:
                kept.pop(name, None)

    def _note_size(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [kwargs.get(name) for name in _INPUTS] + list(args) + list(kwargs.values())
        self._size.value = len(next(x for x in given if isinstance(x, Tensor)))

    def _patch(self, model: nn.Module) -> None:
        for name, module in _layers(model):
            forward = self._forward_of(name, module)
            vars(module)["forward"] = MethodType(forward, module)
            self._patched.append((module, "forward"))
        for module in model.modules():
            if _has_shared_positions(module):
                vars(module)[_POSITIONS] = MethodType(self._positions_of(module), module)
                self._patched.append((module, _POSITIONS))
        if _shares_one_prompt(model):
            vars(model)["get_prompt"] = MethodType(self._prompt_of(model), model)
            self._patched.append((model, "get_prompt"))

    def _forward_of(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """The forward that takes the place of the module's own while it trains."""
        plain = module.forward
        inside: Callable[..., Any]
        if _is_fused(module):
            inside = _lora_forward
        elif type(module) is nn.Linear:
            inside = _linear_forward
        else:
            _refuse_dropout(name, module)
            by = by_opacus if type(module) in SAMPLED else one_by_one
            rule = Rule(layer=module, forward=plain, parameters=_trained(module), by=by)
            inside = _replayed_forward(rule)

        def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
            off = getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False)
            if off or not layer.training:
                return plain(*args, **kwargs)
            if len(args) != 1 or any(value is not None for value in kwargs.values()):
                _refuse(name, "is called with something else than one input")
            return inside(layer, self._size.aligned(args[0], name))

        return forward

    def _positions_of(self, attention: Any) -> Callable[..., Any]:
        """DeBERTa's attention projects one table of relative positions for all examples and
        repeats the outcome. While it does so here, each example's projection stands beside the
        others' as further heads of one, so that each has a gradient of its own."""
        plain, heads = getattr(attention, _POSITIONS), attention.num_attention_heads

        def positions(_: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            size = self._size.value
            layers = [layer for layer in _projections(attention) if _trained(layer)]
            if query.shape[0] != size * heads or not any(layer.training for layer in layers):
                return plain(query, *args, **kwargs)
            with ExitStack() as stack:
                for layer in _projections(attention):
                    stack.enter_context(_side_by_side(layer, size))
                attention.num_attention_heads = heads * size
                stack.callback(setattr, attention, "num_attention_heads", heads)
                return plain(query, *args, **kwargs)

        return positions

    def _prompt_of(self, model: Any) -> Callable[..., Any]:
        plain, encoder = model.get_prompt, model.prompt_encoder
        _refuse_dropout("prompt_encoder", encoder)

        def get_prompt(_: Any, batch_size: int, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return plain(batch_size, *args, **kwargs)
            return Prompt.apply(plain, batch_size, *_trained(encoder))  # type: ignore[no-untyped-call]

        return get_prompt


def _has_shared_positions(module: nn.Module) -> bool:
    return hasattr(module, _POSITIONS) and any(map(_trained, _projections(module)))


def _projections(attention: nn.Module) -> list[nn.Module]:
    """The layers that DeBERTa-v2 and v3 put the table of positions through."""
    names = ("query_proj", "key_proj", "pos_query_proj", "pos_key_proj")
    return [getattr(attention, name) for name in names if hasattr(attention, name)]


@contextmanager
def _side_by_side(layer: nn.Module, size: int) -> Iterator[None]:
    """While open, what the layer makes of one table (1, S, H) for so many examples B is
    (1, S, B H), by example."""
    own, plain = vars(layer).get("forward"), layer.forward

    def forward(x: Tensor) -> Tensor:
        y: Tensor = plain(x.expand(size, *x.shape[1:])) if _trained(layer) else plain(x)
        y = y.expand(size, *y.shape[1:])  # (B, S, H)
        return y.transpose(0, 1).reshape(1, x.shape[1], -1)

    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        vars(layer).pop("forward")
        if own is not None:
            vars(layer)["forward"] = own


def _layers(module: nn.Module, name: str = "model") -> Iterator[tuple[str, nn.Module]]:
    """The layers whose forward is replaced: the outermost of PEFT's own layers, and otherwise
    whatever owns a trained parameter itself."""
    if not _trained(module):
        return
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    if own or isinstance(module, BaseTunerLayer):
        yield name, module
        return
    for child_name, child in module.named_children():
        if child_name == "prompt_encoder":
            if not _shares_one_prompt(module):
                yield from ((f"{name}.{child_name}", encoder) for encoder in child.children())
            continue
        yield from _layers(child, f"{name}.{child_name}")


def _shares_one_prompt(model: nn.Module) -> bool:
    """Prompt tuning and p-tuning make one prompt and repeat it; prefix tuning makes one per
    example."""
    config = getattr(model, "active_peft_config", None)
    return bool(
        config is not None
        and config.is_prompt_learning
        and config.peft_type.value in ("PROMPT_TUNING", "P_TUNING")
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _is_fused(module: nn.Module) -> bool:
    if not isinstance(module, PeftLoraLinear) or module.merged:
        return False
    base, names = module.get_base_layer(), _active(module)
    variants = [module.lora_variant.get(name) for name in names]
    dora = any(variants)
    return (
        type(base) in (nn.Linear, Conv1D)
        and not base.weight.requires_grad
        and all(v is None or type(v) is DoraLinearVariant for v in variants)
        and (not dora or len(names) == 1)
        and (not dora or all(type(module.lora_dropout[n]) is nn.Identity for n in names))
        and all(_is_plain_dropout(module.lora_dropout[n]) for n in names)
    )


def _is_plain_dropout(module: nn.Module) -> bool:
    return type(module) in (nn.Identity, nn.Dropout)


def _active(layer: PeftLoraLinear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _lora_forward(layer: Any, x: Tensor) -> Tensor:
    base: Any = layer.get_base_layer()
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else base.weight.dtype
    branches = [
        Branch(
            a=layer.lora_A[name].weight,
            b=layer.lora_B[name].weight,
            bias=layer.lora_B[name].bias,
            scale=float(layer.scaling[name]),
            mask=_mask(layer.lora_dropout[name], x, dtype),
        )
        for name in _active(layer)
    ]
    magnitudes = [layer.lora_magnitude_vector[n].weight for n in layer.lora_magnitude_vector]
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    call = Layer(
        weight=weight.to(dtype),
        bias=base.bias,
        branches=branches,
        magnitude=magnitudes[0] if magnitudes else None,
        dtype=dtype,
    )
    y: Tensor = LoraLinear.apply(x, call, *_trained(layer))  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _mask(dropout: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The mask by which the layer's own dropout multiplies ``x``, drawn in the same way."""
    if not isinstance(dropout, nn.Dropout) or dropout.p == 0:
        return None
    return dropout(torch.ones_like(x, dtype=dtype))  # type: ignore[no-any-return]


def _linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _replayed_forward(rule: Rule) -> Callable[..., Any]:
    def forward(_: nn.Module, x: Tensor) -> Any:
        return Replayed.apply(x, rule, *rule.parameters)  # type: ignore[no-untyped-call]

    return forward


def _refuse_mixing(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            _refuse(name, "mixes the examples of a batch")
        table = getattr(module, "relative_attention_bias", None)
        if isinstance(table, nn.Module) and _trained(table):
            _refuse(f"{name}.relative_attention_bias", "is shared by the examples of a batch")


def _refuse_half(model: nn.Module) -> None:
    """Sums and norms in 16 bits break the clip bound: 1.73 C measured at 512 records."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise ConfideError(
                "train.precision",
                f"{name} is trained in {parameter.dtype}; per-example gradients need float32.",
                "Keep the base model in 16 bits, and adapters and heads in float32.",
            )


def _refuse_dropout(name: str, module: nn.Module) -> None:
    """A layer that is computed twice would draw another mask the second time."""
    for inner in module.modules():
        rate = getattr(inner, "p", 0.0) if "Dropout" in type(inner).__name__ else 0.0
        if isinstance(inner, nn.LSTM):
            rate = inner.dropout
        if rate:
            raise ConfideError(
                "train.unsupported-layer",
                f"{name} ({type(module).__name__}) has a dropout of {rate:g}, which per-example"
                " gradients know for plain LoRA alone.",
                "Set lora.dropout = 0: noise regularises already.",
            )


def _refuse(name: str, reason: str) -> None:
    raise ConfideError(
        "train.unsupported-layer",
        f"{name} {reason}, so its gradients cannot be told apart by example.",
        "Freeze it: take it out of lora.targets or of modules_to_save.",
    )
