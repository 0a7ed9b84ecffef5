"""RoLoRA: the factors in turn (Chen et al. 2024, "Robust federated finetuning of LoRA").

Odd rounds train B, even rounds A: B first, since A has no gradient while B is zero. In each round
one factor is the same everywhere, so that the mean of the products is exact and noise enters it
once. Holders are asked for ``ffa`` and ``ffb``, and need no memory of what came before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ffa import ONCE, Ffa
from .method import NO_HEAD, Method, Only, training

if TYPE_CHECKING:
    from ..adapter.schema import AdapterSchema


class Ffb(Method):
    """A and the head are averaged: an even round of ``rolora``. As the method of a whole run it
    learns nothing but the head, since B starts at zero."""

    name = "ffb"
    paper = "Chen et al. 2024"
    trains = "A"
    noise = ONCE
    compared = False


class RoLora(Method):
    """B and A are trained in turn, the head in every round."""

    name = "rolora"
    paper = 'Chen et al. 2024, "Robust federated finetuning of LoRA"'
    trains = "AB"
    noise = ONCE
    only = (
        Only(
            "aggregate.optimizer",
            ("none",),
            "{key} = {value!r} moves the factor that rests with aggregate.method = {method!r}.",
        ),
        NO_HEAD,
    )

    def told(self, number: int) -> str:
        return Ffa.name if number % 2 else Ffb.name

    def factors(self, number: int) -> str:
        return "B" if number % 2 else "A"

    def sent(self, schema: AdapterSchema, number: int = 1) -> AdapterSchema:
        resting = "A" if number % 2 else "B"
        return training(schema, also=self.factors(number), resting=resting)

    def moved(self, schema: AdapterSchema) -> AdapterSchema:
        return training(schema, also=self.trains)
