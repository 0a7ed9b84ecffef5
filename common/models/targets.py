"""``lora.targets``: which modules of a model get an adapter.

The value is a list of names, PEFT's ``all-linear``, or a regular expression over whole module
names, as PEFT takes them. If it is empty, PEFT's own table for the model's family decides, or else
the usual names of query and value. Each entry of a list must fit a module of the adapted layers: an
adapter that is silently smaller than what was asked for is a wrong answer. A pattern comes from the
coordinator and is matched at every holder. So it must be short, and matching is given up when it
takes too long; PEFT gets the names that it found, never the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS_OWN
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import ConfideError, nearest
from ..settings import Settings

ALL_LINEAR = "all-linear"
# Query and value, or what holds them, where PEFT's table has no line for a family: the first of
# which every name is there (Hu et al. 2021, section 4.2). Where there is none: all-linear.
_USUAL = (
    ("q_proj", "v_proj"), ("query", "value"), ("query_proj", "value_proj"), ("q_lin", "v_lin"),
    ("attn.q", "attn.v"), ("q", "v"), ("wq", "wv"), ("Wq", "Wv"), ("q_attn", "v_attn"),
    ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",), ("in_proj",),
)  # fmt: skip
# A module in a numbered layer of a stack: encoder.block.3.layer.0.SelfAttention.q
_LAYER = re.compile(r"(?P<stack>.+?)\.(?P<number>\d+)\.")
_CROSS = re.compile(r"\.(encoder_attn|crossattention)\b")
_PATTERN = re.compile(r"[^\w.,\s-]")  # what no list of names has
_MOST_PATTERN, _SECONDS = 500, 0.2
_SHOWN = 12  # names in a message

# The layers of each stack from below: the names of the modules in each.
_Stacks = Mapping[str, Mapping[int, list[str]]]


@dataclass(frozen=True)
class Targets:
    """What ``LoraConfig`` takes: names, or ends of names, and the layers that they are meant in
    (None: the names say it themselves)."""

    modules: list[str]
    layers: list[int] | None


def lora_targets(base: PreTrainedModel, settings: Settings, heads: Sequence[str]) -> Targets:
    """The modules to be adapted; none of them is in ``heads``, which are trained whole.

    Raises:
        ConfideError: ``settings.range`` for layers that the model does not have, or a name or a
            pattern that fits no module.
    """
    stacks = _stacks_of(base, heads)
    total = _depth(base, stacks)
    if settings.lora.layers > total:
        raise ConfideError(
            "settings.range",
            f"lora.layers = {settings.lora.layers}, but {settings.model.name} has {total} layers.",
            f"Choose 0 (all) to {total}; they are counted from the top.",
        )
    layers, own = settings.lora.layers, max((len(one) for one in stacks.values()), default=0)
    if settings.lora.method == "head":
        # A head alone still travels as a LoRA adapter, the format that every tool can load: one
        # frozen adapter of rank 1 whose product is zero.
        layers = 1 if own >= total else 0
    if layers and own < total:
        raise ConfideError(
            "settings.range",
            f"lora.layers = {layers}, but the {total} layers of a {base.config.model_type!r:.100}"
            f" model share the weights of {own}.",
            "Set lora.layers = 0: an adapter is then in all of them.",
        )
    allowed = _top(stacks, layers or total)
    alone = not base.config.is_encoder_decoder
    if alone and not settings.lora.targets.strip():
        # A decoder by itself (BART's) has attention to an encoder that is not there.
        allowed = [name for name in allowed if not _CROSS.search(name)]
    native = alone and own == total and len(allowed) == len(_top(stacks, layers or total))
    wanted = _wanted(base, settings, allowed)
    if isinstance(wanted, list) and native:
        return Targets(wanted, list(range(total - (layers or total), total)))
    # Encoder and decoder may differ in depth: each is counted from its own top, so by names.
    fitting = allowed if layers or isinstance(wanted, list) else _modules_of(base, heads)
    if isinstance(wanted, list):
        return Targets([name for name in fitting if _fits_one(name, wanted)], None)
    found = _linear(base, fitting) if wanted == ALL_LINEAR else _matching(wanted, fitting)
    if not found:
        _refuse(f"lora.targets = {wanted!r:.200} fits no module", base, allowed)
    return Targets(found, None)


def _wanted(base: PreTrainedModel, settings: Settings, allowed: Sequence[str]) -> list[str] | str:
    """The entries of the setting: names that all fit, ``all-linear``, or a pattern."""
    text = settings.lora.targets.strip()
    if text.lower() == ALL_LINEAR:
        return ALL_LINEAR
    if _PATTERN.search(text):
        return text
    names = [t.strip() for t in text.split(",") if t.strip()]
    if not names:
        return _usual(base, allowed)
    for name in names:
        if not any(_fits(one, name) for one in allowed):
            where = f" of the top {settings.lora.layers} layers" if settings.lora.layers else ""
            _refuse(f"{name!r:.100} in lora.targets fits no module{where}", base, allowed, name)
    return names


def _usual(base: PreTrainedModel, allowed: Sequence[str]) -> list[str] | str:
    """PEFT's own targets of the family, or the usual ones that are there."""
    known = PEFTS_OWN.get(base.config.model_type)
    if isinstance(known, str):
        return known
    for names in (*([known] if known else []), *_USUAL):
        found = [n for n in names if any(_fits(one, n) for one in allowed)]
        if len(found) == len(names):
            return list(names)
    return ALL_LINEAR


def _fits(module: str, target: str) -> bool:
    """Whether a name fits a module, compared as PEFT does."""
    return module == target or module.endswith(f".{target}")


def _fits_one(module: str, targets: Sequence[str]) -> bool:
    return any(_fits(module, target) for target in targets)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    reason = f"it has more than {_MOST_PATTERN} characters" if len(pattern) > _MOST_PATTERN else ""
    found: list[str] = []
    try:
        if not reason:
            compiled = regex.compile(pattern)
            found = [n for n in names if compiled.fullmatch(n, timeout=_SECONDS)]
    except regex.error as error:
        reason = f"it is no regular expression ({error})"
    except TimeoutError:
        reason = "it takes too long to match"
    if reason:
        raise ConfideError(
            "settings.range",
            f"lora.targets = {pattern!r:.100} cannot be used: {reason}.",
            r"Name modules as the model does, or write a pattern such as .*\.(query|value).",
        )
    return found


def _linear(base: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """What PEFT's ``all-linear`` takes: every linear layer but the one that makes the output."""
    output = base.get_output_embeddings()
    found = ((name, base.get_submodule(name)) for name in names)
    return [n for n, m in found if isinstance(m, nn.Linear | Conv1D) and m is not output]


def _modules_of(base: PreTrainedModel, heads: Sequence[str]) -> list[str]:
    return [name for name, _ in base.named_modules() if name and name.split(".")[0] not in heads]


def _stacks_of(base: PreTrainedModel, heads: Sequence[str]) -> _Stacks:
    """The modules in numbered layers, by the stack that they are in."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in _modules_of(base, heads):
        place = _LAYER.match(name)
        if place:
            stack = found.setdefault(place["stack"], {})
            stack.setdefault(int(place["number"]), []).append(name)
    return found


def _depth(base: PreTrainedModel, stacks: _Stacks) -> int:
    """How many layers there are: of an encoder and a decoder, those of the deeper one."""
    known = getattr(base.config, "num_hidden_layers", None)
    if isinstance(known, int) and not base.config.is_encoder_decoder:
        return known
    return max((len(layers) for layers in stacks.values()), default=0)


def _top(stacks: _Stacks, count: int) -> list[str]:
    """The modules of each stack's top layers."""
    out: list[str] = []
    for layers in stacks.values():
        out += [name for number in sorted(layers)[-count:] for name in layers[number]]
    return out


def _refuse(what: str, base: PreTrainedModel, allowed: Sequence[str], near: str = "") -> None:
    ends = sorted({name.rpartition(".")[2] for name in _linear(base, allowed)})
    shown = ends if len(ends) <= _SHOWN else [*ends[:_SHOWN], "..."]
    hint = nearest(near[:100], ends) if near and ends else ""
    raise ConfideError(
        "settings.range",
        f"{what} of {base.config.model_type!r:.100}.",
        hint
        if hint.startswith("Did")
        else f"Its linear modules are {', '.join(shown) or 'none'}; all-linear takes all of them.",
    )
