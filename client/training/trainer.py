"""Local training: Poisson batches of private steps on a warm model.

The number of steps is the plan's, whatever the batches turn out to be; nothing about a batch (its
loss, its size, its norms) is returned. Source: Abadi et al. 2016 (DP-SGD); for persons, each with
a bounded number of records and clipped as a whole, McMahan et al. 2018.

Batches are cut to what memory holds. How much an example needs while its gradient is made is
measured on one made-up example of the greatest length, from what autograd keeps of it: no text,
no privacy cost, and nothing to maintain for each kind of model. Backward holds a few more
tensors of the largest kept size at a time (a language model's logits), which are added. What a
shorter example needs is at most its share of that by length, since nothing in a model grows
slower than its length but the gradient itself, which is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.adapter.schema import (
    adapter_parameters,
    flatten,
    get_adapter,
    set_adapter,
    unflatten,
)
from ...common.errors import ConfideError
from ...common.models.batches import Draws, EncodedText, Footprint, Piece, Room, forward
from ...common.models.loading import LoadedModel
from ...common.privacy.noise import SecureGenerator
from ...common.privacy.plan import Plan, Trust
from ...common.settings import Settings
from ...common.tasks.tokens import vocabulary
from ..guard.scrub import tried
from .per_example import PerExample
from .private_step import PrivateOptimizer, pull_back, trained_parameters
from .self_check import check_per_example, longest_pair

_IN_BACKWARD = 3  # tensors of the largest size, beyond those that were kept; two were seen


def measure(engine: PerExample, loaded: LoadedModel) -> Footprint:
    """Bytes for each example and for each of its tokens."""
    longest, task = loaded.max_length, loaded.task
    generator = torch.Generator().manual_seed(0)  # of made-up text
    made_up = task.made_up([longest], vocabulary(loaded), generator, loaded)
    batch = EncodedText(made_up, loaded).together([0])
    own = {_place(t) for t in (*loaded.model.parameters(), *loaded.model.buffers())}
    kept: dict[int, int] = {}
    # Held until the pass is over, or their places would be used again.
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    engine.train()
    with torch.autograd.graph.saved_tensors_hooks(note, _as_it_is):
        task.losses(forward(loaded, task, batch), batch.targets).sum()
    engine.forget()
    largest = max(kept.values(), default=0)
    return Footprint(
        example=sum(p.numel() * p.element_size() for p in engine.trained),
        token=(sum(kept.values()) + _IN_BACKWARD * largest) / longest,
    )


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _as_it_is(tensor: Any) -> Any:
    return tensor


_MIB = 2**20
# What a model raises that cannot be computed as it is asked to be.
_OF_MODELS = (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, IndexError)


@dataclass(kw_only=True)
class _Prepared:
    """A model's per-example gradients, what an example of it takes of the memory, and up to which
    length texts were tried beside each other (-1: not checked yet)."""

    engine: PerExample
    footprint: Footprint
    pair: int = -1

    def room(self, settings: Settings) -> Room:
        """How much goes into a physical batch."""
        return Room(memory=settings.train.memory * _MIB, footprint=self.footprint)


class Trainer:
    """A model with per-example gradients; its layers keep them for every task of the process.

    Attributes:
        unusable: how many units failed in a step; for the administrator alone.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.unusable = 0

    def prepare(self, settings: Settings) -> None:
        """Check the model on made-up examples, once, and that one example fits into the memory;
        what is wrong shows before anything is charged.

        Raises:
            ConfideError: ``train.self-check``, ``train.no-gradient``, ``train.precision``,
                ``train.unsupported-layer``, ``train.batch-shape`` or ``train.memory``.
        """
        with _named(self._loaded):
            footprint = _attached(self._loaded).footprint
        # By the greatest length allowed, not by the text's own: whether a task is refused must
        # not tell how long a holder's records are.
        longest = self._loaded.max_length
        needed = math.ceil(footprint.of(1, longest) / _MIB)
        if needed > settings.train.memory:
            raise ConfideError(
                "train.memory",
                f"A record of {longest} tokens needs {needed} MiB, but train.memory ="
                f" {settings.train.memory}.",
                f"Choose {needed} or more, or a smaller train.max-length.",
            )
        with _named(self._loaded):
            _checked(self._loaded, settings)

    def train(
        self,
        adapter: Tensor,
        text: EncodedText,
        settings: Settings,
        plan: Plan,
        generator: SecureGenerator,
        *,
        units: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Train from ``adapter`` (all values, (N,)) and return the change of the trained part (M,).

        The plan must have been charged before. With ``round.mode = gradient`` the change is minus
        the private gradient; otherwise it is the difference after the local steps. For a secure
        sum it is minus the sum of clipped gradients with this holder's share of noise, in float64
        and undivided, since nothing may round it before the ring does. Whatever
        happens, nothing of the text stays on the model. ``units`` holds the records of each unit
        of privacy, none of them for one of which nothing can be used; None: each record is one.
        """
        chosen = units if units is not None else [[i] for i in range(len(text))]
        ready = _checked(self._loaded, settings)
        try:
            return self._train(adapter, text, settings, plan, generator, chosen, ready)
        finally:
            ready.engine.forget()
            self._loaded.model.eval()

    def _train(
        self,
        adapter: Tensor,
        text: EncodedText,
        settings: Settings,
        plan: Plan,
        generator: SecureGenerator,
        units: Sequence[Sequence[int]],
        ready: _Prepared,
    ) -> Tensor:
        ready.engine.forget()
        ready.engine.train()
        schema = self._loaded.schema
        set_adapter(self._loaded.model, unflatten(adapter, schema.shapes))
        before = flatten(get_adapter(self._loaded.model), schema.trained_shapes)
        optimizer = PrivateOptimizer(
            self._local_optimizer(settings), plan, settings.train.batch, generator
        )
        if settings.train.proximal:
            optimizer.attach_step_hook(pull_back(optimizer, settings.train.proximal))
        most = settings.privacy.records_per_person
        spec = settings.task
        for _ in range(plan.steps_per_round):
            drawn: Sequence[Sequence[int]]
            drawn = [_bounded(units[u], most, generator) for u in plan.draw(len(units), generator)]
            drawn = [unit for unit in drawn if unit]  # of the others nothing can be used
            draws = None if self._loaded.task.fixed else draws_from(generator, len(text))
            if spec.rates:
                coins = generator.uniform(sum(len(unit) for unit in drawn))
                drawn = text.thinned(drawn, spec.rates, coins.tolist())
            drawn = [[i for i in unit for _ in range(spec.copies)] for unit in drawn]
            self._step(optimizer, ready, text, drawn, settings, draws)
        after = flatten(get_adapter(self._loaded.model), schema.trained_shapes)
        if plan.trust is not Trust.OFF:
            sizes = [math.prod(shape) for _, shape in schema.trained_shapes]
            for old, new in zip(before.split(sizes), after.split(sizes), strict=True):
                _check_moved(old, new)
        if plan.trust is Trust.DISTRIBUTED:
            live = adapter_parameters(self._loaded.model)
            sums = [optimizer.released[live[name]].cpu() for name, _ in schema.trained_shapes]
            return -torch.cat([one.reshape(-1) for one in sums])
        return after - before

    def _local_optimizer(self, settings: Settings) -> torch.optim.Optimizer:
        parameters = trained_parameters(self._loaded.model)
        if settings.round.mode == "gradient":
            return torch.optim.SGD(parameters, lr=1.0)
        train = settings.train
        if train.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=train.lr)
        if train.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
        return torch.optim.SGD(parameters, lr=train.lr)

    def _step(
        self,
        optimizer: PrivateOptimizer,
        ready: _Prepared,
        text: EncodedText,
        drawn: Sequence[Sequence[int]],
        settings: Settings,
        draws: Draws | None,
    ) -> None:
        """One private step on the units drawn. Where together they fail they are taken one by one:
        a unit that fails by itself contributes zero, and the others what they would have, so that
        no record decides what becomes of another."""
        room = ready.room(settings)

        def add(units: Sequence[Sequence[int]]) -> bool:
            return self._add(optimizer, ready, text.pieces(units, room, draws))

        def added(units: Sequence[Sequence[int]]) -> bool:
            summed = optimizer.summed()
            if tried(lambda: add(units)):
                return True
            ready.engine.forget()
            optimizer.go_back(summed)
            return False

        optimizer.zero_grad(set_to_none=True)
        if settings.privacy.trust == "off":
            add(drawn)
        elif not added(drawn):
            failed = sum(not added([unit]) for unit in drawn)
            self.unusable = max(self.unusable, failed)
        optimizer.finish()  # on what was added, with the noise

    def _add(self, optimizer: PrivateOptimizer, ready: _Prepared, pieces: Iterable[Piece]) -> bool:
        """Add the clipped gradients of whole units to the sum of the step; True once it is done."""
        task = self._loaded.task
        for piece in pieces:
            logits = forward(self._loaded, task, piece.batch)
            # A sum: each example's own gradient, not scaled by the others' number.
            task.losses(logits, piece.batch.targets).sum().backward()
            ready.engine.check()
            if not piece.whole or piece.sizes.max() > 1:
                optimizer.fold(piece.units, piece.sizes, whole=piece.whole)
            if piece.whole:
                optimizer.add()
            optimizer.zero_grad(set_to_none=True)
        return True


def _attached(loaded: LoadedModel) -> _Prepared:
    """Made and measured once; kept with the model, so that it goes when the model goes."""
    known: _Prepared | None = vars(loaded.model).get("_prepared")
    if known is not None:
        return known
    engine = PerExample(loaded.model)
    try:
        ready = _Prepared(engine=engine, footprint=measure(engine, loaded))
    except BaseException:
        engine.remove_hooks()
        raise
    finally:
        loaded.model.eval()
    vars(loaded.model)["_prepared"] = ready
    return ready


@contextmanager
def _named(loaded: LoadedModel) -> Iterator[None]:
    """Name the model that failed on made-up examples, and the failure: no text is in use yet."""
    try:
        yield
    except _OF_MODELS as e:
        if type(e) not in _OF_MODELS:  # of a tokenizer or a parser, which may quote what it reads
            raise
        reason = " ".join(str(e).split())
        raise ConfideError(
            "train.self-check",
            f"A model of type {loaded.model.config.model_type!r:.100} fails on made-up examples"
            f" ({type(e).__name__}: {reason:.200}).",
            "Choose other lora.targets, another task.pooling or another base model;"
            " docs/models.md lists what is known to be exact.",
        ) from None


def _checked(loaded: LoadedModel, settings: Settings) -> _Prepared:
    """The same, after the self-check, which is made again where more memory lets longer texts lie
    beside each other."""
    ready = _attached(loaded)
    room = ready.room(settings)
    pair = longest_pair(loaded.max_length, room)
    if pair > ready.pair:
        try:
            check_per_example(ready.engine, loaded, room)
            ready.pair = pair
        except BaseException:
            ready.engine.remove_hooks()
            vars(loaded.model).pop("_prepared", None)
            raise
        finally:
            loaded.model.eval()
    return ready


def _bounded(records: Sequence[int], most: int, generator: SecureGenerator) -> Sequence[int]:
    """At most so many records of a unit, chosen uniformly."""
    if len(records) <= most:
        return records
    return [records[i] for i in generator.subset(len(records), most)]


def draws_from(generator: SecureGenerator, count: int) -> Draws:
    """For each of ``count`` records numbers of its own (what is masked), from bits that neither the
    noise nor another record sees: the sum then changes by this record's gradient alone, whatever
    else is drawn."""
    seeds = (generator.uniform(count) * 2**53).astype(int).tolist()
    own: dict[int, torch.Generator] = {}

    def of(place: int) -> torch.Generator:
        if place not in own:
            own[place] = torch.Generator().manual_seed(seeds[place])
        return own[place]

    return of


def _check_moved(before: Tensor, after: Tensor) -> None:
    """Noise moves every trained tensor; one that stands still was never reached (Opacus #820)."""
    if torch.equal(before, after):
        raise ConfideError(
            "train.no-gradient",
            "A trained tensor did not change in a private step.",
            "The model's adapters are not reached by the gradient; report the model's name.",
        )
