"""LoRA's two factors trained and averaged apart (Hu et al. 2021; McMahan et al. 2017).

The mean of the factors is not the mean of the products, and with noise on both the product has
noise times noise in it.
"""

from __future__ import annotations

from .method import Method, Noise

BOTH = "trains both factors of LoRA under noise."
TIMES = "The adapter is the product of B and A: the noise of one multiplies that of the other, and "
TWICE = " Twice the values share the same clip norm."
INSTEAD = "Set aggregate.method = 'ffa', which trains B alone, or lora.method = 'head'."


class Lora(Method):
    """A, B and the head are averaged, each by itself."""

    name = "lora"
    paper = "Hu et al. 2021"
    trains = "AB"
    exact = False
    noise = Noise(
        "unsound",
        f"{TIMES}the mean of the holders' products is not the product of their means (Sun et al."
        f" 2024).{TWICE}",
        BOTH,
        INSTEAD,
    )
