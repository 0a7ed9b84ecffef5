"""FedSVD: B is trained, and the server turns A (Lee et al. 2025, "FedSVD").

When B is averaged the server writes each product B A with other factors: A's rows are orthonormal
and point along the product's largest directions first, so that B's gradient, and with it the clip
norm, is spent where the adapter already works. What is turned is private already, so that turning
is post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import ConfideError
from .ffa import ONCE
from .method import NO_HEAD, Method, Only, Rewritten, is_factor

if TYPE_CHECKING:
    from torch import Tensor

# An adaptive step scales each value by itself, which no turn can follow.
TURNED = Only(
    "aggregate.optimizer",
    ("none", "momentum"),
    "{key} = {value!r} cannot follow its turns with aggregate.method = {method!r}.",
)


class FedSvd(Method):
    """B and the head are averaged, and the products written anew."""

    name = "fedsvd"
    paper = 'Lee et al. 2025, "FedSVD"'
    trains = "B"
    noise = ONCE
    only: ClassVar[tuple[Only, ...]] = (TURNED, NO_HEAD)

    def rewrite(self, adapter: Mapping[str, Tensor]) -> Rewritten | None:
        written, turns = dict(adapter), {}
        for name in adapter:
            if not is_factor(name, "A"):
                continue
            name_b = name.replace("lora_A", "lora_B")
            found = orthonormal(adapter[name], adapter[name_b])
            written[name], written[name_b] = found.a.float(), found.b.float()
            turns[name_b] = found.turn
        return Rewritten(written, turns)


@dataclass(frozen=True)
class Factors:
    """``b`` (out, r) times ``a`` (r, in), float64, and the ``turn`` (r, r) that made ``b``."""

    a: Tensor
    b: Tensor
    turn: Tensor


def orthonormal(a: Tensor, b: Tensor) -> Factors:
    """Other factors of the product of ``b`` (out, r) and ``a`` (r, in): orthonormal rows of A,
    columns of B orthogonal and the longest first. The first r components are the best of rank r
    (Eckart and Young 1936).

    The product is the same to the rounding of float64, also where it has a smaller rank than r or
    is zero. With A^T = Q R, and B R^T = U S W^T by SVD, they are A' = W^T Q^T and B' = B R^T W.

    Raises:
        ConfideError: ``aggregate.rank`` where r > in: so many rows cannot be orthonormal.
    """
    import torch

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
