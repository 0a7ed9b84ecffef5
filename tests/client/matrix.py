"""Which kinds of models have exact per-example gradients: tiny ones, made from configurations.

Each is loaded, checked and differentiated as at a holder (frozen layers computed once, texts of
very different lengths in one batch), and held against plain PEFT: another copy of the model, one
text at a time, transformers' own forward and autograd.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from peft import get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from confide.client.training.per_example import PerExample
from confide.client.training.trainer import Trainer
from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.tasks import Example
from confide.common.tasks.example import IGNORED
from confide.common.tasks.tokens import vocabulary
from tests import tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
EXACT = 1e-5  # relative, of a text's whole gradient, in float32
LENGTHS = (3, 40, 17, 9, 28)  # of the texts in one batch; the second is the greatest
ANSWERS = (4, 2, 9, 3, 6)
WINDOW = 16  # of attention, in the models that have one
LAYERS, ADAPTED = 3, 2
PAD, BEGIN, END, MASK, FIRST_WORD = 0, 2, 3, 4, 5

# By whatever name a configuration has them.
_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "n_inner", "d_inner"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 48),
    **dict.fromkeys(("d_kv", "d_head", "head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts"), 4),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "sliding_window": WINDOW,
    "type_vocab_size": 2,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "use_cache": False,
    "initializer_range": 0.1,
}
# What some of them need beside that, or instead (None: leave it as it is).
_STARTS = {"decoder_start_token_id": PAD}
_OWN: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers", "marian"), _STARTS),
    **{kind: {"rotary_dim": 4} for kind in ("codegen", "gptj")},
    # Relative positions, as in DeBERTa-v3.
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    # What is drawn at random in training.
    "mixtral": {"router_jitter_noise": 0.3},
    "bart": {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "dropout": 0.3},
    # Two kinds of attention, by a layer's place.
    "qwen2": {
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "minicpm3": {"num_key_value_heads": 4},
    "xlnet": {"max_position_embeddings": None},
}

_SHARED = ("albert",)  # one layer's weights in all of them: adapters are in all or in none

TASKS: Mapping[str, Mapping[str, Any]] = {
    "mean": {},
    "model": {"task__pooling": "model"},
    "causal": {**tiny.TASKS["causal"]},
    "masked": {**tiny.TASKS["masked"]},
    "seq2seq": {**tiny.TASKS["seq2seq"], "train__max_length": max(LENGTHS)},
}


@dataclass(frozen=True)
class Outcome:
    """``off``: the largest relative difference; ``refused``: code and sentence instead of it."""

    off: float = 0.0
    refused: str = ""

    @property
    def word(self) -> str:
        if self.refused:
            return f"refused ({self.refused.partition(']')[0].lstrip('[')})"
        return "exact" if self.off <= EXACT else f"WRONG ({self.off:.1e})"


def config_of(kind: str, task: str, size: int) -> Any:
    """A tiny configuration of a model type for a vocabulary of so many words."""
    own, known = dict(_OWN.get(kind, {})), CONFIG_MAPPING[kind]()
    if task == "causal" and kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        own["is_decoder"] = True  # an encoder that was made to foretell
    sizes = {**_SIZES, "vocab_size": size, **own}
    names = [n for n in sizes if n in own or hasattr(known, n)]
    return CONFIG_MAPPING[kind](**{n: sizes[n] for n in names if sizes[n] is not None})


def save(kind: str, task: str, folder: Path) -> Path:
    """A random model of this type, with the task's head, in a folder of the Hub's format."""
    # Room for what the family's tokenizer adds by itself.
    config = config_of(kind, task, tiny.save_tokenizer(folder) + 11)
    auto = _settings(folder, kind, task)[1].auto_class()
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(str(folder))
    return folder


def _settings(folder: Path, kind: str, task: str) -> tuple[Any, Any]:
    from confide.common.tasks import task_for

    changes = {
        "aggregate__method": "lora", "train__max_length": max(LENGTHS), **TASKS[task],
        "lora__layers": 0 if kind in _SHARED else ADAPTED,
    }  # fmt: skip
    settings = from_flat(tiny.config(folder, folder, folder, **changes))
    return settings, task_for(settings.task)


def outcome(kind: str, task: str, folder: Path) -> Outcome:
    """What a holder would do with the model, and how far its gradients are off."""
    settings, _ = _settings(save(kind, task, folder), kind, task)
    try:
        loaded = load_model(settings)
        Trainer(loaded).prepare(settings)
    except ConfideError as error:
        return Outcome(refused=str(error))
    examples, engine = _examples(loaded, task), vars(loaded.model)["_per_example"]
    generator = torch.Generator().manual_seed(1)
    for parameter in engine.trained:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    found = _together(engine, loaded, examples)
    expected = [_alone(loaded, folder, task, one) for one in examples]
    engine.remove_hooks()
    return Outcome(off=max(_off(f, e) for f, e in zip(found, expected, strict=True)))


def _examples(loaded: LoadedModel, task: str) -> list[Example]:
    generator = torch.Generator().manual_seed(2)

    def words(count: int) -> tuple[int, ...]:
        high = vocabulary(loaded)
        return tuple(torch.randint(FIRST_WORD, high, (count,), generator=generator).tolist())

    out = []
    for number, (length, answer) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        ids = (BEGIN, *words(length - 2), END)
        if task in ("mean", "model"):
            out.append(Example(ids, number % 2))
        elif task == "causal":
            out.append(Example(ids, (IGNORED, *ids[1:])))
        elif task == "masked":
            hidden = {1, *range(4, length - 1, 3)}
            seen = tuple(MASK if i in hidden else t for i, t in enumerate(ids))
            targets = tuple(t if i in hidden else IGNORED for i, t in enumerate(ids))
            out.append(Example(seen, targets))
        else:
            out.append(Example(ids, (*words(answer), END)))
    return out


def _together(
    engine: PerExample, loaded: LoadedModel, examples: Sequence[Example]
) -> list[dict[str, Tensor]]:
    text = EncodedText(examples, loaded)
    batch = text.together(range(len(examples)))
    engine.train()
    loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets).sum().backward()
    engine.check()
    rows: dict[str, Any] = {
        n: p.grad_sample for n, p in loaded.model.named_parameters() if p.requires_grad
    }
    found = [{n: r[i].clone() for n, r in rows.items()} for i in range(len(examples))]
    engine.forget()
    return found


def _alone(loaded: LoadedModel, folder: Path, task: str, example: Example) -> dict[str, Tensor]:
    """By plain PEFT: the model loaded again, one text, transformers' own forward."""
    model = _plain(loaded, folder)
    ids = torch.tensor([example.ids])
    given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    target = torch.tensor([example.target])
    if task == "seq2seq":
        own = model.get_base_model()
        shift = getattr(own, "prepare_decoder_input_ids_from_labels", None)
        given["decoder_input_ids"] = (
            shift(labels=target)
            if shift
            else torch.tensor([[own.config.decoder_start_token_id, *target[0, :-1]]])
        )
    logits = model(**given).logits
    if task in ("mean", "model"):
        loss = cross_entropy(logits.mean(1) if task == "mean" else logits, target)
    elif task == "causal":
        loss = cross_entropy(logits[0, :-1], target[0, 1:], ignore_index=IGNORED)
    else:
        loss = cross_entropy(logits[0], target[0], ignore_index=IGNORED)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(named.items(), found, strict=True)
    }


def _plain(loaded: LoadedModel, folder: Path) -> Any:
    known = vars(loaded.model).get("_plain_copy")
    if known is None:
        base = loaded.task.auto_class().from_pretrained(
            str(folder), num_labels=len(loaded.task.spec.label_names) or 2,
            ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
        base.config.pad_token_id = PAD
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 by a name that is going to go.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            known = get_peft_model(base, loaded.model.peft_config["default"])
        values = dict(loaded.model.named_parameters())
        for name, parameter in known.named_parameters():
            parameter.data = values[name].data.clone()
            parameter.requires_grad_(values[name].requires_grad)
        vars(loaded.model)["_plain_copy"] = known.eval()
    return known


def _off(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    one, other = (
        torch.cat([g[n].double().flatten() for n in sorted(g)]) for g in (found, expected)
    )
    off = float((one - other).norm() / other.norm())
    return off if off == off else float("inf")


def tasks_of(kind: str) -> Iterator[str]:
    """The tasks that transformers has a class of this type for."""
    for task in TASKS:
        auto = _settings(Path(), kind, task)[1].auto_class()
        if CONFIG_MAPPING[kind] in auto._model_mapping:
            yield task


def every_kind() -> list[str]:
    """Every type of model that transformers has a class for one of the tasks for."""
    tables = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return sorted({kind for table in tables for kind in table})


def told(page: str) -> dict[tuple[str, str], str]:
    """What docs/models.md says of each type and task: ``exact``, or ``refused (code)``."""
    out = {}
    for line in page.partition("## The table")[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`"):
            kind = cells[0].strip("`")
            out |= {(kind, task): "exact" for task in cells[1].split(", ") if task}
            for one in cells[2].split("; "):
                task, _, code = one.partition(": ")
                if code:
                    out[kind, task] = f"refused ({code.strip('`')})"
    return out


def table(found: Mapping[tuple[str, str], str]) -> str:
    """The same as lines of the page."""
    lines = []
    for kind in sorted({kind for kind, _ in found}):
        own = {task: word for (one, task), word in found.items() if one == kind}
        exact = ", ".join(task for task in TASKS if own.get(task) == "exact")
        others = [f"{t}: `{own[t][9:-1]}`" for t in TASKS if own.get(t, "exact") != "exact"]
        lines.append(f"| `{kind}` | {exact} | {'; '.join(others)} |")
    return "\n".join(lines)


def main(asked: Sequence[str]) -> int:
    """Print the outcome of each type and task, those of docs/models.md where none is named; 1 where
    the page says something else."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    page = told(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    found: dict[tuple[str, str], str] = {}
    for kind in asked or sorted({kind for kind, _ in page}):
        for task in tasks_of(kind):
            with TemporaryDirectory() as folder:
                one = outcome(kind, task, Path(folder))
            found[kind, task] = one.word
            mark = (
                "" if page.get((kind, task)) in (None, one.word) else "  <- not what the page says"
            )
            reason = " ".join(one.refused.split())
            print(f"{kind:24} {task:8} {one.word:34} {one.off:.1e} {reason:.220}{mark}", flush=True)
    tried = {kind for kind, _ in {**page, **found}}
    exact = sum(word == "exact" for word in found.values())
    refused = sum(word.startswith("refused") for word in found.values())
    print(f"\n{table(found)}\n")
    print(f"{len(found)} pairs of {len({kind for kind, _ in found})} types: {exact} exact,"
          f" {refused} refused, {len(found) - exact - refused} WRONG; untried:"
          f" {', '.join(k for k in every_kind() if k not in tried)}")  # fmt: skip
    return int(any(page.get(pair, word) != word for pair, word in found.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
