"""The engines that compute a private step: each is a function that makes a step of a workload.

A step zeroes the gradients, runs forward and backward, and changes the weights. It leaves the
gradient that it used: for a private step the noisy clipped sum divided by the batch size. So with
``noise = 0`` every engine can be compared with the others (``step.check``).

Two libraries that confide does not depend on are used where they are installed. fastDP (Bu et al.
2023, book-keeping) and private-transformers (Li et al. 2022, ghost clipping) are on no package
index; their repositories are awslabs/fast-differential-privacy and lxuechen/private-transformers.
Both replace forwards of Hugging Face models by ones of older releases, for the sake of trained
position embeddings. Nothing here trains those, and with transformers 5 the replacements fail, so
they are left out.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

from ...client.training.per_example import PerExample
from ...client.training.private_step import PrivateOptimizer
from ...common.privacy.noise import SecureGenerator
from ...common.privacy.plan import Plan, Trust
from .workload import Workload

# Their accountants ask for it; no figure of this benchmark depends on it.
_EXAMPLES = 10_000


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


Step = Callable[[], None]
# What is timed: neither changes the time.
CLIP, NOISE = 1.0, 1.0
# Small, so that no number of repetitions takes the weights anywhere.
_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Engine:
    """``make`` takes a workload, the clip norm and the noise multiplier; ``needs`` is a package
    that confide does not depend on."""

    name: str
    make: Callable[[Workload, float, float], Step]
    private: bool = True
    needs: str = ""

    @property
    def installed(self) -> bool:
        return not self.needs or find_spec(self.needs) is not None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warning, true and harmless, that Opacus's hooks make torch give for every first
    layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield


def _plain(work: Workload, clip: float, noise: float) -> Step:
    """PEFT without privacy: the mean loss; nothing is clipped, no noise is drawn."""
    del clip, noise
    optimizer = _sgd(work)

    def step() -> None:
        optimizer.zero_grad()
        work.losses().mean().backward()
        optimizer.step()

    return step


def _confide(work: Workload, clip: float, noise: float) -> Step:
    """What confide's trainer does, with noise from its secure source."""
    plan = Plan(
        trust=Trust.LOCAL if noise else Trust.OFF,
        clip_norm=clip,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps_per_round=1,
        max_rounds=1,
        delta=1e-5,
    )
    PerExample(work.model)
    optimizer = PrivateOptimizer(_sgd(work), plan, work.size, SecureGenerator())

    def step() -> None:
        optimizer.zero_grad()
        work.losses().sum().backward()
        optimizer.step()

    return step


def _hooks(work: Workload, clip: float, noise: float, *, functorch: bool = False) -> Step:
    """Opacus's grad samplers, or (``functorch``) vmap over each layer's own gradient."""
    wrapped = GradSampleModule(
        work.model, batch_first=True, loss_reduction="sum", force_functorch=functorch
    )
    optimizer = DPOptimizer(
        _sgd(work), noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=work.size
    )

    def step() -> None:
        optimizer.zero_grad()
        work.losses(wrapped).sum().backward()
        optimizer.step()

    return step


def _functorch(work: Workload, clip: float, noise: float) -> Step:
    return _hooks(work, clip, noise, functorch=True)


def _ghost(work: Workload, clip: float, noise: float) -> Step:
    """Opacus's ghost clipping: a backward pass for the norms, a second for the clipped sum."""
    wrapped = GradSampleModuleFastGradientClipping(
        work.model, batch_first=True, loss_reduction="mean", max_grad_norm=clip
    )
    optimizer = DPOptimizerFastGradientClipping(
        _sgd(work), noise_multiplier=noise, max_grad_norm=clip, expected_batch_size=work.size
    )

    def losses() -> torch.Tensor:
        return work.losses(wrapped)

    criterion = DPLossFastGradientClipping(wrapped, optimizer, losses)

    def step() -> None:
        optimizer.zero_grad()
        criterion().backward()
        optimizer.step()

    return step


def _sgd(work: Workload) -> torch.optim.Optimizer:
    return torch.optim.SGD(work.trained(), lr=_RATE)


PLAIN = Engine(name="plain", make=_plain, private=False)
CONFIDE = Engine(name="confide", make=_confide)
_ENGINES = (
    PLAIN,
    CONFIDE,
    Engine(name="opacus-hooks", make=_hooks),
    Engine(name="opacus-functorch", make=_functorch),
    Engine(name="opacus-ghost", make=_ghost),
    Engine(name="fastdp", make=fastdp, needs="fastDP"),
    Engine(
        name="private-transformers",
        make=private_transformers,
        needs="private_transformers",
    ),
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in _ENGINES}
