"""A small T5 that spells words as phonemes, trained here because no registry has a pretrained T5.

It is trained without privacy on the central part of the dictionary, which shares no word with the
holders' training words or the test words. Both sides have one vocabulary: lower-case letters are
spelling, upper-case ones phonemes. The seed makes the training repeatable on one machine, not
across machines.

Source: Raffel et al., "T5", 2020, for the model; the sizes and the training are our own.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.metrics import edits
from ..common.text.readers import Record
from .sources.pronunciations import read_central, read_pronunciations

RECIPE: Mapping[str, Any] = {
    "schema": 1,
    "seed": 0,
    "steps": 1400,
    "batch": 64,
    "learning_rate": 1.5e-3,
    "tested_on": 1000,
    "model": {
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 512,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    },
}
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
# Longer than any word of the dictionary, in phonemes and the end.
_LONGEST = 32


def train(asset: Path, folder: Path, recipe: Mapping[str, Any] = RECIPE) -> dict[str, float]:
    """Train on the dictionary in ``asset``, and write model and tokenizer to ``folder``.

    Returns:
        ``phoneme_error`` (edits by phonemes of the reference) and ``word_accuracy`` on the first
        ``tested_on`` words of the test part.
    """
    import torch

    central, test = read_central(asset), read_pronunciations(asset).test[: recipe["tested_on"]]
    tokenizer = _tokenizer(sorted({p for r in central for p in str(r.target).split()}))
    with torch.random.fork_rng():
        torch.manual_seed(recipe["seed"])
        model = _new_model(len(tokenizer), recipe["model"])
        _fit(model, tokenizer, central, recipe)
    model.eval()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return scores(model, tokenizer, test)


def scores(model: Any, tokenizer: Any, records: Sequence[Record]) -> dict[str, float]:
    """Phoneme error and the share of words without an error, by greedy decoding."""
    spelt = [text.split() for text in _spell(model, tokenizer, records)]
    wanted = [str(record.target).split() for record in records]
    wrong = [edits(found, right) for found, right in zip(spelt, wanted, strict=True)]
    return {
        "phoneme_error": sum(wrong) / sum(map(len, wanted)),
        "word_accuracy": wrong.count(0) / len(wrong),
    }


def _tokenizer(phonemes: Sequence[str]) -> Any:
    """One token a letter or phoneme; spaces are dropped, and decoding puts them back."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [PAD, END, UNKNOWN, *string.ascii_lowercase, *phonemes]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("[^A-Z]|[A-Z]+"), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def _new_model(vocabulary: int, sizes: Mapping[str, Any]) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    pad, end = 0, 1
    config: dict[str, Any] = {**sizes, "vocab_size": vocabulary, "decoder_start_token_id": pad}
    return T5ForConditionalGeneration(T5Config(pad_token_id=pad, eos_token_id=end, **config))


def _fit(model: Any, tokenizer: Any, records: Sequence[Record], recipe: Mapping[str, Any]) -> None:
    """Train by AdamW; the rate rises over a tenth of the steps, and falls to zero over all of
    them."""
    import torch

    rate, steps = recipe["learning_rate"], recipe["steps"]
    optimizer = torch.optim.AdamW(model.parameters(), rate, (0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
    )
    model.train()
    for batch in _batches(records, recipe["batch"], steps):
        inputs = tokenizer([r.text for r in batch], padding=True, return_tensors="pt")
        labels = tokenizer([r.target for r in batch], padding=True, return_tensors="pt").input_ids
        labels[labels == tokenizer.pad_token_id] = -100
        loss = model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(records: Sequence[Record], size: int, steps: int) -> Iterator[list[Record]]:
    """This many batches; each pass over the records has a new order."""
    import torch

    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(records)).tolist()
        yield [records[i] for i in order[:size]]
        order = order[size:]


def _spell(model: Any, tokenizer: Any, records: Sequence[Record], size: int = 250) -> Iterator[str]:
    import torch

    for start in range(0, len(records), size):
        texts = [record.text for record in records[start : start + size]]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=_LONGEST,
                do_sample=False,
                num_beams=1,
            )
        yield from tokenizer.batch_decode(found, skip_special_tokens=True)
