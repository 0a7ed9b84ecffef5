"""Small models and federations, made on the spot in the Hub's own formats."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GOOD = ("fine", "lovely", "bright", "warm", "kind", "clear")
BAD = ("awful", "grim", "cold", "cruel", "dull", "vague")
PLAIN = ("the", "day", "a", "street", "house", "was", "and", "people", "of", "town", "in", "its")
WORDS = (*GOOD, *BAD, *PLAIN)


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
        "gpt2": lambda: t.GPT2Config(
            **common, n_embd=16, n_layer=3, n_head=2, n_inner=32, n_positions=64
        ),
    }
    torch.manual_seed(seed)
    model = t.AutoModel.from_config(configs[kind]())
    model.save_pretrained(str(folder))
    return folder


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
