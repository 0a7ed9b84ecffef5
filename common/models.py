"""Base model, tokenizer and adapter: loaded once per process, kept warm over rounds and holders.

The base model is frozen and its dropout is off: noise already regularises, the frozen layers
can then be computed once per record, and a resumed run repeats itself bit for bit. The adapter's
initial values come from the public seed; the head starts at zero (a regression's at the middle of
its scale), since a random head is noise that the privacy budget would have to pay to unlearn.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .adapter import AdapterSchema, get_adapter, schema_of
from .combinations import MERGING, OF_RANKS
from .device import chosen_device
from .errors import ConfideError
from .leaving import PERSONAL
from .paths import local_or_cached
from .settings import Settings, TaskSpec
from .tasks import Task, task_for
from .trunk import Trunk

# Query and value projections by model family, the targets of Hu et al. 2021 (LoRA, section 4.2).
_TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    "t5": ("q", "v"),
}
_OTHER_TARGETS = ("q_proj", "v_proj")
# The factor of LoRA that a method lets rest.
_FROZEN = {"ffa": "lora_A", "ffb": "lora_B"}
# The heads that PEFT trains and saves by itself, by the end of their names.
_HEADS = ("classifier", "score")
# What transformers raises of files that are not there or not what they should be.
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
# A module in a numbered layer of a stack: encoder.block.3.layer.0.SelfAttention.q
_LAYER = re.compile(r"(?P<stack>\D+)\.(?P<number>\d+)\.")
# Families whose own classification head reads the first token.
_FIRST_TOKEN_HEADS = ("bert", "roberta", "distilbert")


@dataclass(frozen=True)
class LoadedModel:
    """A tokenizer, a model with its adapter, and what the settings say of them.

    Attributes:
        task: what the model is for.
        initial: the adapter as it was loaded, from the public seed (float32, by name): the model
            is warm, and every run, check and prediction in this process leaves another one in it.
        trunk: the frozen layers below the first adapter, which can be computed once.
        sha256: of the base weights, as the holder's policy lists them.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PeftModel
    schema: AdapterSchema
    initial: Mapping[str, Tensor]
    task: Task
    trunk: Trunk
    max_length: int
    sha256: str


def load_model(settings: Settings) -> LoadedModel:
    """The model that the settings describe; the same object for equal settings."""
    neutral = Settings(
        model=settings.model,
        lora=settings.lora,
        task=settings.task,
        aggregate=replace(Settings().aggregate, method=_trains(settings.aggregate.method)),
        train=replace(Settings().train, max_length=settings.train.max_length),
        run=replace(Settings().run, seed=settings.run.seed),
    )
    return _load(neutral)


def models_in_memory() -> int:
    """How many models this process keeps warm."""
    return _load.cache_info().currsize


def forget_models() -> None:
    """Let go of them."""
    _load.cache_clear()


def _trains(method: str) -> str:
    """What a model of this method trains; the coordinator's of ``rolora`` as in its first round."""
    if method in (*MERGING, PERSONAL):
        return "lora"
    return "ffa" if method in ("fedsvd", "rolora", *OF_RANKS) else method


# Two: a coordinator and its yardsticks differ in the adapter, and a base model is large.
@lru_cache(maxsize=2)
def _load(settings: Settings) -> LoadedModel:
    folder, task = model_folder(settings.model.name), task_for(settings.task)
    # First: of a name that leads nowhere the tokenizer would say that the folder lacks its files.
    config = _load_config(settings.model.name, folder)
    tokenizer = _load_tokenizer(folder or settings.model.name)
    base = _load_base(settings, config, folder, task, tokenizer)
    model = _attach(base, settings, task).to(chosen_device())
    longest = _longest(base, settings)
    return LoadedModel(
        tokenizer=tokenizer,
        model=model,
        schema=schema_of(model),
        initial=get_adapter(model),
        task=task,
        trunk=Trunk(base, _frozen_layers(base, settings, task), settings.model.dtype),
        max_length=longest,
        sha256=weights_sha256(folder) if folder else "",
    )


def model_folder(name: str) -> Path | None:
    """The local folder of a model, if there is one; otherwise the name is a Hub id."""
    return local_or_cached(name, "models")


def weights_sha256(folder: Path) -> str:
    """sha256 over the weight files of a model folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load_config(name: str, folder: Path | None) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder or name), trust_remote_code=False)
    except (*_UNREADABLE, TypeError, AttributeError) as error:  # the last two: no table of keys
        raise _missing(name, error) from None


def _missing(name: str, error: Exception) -> ConfideError:
    return ConfideError(
        "model.missing",
        f"The base model {name!r} cannot be loaded ({type(error).__name__}).",
        "Run `confide assets fetch`, or name a complete model folder with safetensors weights"
        " or a Hub id that can be reached.",
    )


def _load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfideError(
            "model.tokenizer",
            f"No tokenizer can be loaded from {source} ({type(error).__name__}).",
            "The folder needs tokenizer.json or the tokenizer files of its family.",
        ) from None
    # transformers builds an empty tokenizer from a folder that has none; its words are unusable.
    if len(tokenizer) < 64:
        raise ConfideError(
            "model.tokenizer",
            f"The tokenizer of {source} knows {len(tokenizer)} tokens only.",
            "The folder needs tokenizer.json or the tokenizer files of its family.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfideError(
            "model.pad-token",
            f"The tokenizer of {source} has neither a padding token nor one that ends a text.",
            "Set pad_token in its tokenizer_config.json.",
        )
    return tokenizer


def _load_base(
    settings: Settings,
    config: Any,
    folder: Path | None,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    spec, auto = settings.model, task.auto_class()
    level = transformers_logging.get_verbosity()
    # The head is new by design; the report of missing head weights would look like a fault.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        _check_fits(config, task, tokenizer)
        _prepare(config, task, tokenizer.pad_token_id or 0)
        with torch.random.fork_rng():
            torch.manual_seed(settings.run.seed)  # new weights are the same at every place
            base, found = auto.from_pretrained(
                str(folder or spec.name),
                config=config,
                dtype=torch.float32,  # and not the file's own: adapters and heads are float32
                trust_remote_code=False,
                use_safetensors=True,  # a pickled model is a program
                ignore_mismatched_sizes=True,  # a head for other classes is replaced
                output_loading_info=True,
            )
    except _UNREADABLE as error:
        raise _missing(spec.name, error) from None
    finally:
        transformers_logging.set_verbosity(level)
    for module in base.modules():
        if isinstance(module, nn.Dropout):  # some heads have one that no config field is for
            module.p = 0.0
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    _check_whole(new, spec.name, task)
    return base  # type: ignore[no-any-return]


def _check_fits(config: Any, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    known = task.auto_class()._model_mapping
    if type(config) not in known:
        raise ConfideError(
            "task.model",
            f"task.kind = {task.spec.kind!r} does not fit a {config.model_type!r:.100} model.",
            "An encoder (BERT) classifies and fills masks, a decoder (GPT-2, Llama) generates, and"
            " a T5 turns one text into another.",
        )
    task.check(config, tokenizer)


def _prepare(config: Any, task: Task, pad: int) -> None:
    """Classes, no dropout, and one padding token for model and batches: a decoder's head looks
    for the last token that is no padding, and would otherwise see how long the neighbours are."""
    if task.by_logits:
        names = dict(enumerate(task.spec.label_names or ("value",)))
        config.id2label, config.label2id = names, {v: k for k, v in names.items()}
    else:
        config.use_cache = False  # nothing is generated while it trains
    config.pad_token_id = pad
    for name, value in list(vars(config).items()):
        if ("drop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)


def _check_whole(new: set[str], name: str, task: Task) -> None:
    """What the folder has no weights for must be trained and travel, or every place would have
    its own: PEFT sees to that in a head by one of its names (``pre_classifier`` included)."""
    heads = _HEADS if task.by_logits else ()
    lost = sorted(key for key in new if not key.split(".")[0].endswith(heads))
    if lost:
        hint = (
            "Use a complete model folder; task.pooling = 'mean' needs no pooler."
            if task.by_logits
            else f"Use a model that was made with the head of task.kind = {task.spec.kind!r}."
        )
        raise ConfideError(
            "model.weights",
            f"{name!r} lacks {len(lost)} weights of the base model (first: {lost[0]}).",
            hint,
        )


def _attach(base: PreTrainedModel, settings: Settings, task: Task) -> PeftModel:
    lora, names = settings.lora, [t.strip() for t in settings.lora.targets.split(",") if t.strip()]
    targets = names or list(_TARGETS.get(base.config.model_type, _OTHER_TARGETS))
    # Encoder and decoder may differ in depth: each is counted from its own top, so by names.
    stacks = _stacks(base, targets) if base.config.is_encoder_decoder else {}
    total = max((len(stack) for stack in stacks.values()), default=base.config.num_hidden_layers)
    if lora.layers > total:
        raise ConfideError(
            "settings.range",
            f"lora.layers = {lora.layers}, but {settings.model.name} has {total} layers.",
            f"Choose 0 (all) to {total}.",
        )
    head_only = lora.method == "head"
    # A head alone still travels as a LoRA adapter, the format that every tool can load: one
    # frozen adapter of rank 1 whose product is zero.
    layers = 1 if head_only else lora.layers or total
    top = [name for stack in stacks.values() for layer in stack[-layers:] for name in layer]
    config = LoraConfig(
        task_type=task.peft_task_type(),
        r=1 if head_only else lora.rank,
        # PEFT's own files have a whole number where it is one.
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0 if head_only else lora.dropout,
        target_modules=top or targets,
        layers_to_transform=None if top else list(range(total - layers, total)),
        fan_in_fan_out=base.config.model_type == "gpt2",  # its Conv1D stores W transposed
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a flag by its old name, once per model.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        torch.manual_seed(settings.run.seed)
        try:
            model = get_peft_model(base, config)
        except ValueError as error:
            raise ConfideError(
                "settings.range",
                f"lora.targets = {settings.lora.targets!r} fits no module of {settings.model.name}"
                f" ({type(error).__name__}).",
                "Name modules as the model does, for example query,value.",
            ) from None
    for name, parameter in model.named_parameters():
        frozen = head_only or _FROZEN.get(settings.aggregate.method, "lora_A/B") in name
        if frozen and "modules_to_save" not in name:
            parameter.requires_grad_(False)
    _settle_head(model, settings.task)
    return model.eval()  # dropout of adapters is on for as long as the trainer trains, no longer


def _stacks(base: PreTrainedModel, targets: Sequence[str]) -> dict[str, list[list[str]]]:
    """The modules that may be adapted, by the stack that they are in, layer by layer from below."""
    found: dict[str, dict[int, list[str]]] = {}
    for name, _ in base.named_modules():
        place = _LAYER.match(name)
        if place and name.endswith(tuple(f".{target}" for target in targets)):
            stack = found.setdefault(place["stack"], {})
            stack.setdefault(int(place["number"]), []).append(name)
    return {name: [stack[n] for n in sorted(stack)] for name, stack in found.items()}


def _settle_head(model: PeftModel, task: TaskSpec) -> None:
    """The last layer of the head starts at zero, it alone: with two layers at zero neither gets a
    gradient. A regression says the middle of its scale, where its head has a bias."""
    for name, module in model.named_modules():
        if name.endswith(tuple(f".{head}.modules_to_save.default" for head in _HEADS)):
            last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
            for parameter in last.parameters():
                parameter.data.zero_()
            if task.kind == "regression" and last.bias is not None:
                last.bias.data.fill_((task.low + task.high) / 2)


def _frozen_layers(base: PreTrainedModel, settings: Settings, task: Task) -> int:
    total: int = base.config.num_hidden_layers
    if not task.fixed:
        return 0
    own_head = task.by_logits and settings.task.pooling == "model"
    if own_head and base.config.model_type not in _FIRST_TOKEN_HEADS:
        # A decoder's own head finds the last token by the padding of the ids, and hidden states
        # have none: below such a head nothing can be remembered.
        return 0
    if settings.lora.method == "head":
        return total
    return max(total - (settings.lora.layers or total), 0)


def _longest(base: PreTrainedModel, settings: Settings) -> int:
    longest: Any = getattr(base.config, "max_position_embeddings", None)
    for name, module in base.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            longest = module.num_embeddings - module.padding_idx - 1
    wanted = settings.train.max_length
    if isinstance(longest, int) and wanted > longest:
        raise ConfideError(
            "settings.range",
            f"train.max-length = {wanted}, but {settings.model.name} reads {longest} tokens.",
            f"Choose 8 to {longest}; longer records are cut.",
        )
    return wanted
