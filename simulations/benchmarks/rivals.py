"""Private steps by libraries that confide does not depend on: used where they are installed.

fastDP (Bu et al. 2023, book-keeping) and private-transformers (Li et al. 2022, ghost clipping)
are on no package index; their repositories are awslabs/fast-differential-privacy and
lxuechen/private-transformers. Both replace forwards of Hugging Face models by ones of older
releases, for the sake of trained position embeddings. Nothing here trains those, and with
transformers 5 the replacements fail, so they are left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

import torch

from .workload import Workload

# Their accountants ask for it; no figure of this benchmark depends on it.
_EXAMPLES = 10_000
_RATE = 1e-4


def fastdp(work: Workload, clip: float, noise: float) -> Callable[[], None]:
    """One backward pass that keeps layer inputs and output gradients until the norms are known."""
    optimizer = torch.optim.SGD(work.trained(), lr=_RATE)
    own = {"clipping_fn": "Abadi", "clipping_mode": "MixOpt", "loss_reduction": "mean"}
    _attach("fastDP", optimizer, work, clip, noise, **own)

    def step() -> None:
        optimizer.zero_grad()
        work.losses().mean().backward()
        optimizer.step()

    return step


def private_transformers(work: Workload, clip: float, noise: float) -> Callable[[], None]:
    """Ghost clipping by two backward passes, both inside the optimizer's step."""
    optimizer: Any = torch.optim.SGD(work.trained(), lr=_RATE)
    own = {"clipping_mode": "ghost", "record_snr": False}
    _attach("private_transformers", optimizer, work, clip, noise, **own)

    def step() -> None:
        optimizer.zero_grad()
        optimizer.step(loss=work.losses())

    return step


def _attach(
    name: str, optimizer: Any, work: Workload, clip: float, noise: float, **own: Any
) -> None:
    """Both engines descend from one and are made alike, but for their ``own`` settings."""
    with _forwards_kept(name) as library:
        engine = library.PrivacyEngine(
            work.model,
            batch_size=work.size,
            sample_size=_EXAMPLES,
            epochs=1,
            noise_multiplier=noise,
            max_grad_norm=clip,
            **own,
        )
        engine.attach(optimizer)


@contextmanager
def _forwards_kept(name: str) -> Iterator[Any]:
    """The library, which meanwhile replaces no forward and prints nothing."""
    library: Any = import_module(name)
    support: Any = import_module(f"{name}.transformers_support")
    swap = support.forward_swapper
    support.forward_swapper = lambda module: module
    try:
        with redirect_stdout(io.StringIO()):
            yield library
    finally:
        support.forward_swapper = swap
