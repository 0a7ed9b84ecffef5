"""What a method of aggregation is: the facts that everybody asks for, and what a round, a holder
and the outcome of a run ask of it.

The facts are plain values, so that commands which start without torch can read them. Whatever
computes imports torch where it does so. A method overrides what it does differently and inherits
the rest: everything that is trained leaves the holder, updates are combined by
``aggregate.robust`` and stepped along by ``aggregate.optimizer``, and the adapter goes down as it
then is.

Nothing here decides on privacy. Every method trains by the same private step over all that it
trains; what a method does with the changes afterwards is post-processing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from ..adapter.schema import AdapterSchema, Shapes
    from ..settings import Settings
    from .context import Context


@dataclass(frozen=True)
class Only:
    """The values of a setting that a method admits, and why no other.

    Attributes:
        key: of the setting.
        why: a sentence with {key}, {value!r} and {method!r} to be filled in.
        instead: what to do; by default to set one of ``values``.
    """

    key: str
    values: tuple[str | int, ...]
    why: str
    instead: str = ""


# Of every method that is about LoRA's two factors.
NO_HEAD = Only(
    "lora.method",
    ("lora",),
    "{key} = {value!r} trains no LoRA, but aggregate.method = {method!r}.",
    "Set aggregate.method = 'ffa', the default.",
)
# Of every method under which a holder has more than the coordinator's adapter.
NOT_ALL = Only(
    "round.holder-metric",
    ("",),
    "{key} = {value!r} measures the coordinator's adapter, which is not all that a holder has with"
    " aggregate.method = {method!r}.",
    "Leave round.holder-metric empty.",
)


@dataclass(frozen=True)
class Noise:
    """Whether training by a method under noise is sound, and why.

    ``what`` and ``instead`` are for ``confide doctor``: behind "aggregate.method = NAME", and what
    to do. A method that is refused says so in ``Method.only``, too, under ``privacy.trust``.
    """

    verdict: Literal["sound", "unsound", "refused"]
    why: str
    what: str = ""
    instead: str = ""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What a round has to combine.

    Attributes:
        schema: of the adapter, with what the changes are of as ``trained``.
        adapter: (N,), as it went down.
        changes: (M,) each, by holder.
        merged: what was added to the frozen weights so far, (P,).
        step: how far to go along a change.
        seed: public, and another one in each round.
    """

    schema: AdapterSchema
    adapter: Tensor
    changes: Mapping[str, Tensor]
    merged: Tensor
    step: float
    seed: str


@dataclass(frozen=True)
class Moved:
    """After a round: the adapter (N,), and what was added to the frozen weights (P,)."""

    adapter: Tensor
    merged: Tensor


@dataclass(frozen=True)
class Rewritten:
    """An adapter in other factors. ``turns`` (r, r) by name of B: B became B times it, and so must
    whatever the coordinator keeps in the coordinates of B (its momentum)."""

    adapter: Mapping[str, Tensor]
    turns: Mapping[str, Tensor] = field(default_factory=dict)

    def turned(self, vector: Tensor, shapes: Shapes) -> Tensor:
        """A vector (M,) in the coordinates of the trained values, with each B times its turn."""
        from ..adapter.schema import flatten, unflatten

        tensors = unflatten(vector, shapes)
        turned = {
            name: (tensors[name].double() @ turn).float() for name, turn in self.turns.items()
        }
        return flatten(tensors | turned, shapes)


class Store(Protocol):
    """Where a holder keeps what does not leave it, for one run."""

    def load(self, schema: AdapterSchema) -> Mapping[str, Tensor]:
        """The adapter that was kept last, by name; empty before the first."""
        ...

    def save(self, adapter: Mapping[str, Tensor]) -> None:
        """Keep the adapter, durably."""
        ...


class Method:
    """A method of aggregation.

    Attributes:
        name: the value of ``aggregate.method``.
        paper: where it is from.
        trains: the factors of LoRA that a run trains, "A", "B" or "AB"; the head is always trained.
        stays: those of them that never leave the holder.
        ranks: whether a holder may train a smaller rank than the run's.
        merges: whether it adds to the frozen weights.
        exact: whether the mean of the holders' updates is the mean of their products.
        noise: whether it is sound under noise.
        only: the settings of which it does not admit every value, in the order of the checks.
        at_one_rank: the method that this one is, bit for bit, where all holders train one rank.
        compared: whether it has a line of its own in ``confide bench utility``.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    trains: ClassVar[str]
    noise: ClassVar[Noise]
    exact: ClassVar[bool] = True
    stays: ClassVar[str] = ""
    ranks: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    only: ClassVar[tuple[Only, ...]] = ()
    at_one_rank: ClassVar[str] = ""
    compared: ClassVar[bool] = True

    @property
    def summed(self) -> bool:
        """Whether a round needs no more of the updates than their sum, all of one shape."""
        return not (self.ranks or self.merges or self.stays)

    # --- settings ---

    def objections(self, settings: Settings) -> Iterator[tuple[str, str]]:
        """What the method does not admit of the settings: each a message, and what to do."""
        flat = settings.to_flat()
        for only in self.only:
            value, admitted = flat[only.key], " or ".join(map(repr, only.values))
            if value not in only.values:
                why = only.why.format(key=only.key, value=value, method=self.name)
                yield why, only.instead or f"Set {only.key} = {admitted}."

    def needs(self) -> dict[str, str | int]:
        """The settings of which it admits one value alone, but for privacy and the adapter's."""
        fixed = {only.key: only.values[0] for only in self.only if len(only.values) == 1}
        return {k: v for k, v in fixed.items() if k in ("aggregate.optimizer", "round.mode")}

    # --- a round ---

    def told(self, number: int) -> str:
        """``aggregate.method`` as the holders of round ``number`` (from 1) are told it."""
        return self.name

    def factors(self, number: int) -> str:
        """Which of ``trains`` that round trains."""
        return self.trains

    def sent(self, schema: AdapterSchema, number: int = 1) -> AdapterSchema:
        """The schema of an update: the model's, whose ``trained`` are the tensors that leave. Both
        sides make it by this one rule, and its digest is what a task names."""
        if not self.stays:
            return schema
        leaving = {name for name in schema.trained if not stays(name, self.stays)}
        return replace(schema, trained=frozenset(leaving))

    def moved(self, schema: AdapterSchema) -> AdapterSchema:
        """The model's schema with everything that the updates of any round move."""
        return self.sent(schema)

    def narrower(self, schema: AdapterSchema) -> Mapping[str, AdapterSchema]:
        """By digest, the schemas that a holder may answer ``schema`` with instead."""
        if not self.ranks:
            return {}
        from .ranks import at_every_rank

        return at_every_rank(schema)

    def combine(self, arrived: Arrived) -> Moved | None:
        """What becomes of adapter and frozen weights; None: they are combined by
        ``aggregate.robust`` and moved by ``aggregate.optimizer``."""
        return None

    def rewrite(self, adapter: Mapping[str, Tensor]) -> Rewritten | None:
        """The moved adapter as it goes down next, with the same products; None: as it is."""
        return None

    def added(self, schema: AdapterSchema) -> Shapes:
        """What a run adds to the frozen weights: each layer's path, and the shape (out, in)."""
        return ()

    # --- a holder ---

    def context(
        self,
        model: PeftModel,
        schema: AdapterSchema,
        adapter: Tensor,
        *,
        most_rank: int,
        merged: bytes,
        store: Store,
    ) -> Context:
        """What a holder trains a round with, checked before anything is charged.

        Args:
            adapter: (N,), as it came down.
            most_rank: of this holder's policy.
            merged: what the task says was added to the frozen weights.
            store: where what stays at the holder is kept; it is not touched where nothing stays.

        Raises:
            ConfideError: ``task.merged`` for weights that the method has no use for; ``wire.size``
                or ``adapter.not-finite`` for such as are none; and what ``store`` raises.
        """
        from .context import context_of

        return context_of(self, model, schema, adapter, most_rank, merged, store)

    # --- the outcome ---

    def check_model(self, schema: AdapterSchema) -> None:
        """Refuse a model that the method cannot end with, before anything is trained."""

    def outcome(
        self, adapter: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float
    ) -> dict[str, Tensor] | None:
        """The adapter of the base model as it was, of scale one, that a run leaves; None: the
        adapter as it is. ``scale`` is LoRA's, alpha over the rank."""
        return None

    def as_saved(self, settings: Settings, adapter: Mapping[str, Tensor]) -> Settings:
        """The settings with rank and scale of the ``adapter`` that was saved."""
        return settings


def is_factor(tensor: str, factors: str) -> bool:
    """Whether a tensor is one of LoRA's ``factors`` ("A", "B" or "AB") of a linear layer. Those of
    an embedding are trained whatever the method: there A starts at zero, and not B."""
    return any(f"lora_{factor}" in tensor for factor in factors)


def training(schema: AdapterSchema, *, also: str = "", resting: str = "") -> AdapterSchema:
    """The schema with the factors ``also`` trained, and ``resting`` not."""
    trained = {name for name in schema.trained if not is_factor(name, resting)}
    trained |= {name for name, _ in schema.shapes if is_factor(name, also)}
    return replace(schema, trained=frozenset(trained))


def stays(tensor: str, factors: str) -> bool:
    """Whether a tensor is one of the factors that never leave a holder, an embedding's too."""
    return is_factor(tensor, factors) or any(f"lora_embedding_{f}" in tensor for f in factors)
