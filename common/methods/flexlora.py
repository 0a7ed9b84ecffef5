"""FlexLoRA: holders of different rank, and the server turns A (Bai et al. 2024, "Federated
fine-tuning of large language models under heterogeneous tasks and client resources").

It is ``fedsvd`` of which each holder trains the first r components, which an SVD has put in order:
they are the best that rank r can hold. The paper's average of whole adapters shrinks what few
train; see ``hetlora``.
"""

from __future__ import annotations

from .fedsvd import TURNED, FedSvd
from .hetlora import OF_RANKS
from .method import NO_HEAD


class FlexLora(FedSvd):
    """The first columns of B and the head are averaged, and the products written anew."""

    name = "flexlora"
    paper = "Bai et al. 2024, arXiv:2402.11505"
    ranks = True
    only = (TURNED, OF_RANKS, NO_HEAD)
    at_one_rank = FedSvd.name
