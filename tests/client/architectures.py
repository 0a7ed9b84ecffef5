"""Tiny random models made from their configurations, padded batches, and per-example losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from peft import TaskType
from torch import Tensor
from torch.nn.functional import cross_entropy

# No two sizes are equal, so that no axis can be taken for another: 5 examples, at most 9 tokens.
LENGTHS = (7, 3, 9, 5, 6)
ANSWER_LENGTHS = (4, 6, 2, 7, 3)
WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, INNER = 32, 2, 4, 2, 48
VOCABULARY, LABELS, POSITIONS = 40, 3, 24
PAD, END, FIRST_WORD = 0, 1, 3
IGNORED = -100
SPREAD = 0.1  # of weights: attention is far from uniform, and rounding stays near 1e-6


class Batch(NamedTuple):
    """Right-padded examples of different lengths and what the loss compares the logits with."""

    inputs: dict[str, Tensor]  # (B, T) each
    targets: Tensor  # (B,) or (B, T)

    def example(self, index: int) -> Batch:
        one = slice(index, index + 1)
        return Batch({k: v[one] for k, v in self.inputs.items()}, self.targets[one])

    @property
    def size(self) -> int:
        return len(self.targets)


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, labels) and (B,) -> (B,)."""
    return cross_entropy(logits, targets, reduction="none")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T, V) and (B, T) -> (B,): the mean over an example's own targets."""
    losses = cross_entropy(logits.mT, targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (targets != IGNORED).sum(1)


def next_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """As ``token_losses``, one to the right; logits of virtual tokens in front are left out."""
    return token_losses(logits[:, -targets.shape[1] : -1], targets[:, 1:])


def text(lengths: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random words, each example ended by END and padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.arange(max(lengths))  # (T,)
    length = torch.tensor(lengths).unsqueeze(1)  # (B, 1)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(FIRST_WORD, VOCABULARY, shape, generator=generator)
    ids = ids.where(position < length - 1, END).where(position < length, PAD)
    return {"input_ids": ids, "attention_mask": (position < length).long()}


def _own(inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    return targets.where(inputs["attention_mask"].bool(), IGNORED)


def labelled_batch(seed: int) -> Batch:
    inputs = text(LENGTHS, seed)
    return Batch(inputs, (torch.arange(len(LENGTHS)) + seed) % LABELS)


def labelled_tokens_batch(seed: int) -> Batch:
    inputs = text(LENGTHS, seed)
    return Batch(inputs, _own(inputs, inputs["input_ids"] % LABELS))


def language_batch(seed: int) -> Batch:
    inputs = text(LENGTHS, seed)
    return Batch(inputs, _own(inputs, inputs["input_ids"]))


def masked_batch(seed: int) -> Batch:
    """Every other token is to be guessed, the first of each example among them."""
    inputs = text(LENGTHS, seed)
    guessed = torch.arange(max(LENGTHS)) % 2 == 0
    return Batch(inputs, _own(inputs, inputs["input_ids"].where(guessed, IGNORED)))


def pairs_batch(seed: int) -> Batch:
    answers = text(ANSWER_LENGTHS, seed + 1)
    shifted = answers["input_ids"].roll(1, dims=1)
    shifted[:, 0] = PAD  # what T5's decoder starts from
    inputs = {**text(LENGTHS, seed), "decoder_input_ids": shifted}
    return Batch(inputs, _own(answers, answers["input_ids"]))


class Task(NamedTuple):
    auto: Any
    peft: TaskType | None
    losses: Callable[[Tensor, Tensor], Tensor]
    batch: Callable[[int], Batch]


TASKS: Mapping[str, Task] = {
    "classification": Task(
        transformers.AutoModelForSequenceClassification,
        TaskType.SEQ_CLS,
        label_losses,
        labelled_batch,
    ),
    "tokens": Task(
        transformers.AutoModelForTokenClassification,
        TaskType.TOKEN_CLS,
        token_losses,
        labelled_tokens_batch,
    ),
    "causal": Task(
        transformers.AutoModelForCausalLM, TaskType.CAUSAL_LM, next_token_losses, language_batch
    ),
    "masked": Task(transformers.AutoModelForMaskedLM, None, token_losses, masked_batch),
    "seq2seq": Task(
        transformers.AutoModelForSeq2SeqLM, TaskType.SEQ_2_SEQ_LM, token_losses, pairs_batch
    ),
}

_ALL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "num_labels": LABELS}
_BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "initializer_range": SPREAD,
}
_BERT_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_LLAMA = {**_BERT, "use_cache": False, "bos_token_id": None}
_GROUPED = {**_LLAMA, "num_key_value_heads": KEY_VALUE_HEADS, "tie_word_embeddings": True}
_GPT2 = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": POSITIONS,
    "initializer_range": SPREAD,
    "use_cache": False,
    "bos_token_id": None,
}
_T5 = {
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": PAD,
    "initializer_factor": 0.5,
    "use_cache": False,
}
_DISTILBERT = {
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "max_position_embeddings": POSITIONS,
    "initializer_range": SPREAD,
}
_DISTILBERT_DROPOUT = ("dropout", "attention_dropout", "seq_classif_dropout")


class Family(NamedTuple):
    config: Any
    sizes: Mapping[str, Any]
    dropout: tuple[str, ...]  # the settings that are rates of the base model's own dropout
    targets: str  # every linear layer of the body
    head: tuple[str, ...] = ()  # of a sequence classifier, where PEFT does not find it


_LLAMA_DROPOUT = ("attention_dropout", "classifier_dropout")
_T5_DROPOUT = ("dropout_rate", "classifier_dropout")
_GPT2_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout")
_BERT_TARGETS = "query key value attention.output.dense intermediate.dense output.dense"
_LLAMA_TARGETS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
_ALBERT = {**_BERT, "embedding_size": WIDTH // 2, "classifier_dropout_prob": 0.0}

FAMILIES: Mapping[str, Family] = {
    "t5": Family(
        transformers.T5Config,
        {**_T5, "feed_forward_proj": "relu"},
        _T5_DROPOUT,
        "q k v o wi wo",
        ("classification_head",),
    ),
    "t5-gated": Family(
        transformers.T5Config,
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _T5_DROPOUT,
        "q k v o wi_0 wi_1 wo",
        ("classification_head",),
    ),
    "bert": Family(transformers.BertConfig, _BERT, _BERT_DROPOUT, _BERT_TARGETS),
    "albert": Family(
        transformers.AlbertConfig,
        _ALBERT,
        _BERT_DROPOUT,
        "query key value attention.dense ffn ffn_output",
    ),
    "distilbert": Family(
        transformers.DistilBertConfig,
        _DISTILBERT,
        _DISTILBERT_DROPOUT,
        "q_lin k_lin v_lin out_lin lin1 lin2",
        ("pre_classifier", "classifier"),
    ),
    "roberta": Family(transformers.RobertaConfig, _BERT, _BERT_DROPOUT, _BERT_TARGETS),
    "gpt2": Family(transformers.GPT2Config, _GPT2, _GPT2_DROPOUT, "c_attn c_proj c_fc"),
    "llama": Family(transformers.LlamaConfig, _LLAMA, _LLAMA_DROPOUT, _LLAMA_TARGETS),
    "qwen2": Family(transformers.Qwen2Config, _GROUPED, _LLAMA_DROPOUT, _LLAMA_TARGETS),
    "smollm2": Family(transformers.LlamaConfig, _GROUPED, _LLAMA_DROPOUT, _LLAMA_TARGETS),
}


def base_model(family: str, task: str, dropout: float = 0.0, **changes: Any) -> Any:
    """A random model; ``dropout`` is the base model's own, everywhere."""
    torch.manual_seed(0)
    known = FAMILIES[family]
    rates = dict.fromkeys(known.dropout, dropout)
    config = known.config(**{**_ALL, **known.sizes, **rates, **changes})
    return TASKS[task].auto.from_config(config)
