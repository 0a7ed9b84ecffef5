"""The code by which a model is used without confide, for its card: plain transformers, and PEFT
where the adapter is still apart. ``tests`` run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..common.kinds import KINDS

_TEXTS = '["The first text.", "Another, somewhat longer text."]'
_BATCH = f"""\
texts = {_TEXTS}
batch = tokenizer(texts, padding=True, truncation=True, max_length={{length}}, return_tensors="pt")
with torch.no_grad():
"""
_MEAN = """\
    token_logits = model(**batch).logits  # (texts, tokens, {what})
mask = batch["attention_mask"].unsqueeze(-1)
logits = (token_logits * mask).sum(1) / mask.sum(1)  # the mean over the tokens of each text
"""
_OWN = "    logits = model(**batch).logits  # (texts, {what})\n"
_LABELS = "print([labels[i] for i in logits.argmax(-1)])\n"
_NUMBERS = "print(logits.squeeze(-1).tolist())\n"
_WRITES = f"""\
template = {{template}}
texts = [template.replace("{{{{text}}}}", text) for text in {_TEXTS}]
for text in texts:
    batch = tokenizer({{given}}, return_tensors="pt"{{bare}})
    written = model.generate(**batch, max_new_tokens={{new}}, num_beams={{beams}}, do_sample=False)
    print(tokenizer.decode(written[0{{rest}}], skip_special_tokens=True))
"""
_CHAT = f"""\
for text in {_TEXTS}:
    batch = tokenizer.apply_chat_template(
        [{{{{"role": "user", "content": text}}}}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**batch, max_new_tokens={{new}}, num_beams={{beams}}, do_sample=False)
    print(tokenizer.decode(written[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
"""
_FILLS = """\
text = f"The first {tokenizer.mask_token}."
batch = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    best = model(**batch).logits[0].argmax(-1)
print([tokenizer.decode(b) for b, i in zip(best, batch["input_ids"][0])
       if i == tokenizer.mask_token_id])
"""
_SPANS = """\
batch = tokenizer("The first <extra_id_0>.", return_tensors="pt")
written = model.generate(**batch, max_new_tokens={new}, do_sample=False)
print(tokenizer.decode(written[0]))
"""


def explained(settings: Mapping[str, Any], *, merged: bool) -> str:
    """What somebody has to know who reads the code; empty where it speaks for itself."""
    if not _is_pooled(settings):
        return ""
    way = "" if merged else "; `confide export` writes a whole model"
    if settings["task.pooling"] == "model":
        return "" if merged else f"`pipeline` needs a whole model, with the labels{way[1:]}."
    return (
        "The head scores every token, and the scores of a text are averaged over its tokens, as"
        " below. `pipeline` has no such class, and must not be used: a text classifier of the same"
        f" family would read the first token with this head{way}."
    )


def pipeline_tag(settings: Mapping[str, Any], *, merged: bool) -> str | None:
    """The Hub's name of the task, where ``pipeline`` with that name gives the model's answers."""
    if _is_pooled(settings):
        return "text-classification" if merged and settings["task.pooling"] == "model" else None
    return {"causal": "text-generation", "masked": "fill-mask"}.get(settings["task.kind"])


def model_class(settings: Mapping[str, Any]) -> str:
    """transformers' Auto class of the model."""
    if _is_pooled(settings):
        mean = settings["task.pooling"] == "mean"
        return "AutoModelForTokenClassification" if mean else "AutoModelForSequenceClassification"
    return KINDS[settings["task.kind"]].model_class


def loading_code(settings: Mapping[str, Any], base: str, *, merged: bool) -> str:
    """Python that loads the model in the current folder and uses it. ``base`` is what the adapter
    belongs to; a merged model needs none."""
    auto, labels = model_class(settings), labels_of(settings)
    lines = ["import torch"]
    lines += [] if merged else ["from peft import PeftModel"]
    lines += [f"from transformers import AutoTokenizer, {auto}", ""]
    if merged:
        lines += ['folder = "."  # this folder']
    else:
        quoted = literal(base)
        lines += [f"base = {quoted}", 'adapter = "."  # this folder']
    if labels:
        lines += [f"labels = {literal(labels)}"]
    source, options = "folder" if merged else "base", ""
    if _is_pooled(settings) and not merged:
        options = ", num_labels=len(labels)" if labels else ", num_labels=1"
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
        f"model = {auto}.from_pretrained({source}{options})" + (".eval()" if merged else ""),
    ]
    lines += [] if merged else ["model = PeftModel.from_pretrained(model, adapter).eval()"]
    return "\n".join([*lines, "", _use(settings)])


def labels_of(settings: Mapping[str, Any]) -> list[str]:
    """The names of the classes, in order; none where the task has none."""
    return [label.strip() for label in str(settings["task.labels"]).split(",") if label.strip()]


def literal(value: Any) -> str:
    """Text, or a list of it, as Python that can be read: letters as they are, and whatever is not
    to be seen, or would end the block of a card, by its number."""
    shown = json.dumps(value, ensure_ascii=False).replace("```", "\\u0060" * 3)
    return "".join(x if x.isprintable() else json.dumps(x)[1:-1] for x in shown)


def _is_pooled(settings: Mapping[str, Any]) -> bool:
    return not KINDS[settings["task.kind"]].language


def _use(settings: Mapping[str, Any]) -> str:
    kind = settings["task.kind"]
    if _is_pooled(settings):
        head = _MEAN if settings["task.pooling"] == "mean" else _OWN
        what = "labels" if labels_of(settings) else "1"
        told = _LABELS if labels_of(settings) else _NUMBERS
        body = _BATCH.format(length=settings["train.max-length"]) + head.format(what=what)
        return body + told
    if kind == "masked":
        return _FILLS
    how = {"new": settings["task.target-length"], "beams": settings["task.beams"]}
    if kind == "spans":
        return _SPANS.format(**how)
    if settings["task.template"] == "chat":
        return _CHAT.format(**how)
    causal = kind == "causal"
    begin = "begin = tokenizer.bos_token or tokenizer.cls_token or tokenizer.eos_token\n"
    return (begin if causal else "") + _WRITES.format(
        template=literal(settings["task.template"]),
        given="begin + text" if causal else "text",
        bare=", add_special_tokens=False" if causal else "",
        rest=', batch["input_ids"].shape[1]:' if causal else "",
        **how,
    )
