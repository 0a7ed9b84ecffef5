"""FedSA-LoRA: A is shared, B stays at its holder (Guo et al. 2024, "Selective aggregation for
low-rank adaptation in federated learning").

Both are trained, by the one private step over all that is trained, clipped together and with noise
on both: what leaves, the change of A and of the head, is a part of what that step may publish, so
that its promise is the plan's. B could be published, too; that it stays makes the adapter personal,
not private. The noise of B multiplies that of A all the same, now in each holder's product and
without an average over the holders' B: few trained values and a large epsilon, or it is mostly
noise (``confide doctor`` says so). At the coordinator B stays at zero, so that what it measures and
writes is the head.
"""

from __future__ import annotations

from .lora import BOTH, INSTEAD, TIMES, TWICE
from .method import NO_HEAD, NOT_ALL, Method, Noise, Only


class FedSa(Method):
    """A and the head are averaged."""

    name = "fedsa"
    paper = 'Guo et al. 2024, "FedSA-LoRA", arXiv:2410.01463'
    trains = "AB"
    stays = "B"
    exact = False
    noise = Noise(
        "unsound",
        f"{TIMES}each holder's B, which no average makes better, has all of its noise.{TWICE}",
        BOTH,
        INSTEAD,
    )
    only = (
        Only(
            "round.mode",
            ("steps",),
            "{key} = {value!r} steps at the coordinator, but with aggregate.method = {method!r} B"
            " never gets there.",
        ),
        NOT_ALL,
        NO_HEAD,
    )
