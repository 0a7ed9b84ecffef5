"""What a step is measured on: models of public shapes with random weights, and random tokens.

The time of a step depends on shapes, not on values, so nothing is downloaded. Every model carries
LoRA of rank 8 on the usual targets in all layers, without dropout; a classifier's head is trained
as well. LoRA's second factor starts at small values instead of zero, as after some training, so
that neither factor has a zero gradient.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")
RANK = 8
_CLASSES = 2
_SEED = 0
_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One step: ``batch`` examples of ``tokens`` tokens each, without padding. ``bfloat16``
    concerns the frozen base; adapters and head stay float32. ``threads = 0`` lets torch choose.
    ``float64`` is for checks."""

    batch: int = 16
    tokens: int = 128
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Model:
    """A shape: a family of this module, and the values of its configuration that differ."""

    name: str
    family: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class _Family:
    config: Callable[..., Any]
    model: Callable[[Any], Any]
    task: str
    targets: tuple[str, ...]


_FAMILIES: Mapping[str, _Family] = {
    "bert": _Family(hf.BertConfig, hf.BertForTokenClassification, "TOKEN_CLS", ("query", "value")),
    "distilbert": _Family(
        hf.DistilBertConfig,
        hf.DistilBertForSequenceClassification,
        "SEQ_CLS",
        ("q_lin", "v_lin"),
    ),
    "gpt2": _Family(hf.GPT2Config, hf.GPT2LMHeadModel, "CAUSAL_LM", ("c_attn",)),
    "t5": _Family(hf.T5Config, hf.T5ForConditionalGeneration, "SEQ_2_SEQ_LM", ("q", "v")),
    "llama": _Family(hf.LlamaConfig, hf.LlamaForCausalLM, "CAUSAL_LM", ("q_proj", "v_proj")),
}

_MODELS = (
    Model(
        name="MiniLM-L6",
        family="bert",
        config={
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "vocab_size": 30522,
        },
    ),
    Model(name="DistilBERT", family="distilbert", config={"vocab_size": 30522}),
    Model(name="GPT-2", family="gpt2", config={"vocab_size": 50257}),
    Model(name="T5-small", family="t5", config={"vocab_size": 32128}),
    Model(
        name="SmolLM2-135M",
        family="llama",
        config={
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
)
MODELS: Mapping[str, Model] = {model.name: model for model in _MODELS}


@dataclass(frozen=True)
class Workload:
    """A model and one batch of B examples; labels are (B,) for classes, (B, T) for tokens."""

    model: PeftModel
    inputs: Mapping[str, Any]
    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    def losses(self, model: Any = None) -> Tensor:
        """The loss of each example (B,); ``model`` may be a wrapper around ``self.model``."""
        call = self.model if model is None else model
        return _losses(call(**self.inputs).logits, self.labels)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def gradient(self) -> Tensor:
        """The gradients that the trained parameters have now, as one vector (N,) in float64."""
        rows = [p.grad for p in self.trained()]
        missing = sum(row is None for row in rows)
        if missing:
            raise RuntimeError(f"{missing} of {len(rows)} trained tensors have no gradient")
        return torch.cat([row.double().flatten() for row in rows if row is not None])

    def row(self, index: int) -> Workload:
        """The batch of one that is example ``index``, on the same model."""
        inputs = {
            name: value[index : index + 1] if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=inputs, labels=self.labels[index : index + 1])

    def twin(self) -> Workload:
        """The same batch on a model of its own that shares the frozen weights, so that several
        engines fit into memory and none profits from weights that are warm in the cache."""
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return replace(self, model=copy.deepcopy(self.model, dict(frozen)))


def make(model: Model, setup: Setup) -> Workload:
    """The workload of a shape; the same values for the same arguments."""
    family = _FAMILIES[model.family]
    dropouts = {n: 0.0 for n, v in vars(family.config()).items() if "drop" in n and _real(v)}
    config = family.config(**dropouts, num_labels=_CLASSES, **model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        adapted = _adapted(family, config, setup)
        ids = torch.randint(10, config.vocab_size, (2, setup.batch, setup.tokens))
        classes = torch.randint(0, _CLASSES, (setup.batch,))
    ids, classes = ids.to(setup.device), classes.to(setup.device)
    inputs: dict[str, Any] = {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0])}
    if family.task == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = ids[1]
    if not family.task.endswith("_CLS"):
        return Workload(adapted, {**inputs, "use_cache": False}, ids[1])
    return Workload(adapted, inputs, classes)


def _adapted(family: _Family, config: Any, setup: Setup) -> PeftModel:
    base = family.model(config).to(setup.device, getattr(torch, setup.dtype))
    lora = LoraConfig(
        task_type=family.task,
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=list(family.targets),
        fan_in_fan_out=config.model_type == "gpt2",  # its Conv1D stores W transposed
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a flag by its old name, once per model.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        model = get_peft_model(base, lora)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # some heads have one that no config field is for
            module.p = 0.0
        if isinstance(module, ModulesToSaveWrapper) and setup.dtype == "bfloat16":
            module.float()
            module.register_forward_pre_hook(_to_float32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=_STD)
    return model.train()


def _to_float32(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A float32 head on a bfloat16 base."""
    return tuple(arg.float() for arg in args)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example (B,): of its class, or the mean over its own tokens. The
    logits of a classifier of tokens are averaged over the example first, as confide does."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.dim() == 1:
        pooled = logits.mean(1) if logits.dim() == 3 else logits  # (B, L)
        return cross_entropy(pooled, labels, reduction="none")
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view_as(labels).mean(1)


def _real(value: Any) -> bool:
    return isinstance(value, float) or value is None
