"""FFA-LoRA: A stays as it was drawn, B is trained (Sun et al. 2024, "Improving LoRA in
privacy-preserving federated learning").

With one A at all holders the mean of B is the mean of the products, and noise on B enters the
product once.
"""

from __future__ import annotations

from .method import Method, Noise

ONCE = Noise("sound", "One factor is trained, so that noise enters the product once.")


class Ffa(Method):
    """B and the head are averaged."""

    name = "ffa"
    paper = "Sun et al. 2024, arXiv:2403.12313"
    trains = "B"
    noise = ONCE
