"""What there is to know of each kind of task without its code, which needs torch.

A new task is a module of ``common.tasks``, which that package names, and a line here; settings,
their combinations, the model card and its code follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of task.

    Attributes:
        target: whether each record needs a target beside its text, may have one, or has none.
        language: whether its answers are text, by the model's own head.
        model_class: transformers' Auto class of the model; empty where a pooled head decides.
        holder_metric: what holders measure by a sum over their records; empty where none has a
            bound that means something (the errors of a regression).
        hub: the Hub's name of the task.
        does: what an adapter for it does, with {labels}, {low:g} and {high:g} to be filled in.
    """

    target: Literal["needed", "allowed", "none"]
    language: bool
    model_class: str
    holder_metric: str
    hub: str
    does: str


KINDS: Mapping[str, Kind] = {
    "classification": Kind(
        target="needed",
        language=False,
        model_class="",
        holder_metric="accuracy",
        hub="text-classification",
        does="sorts a text into: {labels}",
    ),
    "regression": Kind(
        target="needed",
        language=False,
        model_class="",
        holder_metric="",
        hub="text-classification",
        does="gives a text a number from {low:g} to {high:g}",
    ),
    "seq2seq": Kind(
        target="needed",
        language=True,
        model_class="AutoModelForSeq2SeqLM",
        holder_metric="perplexity",
        hub="text2text-generation",
        does="turns a text into another one",
    ),
    "causal": Kind(
        target="allowed",
        language=True,
        model_class="AutoModelForCausalLM",
        holder_metric="perplexity",
        hub="text-generation",
        does="goes on with a text",
    ),
    "masked": Kind(
        target="none",
        language=True,
        model_class="AutoModelForMaskedLM",
        holder_metric="perplexity",
        hub="fill-mask",
        does="fills in masked words",
    ),
    "spans": Kind(
        target="none",
        language=True,
        model_class="AutoModelForSeq2SeqLM",
        holder_metric="perplexity",
        hub="text2text-generation",
        does="fills in missing spans of a text",
    ),
}
