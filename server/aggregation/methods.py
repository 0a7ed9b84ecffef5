"""The methods: which factors of LoRA a round trains, and what becomes of them once averaged.

An adapter's change of a weight is the product B A (times a public constant). Averaging B and A
apart is not averaging the products, and with noise on both the product has noise times noise in it.

| method | trained | the mean of the products | under noise | source |
|---|---|---|---|---|
| lora | A and B | no | unsound: noise times noise | Hu et al. 2021, McMahan et al. 2017 |
| ffa | B | exactly | sound | Sun et al. 2024 |
| fedsvd | B; the server turns A | exactly | sound | Lee et al. 2025 |
| rolora | B and A in turn | exactly, in each round | sound | Chen et al. 2024 |
| hetlora | the first columns of B | exactly | sound | Cho et al. 2024 |
| flexlora | the first columns of B; the server turns A | exactly | sound | Bai et al. 2024 |
| fedsa | A and B, which stays | there is none | unsound: noise times noise | Guo et al. 2024 |

``hetlora`` and ``flexlora`` admit holders of different rank: ``ffa`` and ``fedsvd`` of which each
trains the first r components, the others at zero (``common.ranks``). Their papers train both
factors and average the holders' whole adapters, which costs what ``lora`` costs and, for FlexLoRA,
shrinks what few train. Here B alone is trained and changes are averaged, so that what a holder
does not train stays as it is, and the mean of the products' changes is exact. ``fedex`` and
``flora`` are in ``products``.

What is not as the seed made it goes down (``common.parcel``), the change of what is trained comes
up. Whatever is made of changes that are private already is post-processing. The head, where the
task has one, is trained and averaged in every round of every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...common.adapter import AdapterSchema
from ...common.errors import ConfideError
from ...common.leaving import PERSONAL, leaving
from ...common.tensors import Shapes, flatten, unflatten

_A, _B = "lora_A", "lora_B"


@dataclass(frozen=True)
class Settled:
    """An adapter written otherwise. ``turns`` (r, r) by name of B: B became B times it, and so must
    whatever the coordinator keeps in the coordinates of B (its momentum)."""

    adapter: Mapping[str, Tensor]
    turns: Mapping[str, Tensor]

    def turned(self, vector: Tensor, shapes: Shapes) -> Tensor:
        """A vector (M,) in the coordinates of the trained values, with each B times its turn."""
        tensors = unflatten(vector, shapes)
        turned = {
            name: (tensors[name].double() @ turn).float() for name, turn in self.turns.items()
        }
        return flatten(tensors | turned, shapes)


class Method(Protocol):
    """What differs between methods; everything else about a round is the same."""

    def named(self, number: int) -> str:
        """``aggregate.method`` as the holders of this round are told it."""
        ...

    def trained(self, schema: AdapterSchema, number: int) -> AdapterSchema:
        """The model's schema with what this round trains."""
        ...

    def settle(self, adapter: Mapping[str, Tensor]) -> Settled | None:
        """The averaged adapter as it goes down next; None: as it is."""
        ...


@dataclass(frozen=True)
class Same:
    """``lora``, ``ffa``, ``hetlora``: every round trains what the model's schema says."""

    name: str

    def named(self, number: int) -> str:
        return self.name

    def trained(self, schema: AdapterSchema, number: int) -> AdapterSchema:
        return schema

    def settle(self, adapter: Mapping[str, Tensor]) -> Settled | None:
        return None


@dataclass(frozen=True)
class FedSvd:
    """B is trained at the holders. When it is averaged the server writes each product B A with
    other factors: A's rows are orthonormal and point along the product's largest directions first,
    so that B's gradient, and with it the clip norm, is spent where the adapter already works. The
    first r components are the best of rank r then (Eckart and Young 1936): what ``flexlora`` gives
    a holder of rank r."""

    name: str = "fedsvd"

    def named(self, number: int) -> str:
        return self.name

    def trained(self, schema: AdapterSchema, number: int) -> AdapterSchema:
        return schema

    def settle(self, adapter: Mapping[str, Tensor]) -> Settled | None:
        settled, turns = dict(adapter), {}
        for name in adapter:
            if _A not in name:
                continue
            name_b = name.replace(_A, _B)
            found = orthonormal(adapter[name], adapter[name_b])
            settled[name], settled[name_b] = found.a.float(), found.b.float()
            turns[name_b] = found.turn
        return Settled(settled, turns)


@dataclass(frozen=True)
class RoLora:
    """Odd rounds train B, even rounds A, the other factor resting: B first, since A has no gradient
    while B is zero."""

    def named(self, number: int) -> str:
        return "ffa" if number % 2 else "ffb"

    def trained(self, schema: AdapterSchema, number: int) -> AdapterSchema:
        return _training(schema, _B if number % 2 else _A, resting=_A if number % 2 else _B)

    def settle(self, adapter: Mapping[str, Tensor]) -> Settled | None:
        return None


@dataclass(frozen=True)
class FedSa:
    """A and the head are averaged; B stays at the holders and at zero here, so that what the
    coordinator measures and writes is the head."""

    def named(self, number: int) -> str:
        return PERSONAL

    def trained(self, schema: AdapterSchema, number: int) -> AdapterSchema:
        return leaving(schema, PERSONAL)

    def settle(self, adapter: Mapping[str, Tensor]) -> Settled | None:
        return None


def method_of(name: str) -> Method:
    """The method that ``aggregate.method`` names."""
    if name in ("fedsvd", "flexlora"):
        return FedSvd(name)
    if name == PERSONAL:
        return FedSa()
    return RoLora() if name == "rolora" else Same(name)


def whole(schema: AdapterSchema, name: str) -> AdapterSchema:
    """The model's schema with everything that any round of a method trains."""
    return _training(schema, _A, resting="") if name == "rolora" else leaving(schema, name)


def _training(schema: AdapterSchema, factor: str, *, resting: str) -> AdapterSchema:
    kept = {name for name in schema.trained if not (resting and resting in name)}
    return replace(schema, trained=frozenset(kept | {n for n, _ in schema.shapes if factor in n}))


@dataclass(frozen=True)
class Factors:
    """``b`` (out, r) times ``a`` (r, in), float64, and the ``turn`` (r, r) that made ``b``."""

    a: Tensor
    b: Tensor
    turn: Tensor


def orthonormal(a: Tensor, b: Tensor) -> Factors:
    """Other factors of the product of ``b`` (out, r) and ``a`` (r, in): orthonormal rows of A,
    columns of B orthogonal and the longest first.

    The product is the same to the rounding of float64, also where it has a smaller rank than r or
    is zero. With A^T = Q R, and B R^T = U S W^T by SVD, they are A' = W^T Q^T and B' = B R^T W.

    Raises:
        ConfideError: ``aggregate.rank`` where r > in: so many rows cannot be orthonormal.
    """
    if a.dim() != 2 or a.shape[0] > a.shape[1]:
        raise ConfideError(
            "aggregate.rank",
            f"'fedsvd' and 'flexlora' cannot write a factor of shape {tuple(a.shape)} with"
            " orthonormal rows.",
            "Choose a lora.rank of at most the width of the layers.",
        )
    basis, triangle = torch.linalg.qr(a.double().t())  # (in, r), (r, r)
    mixed = b.double() @ triangle.t()
    turned = torch.linalg.svd(mixed, full_matrices=True).Vh.t()  # W (r, r)
    turn = triangle.t() @ turned
    return Factors(turned.t() @ basis.t(), b.double() @ turn, turn)
