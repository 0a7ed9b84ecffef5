"""Small models and federations, made on the spot in the Hub's own formats."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from confide.client.guard.contract import Contract

GOOD = ("fine", "lovely", "bright", "warm", "kind", "clear")
BAD = ("awful", "grim", "cold", "cruel", "dull", "vague")
PLAIN = ("the", "day", "a", "street", "house", "was", "and", "people", "of", "town", "in", "its")
WORDS = (*GOOD, *BAD, *PLAIN)


# Words that a hand-written file of TOML gets wrong, one way or another.
ODD_WORDS = (
    "\U0001f600 and \u00fcmlaut \u2028 line",
    "quoted \"twice\" 'once'",
    "back\\slash\\n C:\\new",
    "two\nlines\tand\ra tab",
    "\x01\x1f\x7f\x85\u200f",
    "'''\"\"\"[table]\nkey = 1",
    "123456789012345678901234567890",
    "1e999",
)


def save_tokenizer(folder: Path) -> int:
    """A word-level tokenizer in the fast format; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    filler = [f"word{i}" for i in range(80)]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *filler])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(str(folder))
    return len(vocabulary)


def save_model(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """A random base model of 3 layers, 16 wide, with its tokenizer."""
    import torch
    import transformers as t

    size = save_tokenizer(folder)
    common = {"vocab_size": size, "pad_token_id": 0}
    bert = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    configs: Mapping[str, Any] = {
        "bert": lambda: t.BertConfig(**common, **bert),
        "roberta": lambda: t.RobertaConfig(**common, **bert),
        "distilbert": lambda: t.DistilBertConfig(
            **common, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=64
        ),
        "llama": lambda: t.LlamaConfig(**common, **bert, num_key_value_heads=1),
        "qwen2": lambda: t.Qwen2Config(**common, **bert, num_key_value_heads=1),
        "mistral": lambda: t.MistralConfig(**common, **bert, num_key_value_heads=1, head_dim=8),
        "gpt2": lambda: t.GPT2Config(
            **common, n_embd=16, n_layer=3, n_head=2, n_inner=32, n_positions=64
        ),
    }
    torch.manual_seed(seed)
    model = t.AutoModel.from_config(configs[kind]())
    model.save_pretrained(str(folder))
    return folder


# What the settings of a task are on the tiny text, and the model that it is tried with.
TASKS: Mapping[str, Mapping[str, Any]] = {
    "classification": {},
    "multilabel": {"task__kind": "multilabel", "task__labels": "bright,town,grim"},
    "regression": {"task__kind": "regression", "task__labels": ""},
    "seq2seq": {
        "task__kind": "seq2seq",
        "task__labels": "",
        "task__template": "tone: {text}",
        "task__target_length": 12,
        "train__max_length": 64,
    },
    "causal": {
        "task__kind": "causal",
        "task__labels": "",
        "data__target": "",
        "task__target_length": 8,
    },
    "prompt": {
        "task__kind": "causal",
        "task__labels": "",
        "task__template": "{text} was",
        "task__target_length": 4,
    },
    "chat": {
        "task__kind": "causal",
        "task__labels": "",
        "task__template": "chat",
        "task__target_length": 4,
    },
    "masked": {"task__kind": "masked", "task__labels": "", "data__target": ""},
    "spans": {
        "task__kind": "spans",
        "task__labels": "",
        "data__target": "",
        "task__target_length": 12,
        "train__max_length": 64,
    },
}
MODELS: Mapping[str, str] = {
    "classification": "bert",
    "multilabel": "bert",
    "regression": "bert",
    "seq2seq": "t5",
    "causal": "llama",
    "prompt": "gpt2",
    "chat": "llama",
    "masked": "bert",
    "spans": "t5",
}
_CHAT = (
    "{% for m in messages %}[CLS] {{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)


def pooling_of(kind: str) -> str:
    """How a model of a type is pooled: a Llama and its kin take no mean."""
    return "model" if kind in ("llama", "qwen2", "mistral") else "mean"


def poolings(*kinds: str) -> list[tuple[str, str]]:
    """Each type with each pooling that it takes."""
    return [(kind, pooling) for kind in kinds for pooling in sorted({pooling_of(kind), "model"})]


def save_task_model(folder: Path, task: str, seed: int = 0) -> Path:
    """A random model with the head that the task needs; for T5 of bytes, for the others of words,
    whose tokenizer has a chat template."""
    import torch
    import transformers as t

    kind = MODELS[task]
    if task in ("classification", "multilabel", "regression"):
        return save_model(folder, kind, seed)
    torch.manual_seed(seed)
    if kind == "t5":
        tokenizer = t.ByT5Tokenizer(extra_ids=20)
        tokenizer.save_pretrained(str(folder))
        config = t.T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        )
        t.T5ForConditionalGeneration(config).save_pretrained(str(folder))
        return folder
    base = t.AutoConfig.from_pretrained(str(save_model(folder, kind)))
    auto = t.AutoModelForMaskedLM if kind == "bert" else t.AutoModelForCausalLM
    auto.from_config(base).save_pretrained(str(folder))
    tokenizer = t.AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(str(folder))
    return folder


def for_task(task: str, row: Mapping[str, str]) -> dict[str, str]:
    """A row of ``rows`` as the task wants it: a number where it learns one, words of the model's
    vocabulary where it writes them."""
    number = {"negative": "0.2", "positive": "0.9"}
    words = {"negative": "grim cold", "positive": "warm kind"}
    label = row["label"]
    if task == "multilabel":
        tone = ["bright"] if label == "positive" else []
        named = [*tone, *(["town"] if "town" in row["text"].split() else [])]
        return {**row, "label": ",".join(named) or "[]"}
    if task == "regression":
        return {**row, "label": number[label]}
    return {**row, "label": words[label]} if task in ("prompt", "chat") else dict(row)


def save_task_federation(folder: Path, task: str, holders: int = 2, records: int = 12) -> Path:
    """A prepared federation whose targets are those of the task."""
    for number in range(holders):
        told = [_as_in_json(task, row) for row in rows(records, seed=number)]
        write_jsonl(folder / f"holder-{number:02d}.jsonl", told)
    write_jsonl(folder / "public.jsonl", [_as_in_json(task, row) for row in rows(8, seed=1000)])
    (folder / "federation.json").write_text(json.dumps({"holders": holders}), encoding="utf-8")
    return folder


def _as_in_json(task: str, row: Mapping[str, str]) -> dict[str, Any]:
    """A row for the task, with a list where its cell means one."""
    told: dict[str, Any] = for_task(task, row)
    if task == "multilabel":
        told["label"] = [name for name in told["label"].split(",") if name != "[]"]
    return told


def rows(count: int, seed: int, length: int = 12) -> list[dict[str, str]]:
    """Sentences whose label is the tone of their words; lengths vary."""
    generator = random.Random(seed)
    out = []
    for number in range(count):
        good = generator.random() < 0.5
        words = [generator.choice(PLAIN) for _ in range(generator.randint(2, length))]
        words += [generator.choice(GOOD if good else BAD) for _ in range(2)]
        generator.shuffle(words)
        label = "positive" if good else "negative"
        out.append({"text": " ".join(words), "label": label, "person": str(number // 3)})
    return out


def contract(flat: Mapping[str, Any]) -> Contract:
    """What the holder of a tiny text says of it, such that the run of a flat config fits."""
    from confide.client.guard.contract import Contract

    kind = flat.get("task.kind", "classification")
    labels = [name.strip() for name in flat.get("task.labels", "").split(",") if name.strip()]
    return Contract(
        text=flat.get("data.text", "text"),
        target=flat.get("data.target", "label"),
        person=flat.get("data.person", "") or "person",
        unit=flat.get("privacy.unit", "record"),
        tasks=(kind,),
        labels=tuple(labels),
        low=flat.get("task.low", 0.0),
        high=flat.get("task.high", 1.0),
    )


# What a policy.toml has to say of the tiny text for its plain runs.
DATA_TABLE = """
[data]
text = "text"
target = "label"
person = "person"
tasks = ["classification"]
labels = ["negative", "positive"]
"""


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def save_federation(folder: Path, holders: int = 3, records: int = 24) -> Path:
    """A prepared federation: one file per holder, a public file, a manifest."""
    for number in range(holders):
        write_jsonl(folder / f"holder-{number:02d}.jsonl", rows(records, seed=number))
    write_jsonl(folder / "public.jsonl", rows(40, seed=1000))
    (folder / "federation.json").write_text(json.dumps({"holders": holders}), encoding="utf-8")
    return folder


def config(model: Path, federation: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    """A flat run config for the tiny model; ``privacy__epsilon=3`` sets ``privacy.epsilon``."""
    flat: dict[str, Any] = {
        "model.name": str(model),
        "lora.rank": 2,
        "lora.alpha": 4,
        "lora.layers": 1,
        "task.labels": "negative,positive",
        "data.path": str(federation),
        "privacy.delta": 1e-3,
        "train.batch": 32,
        "train.lr": 1.0,
        "train.max-length": 32,
        "round.count": 2,
        "round.mode": "gradient",
        "run.out": str(out),
    }
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}
    return flat | named
