"""Pieces of the code on a model's card, by which it is used without confide: plain transformers."""

from __future__ import annotations

import json
from typing import Any

TEXTS = '["The first text.", "Another, somewhat longer text."]'
_WRITES = f"""\
template = {{template}}
texts = [template.replace("{{{{text}}}}", text) for text in {TEXTS}]
for text in texts:
    batch = tokenizer({{given}}, return_tensors="pt"{{bare}})
    written = model.generate(**batch, max_new_tokens={{new}}, num_beams={{beams}}, do_sample=False)
    print(tokenizer.decode(written[0{{rest}}], skip_special_tokens=True))
"""


def literal(value: Any) -> str:
    """Text, or a list of it, as Python that can be read: letters as they are, and whatever is not
    to be seen, or would end the block of a card, by its number."""
    shown = json.dumps(value, ensure_ascii=False).replace("```", "\\u0060" * 3)
    return "".join(x if x.isprintable() else json.dumps(x)[1:-1] for x in shown)


def writing(template: Any, *, new: Any, beams: Any, alone: bool) -> str:
    """Code that lets the model write; ``alone``: a decoder, whose answer follows its prompt."""
    begin = "begin = tokenizer.bos_token or tokenizer.cls_token or tokenizer.eos_token\n"
    return (begin if alone else "") + _WRITES.format(
        template=literal(template),
        given="begin + text" if alone else "text",
        bare=", add_special_tokens=False" if alone else "",
        rest=', batch["input_ids"].shape[1]:' if alone else "",
        new=new,
        beams=beams,
    )
