"""Base model, tokenizer and adapter: loaded once per process, kept warm over rounds and holders.

The base model is frozen and its dropout is off: noise already regularises, the frozen layers
can then be computed once per record, and a resumed run repeats itself bit for bit. The adapter's
initial values come from the public seed. ``heads`` decides how the head begins, and ``folder``
which models are refused before their weights are read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from ..adapter.schema import AdapterSchema, chosen_device, get_adapter, schema_of
from ..errors import ConfideError
from ..machine.paths import local_or_cached
from ..methods import method_of
from ..methods.method import is_factor
from ..settings import Settings
from ..tasks import Task, task_for
from ..tasks.generation import settle_language
from .folder import check_folder, positions, without_chance
from .heads import PEFTS_OWN as PEFTS_HEADS
from .heads import Head, head_in, heads_of, labelled, of_texts_alone, settle
from .targets import lora_targets
from .trunk import Trunk

# What transformers raises of files that are not there or not what they should be.
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
# Families whose own classification head reads the first token.
_FIRST_TOKEN_HEADS = ("bert", "roberta", "distilbert")


@dataclass(frozen=True)
class LoadedModel:
    """A tokenizer, a model with its adapter, and what was found out about them.

    Attributes:
        task: what the model is for.
        initial: the adapter as it was loaded, from the public seed (float32, by name). The model
            itself is reused: every run, check and prediction in this process leaves another adapter
            in it.
        trunk: the frozen layers below the first adapter, which can be computed once.
        sha256: of the base weights, as the holder's policy lists them.
        head: in words, whether the head of a pooled task is the base model's own or new.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PeftModel
    schema: AdapterSchema
    initial: Mapping[str, Tensor]
    task: Task
    trunk: Trunk
    max_length: int
    sha256: str
    head: str = ""


def load_model(settings: Settings) -> LoadedModel:
    """The model that the settings describe; the same object for equal settings."""
    neutral = Settings(
        model=settings.model,
        lora=settings.lora,
        task=settings.task,
        train=replace(Settings().train, max_length=settings.train.max_length),
        run=replace(Settings().run, seed=settings.run.seed),
    )
    # Of a method that changes its factors by round the coordinator's is that of the first round.
    return _load(neutral, method_of(settings.aggregate.method).factors(1))


def check_model(settings: Settings) -> None:
    """Check the base model in a second or two: its folder, configuration and tokenizer, and whether
    the task fits it. No weights are read.

    Raises:
        ConfideError: ``model.missing``, ``model.tokenizer``, ``model.pad-token``, what
            ``check_folder`` raises, ``task.model``, ``settings.range`` or ``model.chat-template``.
    """
    name, task = settings.model.name, task_for(settings.task)
    folder = model_folder(name)
    config = _load_config(name, folder)
    tokenizer = _load_tokenizer(folder or name)
    check_folder(name, config, tokenizer, writes=not task.by_logits)
    _check_fits(config, task, tokenizer)
    if folder and not any(folder.glob("*.safetensors")):
        raise _missing(name, FileNotFoundError())


def models_in_memory() -> int:
    """How many models this process keeps warm."""
    return _load.cache_info().currsize


def forget_models() -> None:
    """Remove them from memory."""
    _load.cache_clear()


# Two: a coordinator and its yardsticks differ in the adapter, and a base model is large.
@lru_cache(maxsize=2)
def _load(settings: Settings, factors: str) -> LoadedModel:
    """The model, with what the settings say of it, and LoRA's ``factors`` to be trained."""
    folder, task = model_folder(settings.model.name), task_for(settings.task)
    # First: of a name that leads nowhere the tokenizer would say that the folder lacks its files.
    config = _load_config(settings.model.name, folder)
    tokenizer = _load_tokenizer(folder or settings.model.name)
    check_folder(settings.model.name, config, tokenizer, writes=not task.by_logits)
    base, head, heads = _load_base(settings, config, folder, task, tokenizer)
    if not task.by_logits:
        settle_language(tokenizer, getattr(base, "generation_config", None))
    model = _attach(base, settings, task, heads, factors).to(chosen_device())
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
        head=head.words if head else "",
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
            f"The tokenizer of {source} knows only {len(tokenizer)} tokens.",
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
) -> tuple[PreTrainedModel, Head | None, list[str]]:
    """The model, its head, and the names of the head's modules."""
    spec, auto = settings.model, task.auto_class()
    level = transformers_logging.get_verbosity()
    # The head is new by design; the report of missing head weights would look like a fault.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        _check_fits(config, task, tokenizer)
        head = _prepare(config, task, tokenizer.pad_token_id or 0)
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
    heads = heads_of(base, new) if head else []
    _check_whole(new, heads, spec.name, task)
    return base, settle(base, head, task.spec, new) if head else None, heads


def _check_fits(config: Any, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    if type(config) not in task.auto_class()._model_mapping:
        other = _other_pooling(config, task)
        raise ConfideError(
            "task.model",
            f"task.kind = {task.spec.kind!r}"
            f"{f' with task.pooling = {task.spec.pooling!r}' if other else ''}"
            f" does not fit a {config.model_type!r:.100} model.",
            f"Set task.pooling = '{other}', which it has a head for."
            if other
            else "An encoder (BERT) classifies and fills masks, a decoder (GPT-2, Llama) generates,"
            " and a T5 turns one text into another.",
        )
    if task.by_logits and task.spec.pooling == "mean" and of_texts_alone(config) == []:
        raise ConfideError(
            "task.pooling",
            f"task.pooling = 'mean' with a {config.model_type!r:.100} model: its classifiers of"
            " texts and of tokens have the same layers, so that Hugging Face's calls would read the"
            " last token with a head that was trained for the mean, without a word.",
            "Set task.pooling = 'model', which reads the last token.",
        )
    task.check(config, tokenizer)


def _other_pooling(config: Any, task: Task) -> str:
    """The other value of ``task.pooling``, if the model fits it."""
    if not task.by_logits:
        return ""
    other = "model" if task.spec.pooling == "mean" else "mean"
    fits = type(config) in task_for(replace(task.spec, pooling=other)).auto_class()._model_mapping
    return other if fits else ""


def _prepare(config: Any, task: Task, pad: int) -> Head | None:
    """Turn random draws off, and give model and batches one padding token: a decoder's head reads
    the last token that is not padding, and would otherwise depend on the length of its neighbours.
    Returns the folder's head for a pooled task."""
    config.use_cache = False  # nothing is generated while it trains
    config.pad_token_id = pad
    without_chance(config)
    if not task.by_logits:
        return None
    made = task.auto_class()._model_mapping[type(config)]
    head = head_in(config, task.spec, made.__name__)
    if not head.kept:
        labelled(config, task.spec)
    return head


def _check_whole(new: set[str], heads: list[str], name: str, task: Task) -> None:
    """Refuse a folder without weights for some layer, unless the layer belongs to a head: a head is
    trained and sent, but any other new layer would differ from place to place."""
    lost = sorted(key for key in new if key.split(".")[0] not in heads)
    if lost:
        hint = "Use a complete model folder."
        if task.by_logits and task.spec.pooling == "model":
            hint = "Use a complete model folder; task.pooling = 'mean' needs no pooler."
        elif not task.by_logits:
            hint = f"Use a model that was made with the head of task.kind = {task.spec.kind!r}."
        raise ConfideError(
            "model.weights",
            f"{name!r} lacks {len(lost)} weights of the base model (first: {lost[0]}).",
            hint,
        )


def _attach(
    base: PreTrainedModel, settings: Settings, task: Task, heads: list[str], factors: str
) -> PeftModel:
    lora, targets = settings.lora, lora_targets(base, settings, heads)
    head_only = lora.method == "head"
    config = LoraConfig(
        task_type=task.peft_task_type(),
        r=1 if head_only else lora.rank,
        # PEFT's own files have a whole number where it is one.
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0 if head_only else lora.dropout,
        target_modules=targets.modules,
        layers_to_transform=targets.layers,
        modules_to_save=[name for name in heads if not name.endswith(PEFTS_HEADS)] or None,
        # Conv1D (GPT-2) stores W transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a flag by its old name, once per model.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        torch.manual_seed(settings.run.seed)
        try:
            model = get_peft_model(base, config)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ConfideError(
                "settings.range",
                f"PEFT takes no adapter on lora.targets = {settings.lora.targets!r:.100} of"
                f" {settings.model.name}: {reason:.300}",
                "Name linear modules as the model does, for example query,value, or all-linear.",
            ) from None
    resting = "".join({"A", "B"} - {*factors})
    for name, parameter in model.named_parameters():
        frozen = head_only or is_factor(name, resting)
        if frozen and "modules_to_save" not in name:
            parameter.requires_grad_(False)
    return model.eval()  # dropout of adapters is on for as long as the trainer trains, no longer


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
    longest = positions(base.config)
    for name, module in base.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            longest = int(module.num_embeddings) - int(module.padding_idx) - 1
    wanted = settings.train.max_length
    if longest is not None and wanted > longest:
        raise ConfideError(
            "settings.range",
            f"train.max-length = {wanted}, but {settings.model.name} reads {longest} tokens.",
            f"Choose 8 to {longest}; longer records are cut.",
        )
    return wanted
