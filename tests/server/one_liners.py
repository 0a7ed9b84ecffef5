"""Every call of Hugging Face's that people make on an adapter or a merged export.

Plain transformers and PEFT, so that a process without confide can run it: ``python - JOB OUT``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf

POOLED = ("classification", "multilabel", "regression")
# The ends of the names of the Auto classes that somebody may take for a kind, the right one first.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "classification": ("TokenClassification", "SequenceClassification"),
    "multilabel": ("TokenClassification", "SequenceClassification"),
    "regression": ("TokenClassification", "SequenceClassification"),
    "seq2seq": ("Seq2SeqLM",),
    "spans": ("Seq2SeqLM",),
    "causal": ("CausalLM",),
    "masked": ("MaskedLM",),
}
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "classification": ("text-classification", "sentiment-analysis"),
    "multilabel": ("text-classification",),
    "regression": ("text-classification",),
    "seq2seq": ("text2text-generation", "summarization", "translation"),
    "spans": ("text2text-generation",),
    "causal": ("text-generation",),
    "masked": ("fill-mask",),
}


def outcomes(job: Mapping[str, Any]) -> dict[str, Any]:
    """By call, the labels of the texts, or ``diff``, how far the scores are from the right ones,
    or ``error``.

    ``job``: kind, labels, texts, own_head (``task.pooling = model``), base, adapter and merged
    (folders), batches (a file of pairs: inputs, and the right scores).
    """
    calls = {**_loads(job), **_pipelines(job)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: _tried(call) for name, call in calls.items()}


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - each is a right answer
        return {"error": type(error).__name__, "message": str(error)[-300:]}


def _loads(job: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    adapter, merged, base = job["adapter"], job["merged"], job["base"]
    asked = {"num_labels": len(job["labels"])} if job["kind"] in POOLED else {}
    calls: dict[str, Callable[[], Any]] = {}

    def add(name: str, load: Callable[[], Any]) -> None:
        calls[name] = lambda: {"diff": _difference(load(), job)}

    for end in CLASSES[job["kind"]]:
        if job["own_head"] and end == "TokenClassification":
            continue  # scores of tokens, which nobody takes for a text's
        auto, of_peft = getattr(hf, f"AutoModelFor{end}"), f"AutoPeftModelFor{end}"
        add(f"{end}(adapter)", lambda a=auto: a.from_pretrained(adapter))
        add(f"{end}(adapter, labels)", lambda a=auto: a.from_pretrained(adapter, **asked))
        add(f"{end}(merged)", lambda a=auto: a.from_pretrained(merged))
        add(
            f"{end} + PeftModel",
            lambda a=auto: peft.PeftModel.from_pretrained(
                a.from_pretrained(base, **asked), adapter
            ),
        )

        def loaded(a: Any = auto) -> Any:
            model = a.from_pretrained(base, **asked)
            model.load_adapter(adapter)
            return model

        add(f"{end} + load_adapter", loaded)
        if hasattr(peft, of_peft):
            of = getattr(peft, of_peft)
            add(f"Peft{end}(adapter)", lambda o=of: o.from_pretrained(adapter))
    add("Peft(adapter)", lambda: peft.AutoPeftModel.from_pretrained(adapter))
    return calls


def _difference(model: Any, job: Mapping[str, Any]) -> float:
    worst = 0.0
    for inputs, right in torch.load(job["batches"], weights_only=True):
        with torch.no_grad():
            found = model.eval()(**inputs).logits
        if job["kind"] in POOLED and found.ndim == 3:
            mask = inputs["attention_mask"].unsqueeze(-1)
            found = (found * mask).sum(1) / mask.sum(1)
        worst = max(worst, float((found - right).abs().max()))
    return worst


def _pipelines(job: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {}
    for task in PIPELINES[job["kind"]]:
        for where in ("adapter", "merged"):

            def call(task: str = task, where: str = where) -> Any:
                pipe = hf.pipeline(task, model=job[where])
                if job["kind"] not in POOLED:
                    few = {"max_new_tokens": 2} if job["kind"] == "causal" else {}
                    said = str(pipe(job["texts"][0], **few))
                    return {"diff": _difference(pipe.model, job), "said": said}
                return {"said": [pipe(text)[0] for text in job["texts"]]}

            calls[f"{task}({where})"] = call
    for where in ("adapter", "merged"):
        calls[f"pipeline({where})"] = lambda w=where: str(hf.pipeline(model=job[w]))
    return calls


if __name__ == "__main__":
    sys.modules["confide"] = None  # type: ignore[assignment]
    asked, told = map(Path, sys.argv[1:])
    told.write_text(json.dumps(outcomes(json.loads(asked.read_text(encoding="utf-8")))))
