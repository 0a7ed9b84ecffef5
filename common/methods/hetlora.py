"""HetLoRA: holders of different rank (Cho et al. 2024, "Heterogeneous LoRA for federated
fine-tuning of on-device foundation models").

It is ``ffa`` of which each holder trains the first r components (``ranks``), the others at zero.
The paper trains both factors and averages the holders' whole adapters, which costs what ``lora``
costs. Here B alone is trained and changes are averaged, so that what a holder does not train stays
as it is, and the mean of the products' changes is exact.
"""

from __future__ import annotations

from .ffa import ONCE, Ffa
from .method import NO_HEAD, Method, Only

# A rule that compares updates value by value.
OF_RANKS = Only(
    "aggregate.robust",
    ("mean",),
    "{key} = {value!r} takes the zeros of what a smaller rank does not train for a vote with"
    " aggregate.method = {method!r}.",
    "Set aggregate.robust = 'mean', or another method, such as 'fedsvd'.",
)


class HetLora(Method):
    """The first columns of B and the head are averaged."""

    name = "hetlora"
    paper = 'Cho et al. 2024, "Heterogeneous LoRA", arXiv:2401.06432'
    trains = "B"
    ranks = True
    noise = ONCE
    only = (OF_RANKS, NO_HEAD)
    at_one_rank = Ffa.name
