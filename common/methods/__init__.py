"""The methods of aggregation, by the values of ``aggregate.method``: one module for each, and one
line here (docs/how-it-works.md says how to add one).

An adapter's change of a weight is the product B A (times a public constant). Averaging B and A
apart is not averaging the products, and with noise on both the product has noise times noise in it.
What a method trains, sends and admits, and whether noise on it is sound, are attributes of its
class (``method.Method``); reading them needs no torch. docs/aggregation.md compares the methods.
"""

from __future__ import annotations

from .fedex import FedEx
from .fedsa import FedSa
from .fedsvd import FedSvd
from .ffa import Ffa
from .flexlora import FlexLora
from .flora import Flora
from .hetlora import HetLora
from .lora import Lora
from .method import Arrived, Method, Moved, Noise, Only, Rewritten, Store
from .rolora import Ffb, RoLora

__all__ = [
    "DEFAULT",
    "METHODS",
    "Arrived",
    "Method",
    "Moved",
    "Noise",
    "Only",
    "Rewritten",
    "Store",
    "method_of",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Lora(),
        Ffa(),
        Ffb(),
        FedSvd(),
        RoLora(),
        HetLora(),
        FlexLora(),
        FedEx(),
        Flora(),
        FedSa(),
    )
}
DEFAULT = Ffa.name


def method_of(name: str) -> Method:
    """The method that ``aggregate.method`` names."""
    return METHODS[name]
