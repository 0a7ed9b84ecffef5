"""The public settings of a run: frozen dataclasses and the one way from flat keys to them.

Everything here is chosen by the coordinator and known to everybody; no private value is ever
a setting. ``from_flat`` is the only parser: it refuses unknown keys, wrong types, values out of
range and combinations that make no sense, each with name, value, range and what to do. Flower
checks that an overridden key exists, but not its type, so nothing is taken on trust.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .combinations import COUNTED, ROBUST, check_combinations, numbers_in
from .errors import ConfideError, nearest
from .kinds import KINDS
from .metrics import METRICS
from .text.rows import columns_of
from .text.settled import settled
from .text.words import in_form

Scalar = str | int | float | bool

# What the coordinator keeps to itself: its own paths, and the name that becomes one.
COORDINATORS_OWN = ("data.path", "run.out", "run.resume", "run.name", "run.id")

_COLUMNS = ("data.text", "data.target", "data.person")

# Characters of a setting that is text: what a coordinator sends must not fill memories and logs.
_MOST_TEXT = 10_000


def _number(default: int | float, low: float, high: float, *, above: bool = False) -> Any:
    """A number in [low, high]; with ``above`` the lower end is excluded."""
    rule = {"low": low, "high": high, "above": above}
    return field(default=default, metadata=rule)


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The frozen base model: a Hub id, a folder, or a name in the cache. ``dtype = auto`` computes
    it in bfloat16 where the processor multiplies that in hardware; adapters and heads stay float32.
    It is not the default: in bfloat16 a record's gradient depends on the records beside it by a
    thousandth, and the clip norm then bounds what one record changes only that well
    (docs/benchmarks.md)."""

    name: str = ""
    dtype: str = _choice("float32", "auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The adapter. ``layers`` counts from the top, 0 means every layer; ``method = head``
    trains the task head alone. ``targets`` is a comma-separated list of module names, a regular
    expression over whole names, or ``all-linear``; empty: PEFT's own table of the model's family,
    or else the usual names of the attention's query and value projections."""

    method: str = _choice("lora", "lora", "head")
    rank: int = _number(8, 1, 256)
    alpha: int = _number(16, 1, 4096)
    dropout: float = _number(0.0, 0, 0.9)
    targets: str = ""
    layers: int = _number(0, 0, 1000)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is learnt. ``labels`` is a comma-separated list, in the order of the classes;
    ``metric`` is the main one, the task's own where it is empty. ``template`` surrounds the text
    of seq2seq and causal prompts (``{text}``); ``chat`` takes the tokenizer's own.
    ``target_length`` is the most tokens of a target or an answer. ``low`` and ``high`` bound the
    numbers of a regression, ``mask`` is the share of tokens that masked and spans hide.

    Against imbalance: ``class_weights`` scale an example's own loss, ``loss = focal`` attends to
    what is still wrong (with ``gamma``), and ``class_rates`` leave a record of a class out of a
    step now and then, each a comma-separated list in the order of the labels that the coordinator
    gives, or ``counted``: then it derives them from noisy sums that the holders are charged for
    (``common.sums``), and sends ``counted`` with the numbers. ``word_dropout`` leaves out words,
    drawn anew for each of the ``copies`` of a record in a step, whose gradients are averaged before
    the clipping: the unit stays one unit."""

    kind: str = _choice("classification", *KINDS)
    labels: str = ""
    metric: str = _choice("", "", "perplexity", *METRICS)
    loss: str = _choice("cross-entropy", "cross-entropy", "focal")
    gamma: float = _number(2.0, 0, 10)
    class_weights: str = ""
    class_rates: str = ""
    word_dropout: float = _number(0.0, 0, 0.9)
    copies: int = _number(1, 1, 64)
    pooling: str = _choice("mean", "mean", "model")
    template: str = "{text}"
    target_length: int = _number(64, 2, 8192)
    beams: int = _number(1, 1, 64)
    mask: float = _number(0.15, 0.01, 0.9)
    low: float = _number(0.0, -1e6, 1e6)
    high: float = _number(1.0, -1e6, 1e6)

    @property
    def label_names(self) -> tuple[str, ...]:
        names = (in_form(name) for name in self.labels.split(","))
        return tuple(name for name in names if name)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the loss of each class; none when all are alike."""
        return numbers_in(self.class_weights.removeprefix(COUNTED))

    @property
    def rates(self) -> tuple[float, ...]:
        """The chance of each class's records to be used in a step; none when it is 1."""
        return numbers_in(self.class_rates.removeprefix(COUNTED))

    @property
    def counted(self) -> bool:
        """Whether weights or rates come from a noisy count, known by now or not."""
        return any(text.startswith(COUNTED) for text in (self.class_weights, self.class_rates))

    @property
    def uncounted(self) -> bool:
        """Whether there are such that are not known yet."""
        return COUNTED in (self.class_weights, self.class_rates)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Column names, and in a simulation the folder of the prepared federation. ``target`` is empty
    where the text alone is learnt. ``person`` names the column whose equal values belong to one
    person; empty when there is none. ``benchmark`` is one of GLUE or SuperGLUE (``glue/sst2``), and
    settles what is learnt and how it is measured (``common.text.settled``)."""

    path: str = ""
    text: str = "text"
    target: str = "label"
    person: str = ""
    benchmark: str = ""


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """The promise. ``noise_multiplier = 0`` calibrates it from epsilon; otherwise epsilon is
    what that multiplier gives and the holder's policy decides. With ``unit = person`` a step uses
    at most ``records_per_person`` records of a person, drawn anew each time. ``sum_noise`` is the
    standard deviation of the noise that a holder adds to each number of a sum (``common.sums``), in
    units of privacy; epsilon includes what the sums spend."""

    trust: str = _choice("local", "local", "off")
    unit: str = _choice("record", "record", "person")
    records_per_person: int = _number(8, 1, 1_000_000)
    epsilon: float = _number(8.0, 0, 100, above=True)
    delta: float = _number(1e-5, 0, 0.1, above=True)
    clip: float = _number(1.0, 0, 1e6, above=True)
    noise_multiplier: float = _number(0.0, 0, 1e4)
    sum_noise: float = _number(10.0, 0, 1e4, above=True)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Local training. ``rate`` is the chance of each unit of privacy (record, or person) to be used
    in a step, the same at every holder whatever it has. ``batch`` is the public number that sums
    are divided by, at every holder, never n or the number drawn; a sum is cut to the length that so
    many clipped units can have. ``schedule`` is of ``lr`` over the rounds, of which the first
    ``warmup`` rise to it; ``plateau`` halves it where the public loss stands still.
    ``weight_decay`` is for AdamW. ``proximal`` is FedProx's mu: each local step is pulled back to
    where the round began (Li et al. 2020). ``memory`` (MiB) is for the activations and per-example
    gradients of a physical batch; it changes no result."""

    rate: float = _number(1.0, 0, 1, above=True)
    batch: int = _number(64, 1, 1_000_000)
    steps: int = _number(1, 1, 100_000)
    optimizer: str = _choice("sgd", "sgd", "adam", "adamw")
    weight_decay: float = _number(0.0, 0, 1)
    proximal: float = _number(0.0, 0, 1e4)
    lr: float = _number(0.1, 0, 1e4, above=True)
    schedule: str = _choice("constant", "constant", "linear", "cosine", "plateau")
    warmup: int = _number(0, 0, 100_000)
    max_length: int = _number(128, 8, 8192)
    memory: int = _number(1024, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class RoundSpec:
    """Rounds. ``holders`` take part in each (0: all that are connected); a round with fewer than
    ``min_holders`` accepted updates is abandoned whole. ``mode = gradient`` sends one private
    gradient per round, ``steps`` the difference after ``train.steps`` private steps. The run ends
    early after ``patience`` rounds in which the public loss did not become less (0: never); with
    patience it leaves the adapter of the round in which that loss was least. The public text is
    scored before and after the run and after every ``evaluate_every`` rounds (0: in between only
    where ``patience`` or a ``plateau`` looks at the loss). A metric of text that
    the model writes is measured before and after the run, and with ``generate_every`` after every
    so many rounds (0: not in between; it takes a pass of the model for each token). With a
    ``holder_metric`` each holder measures the outcome on its own text, by a noisy sum."""

    count: int = _number(20, 1, 100_000)
    holders: int = _number(0, 0, 1_000_000)
    min_holders: int = _number(2, 1, 1_000_000)
    mode: str = _choice("steps", "gradient", "steps")
    timeout: float = _number(600.0, 1, 7 * 24 * 3600)
    patience: int = _number(0, 0, 100_000)
    evaluate_every: int = _number(1, 0, 100_000)
    generate_every: int = _number(0, 0, 100_000)
    holder_metric: str = _choice("", "", "accuracy", "perplexity")


@dataclass(frozen=True, kw_only=True)
class AggregateSpec:
    """What the coordinator does with accepted updates. ``ffa`` freezes LoRA's A (Sun et al.
    2024), so that averaging B is averaging the product; ``fedsvd`` does, too, and between rounds
    turns the factors (Lee et al. 2025); ``rolora`` (Chen et al. 2024) asks for ``ffa`` and ``ffb``
    (which freezes B) in turn; ``hetlora`` (Cho et al. 2024) is ``ffa`` and ``flexlora`` (Bai et al.
    2024) ``fedsvd`` for holders of different rank; without noise ``fedex`` (Singhal et al. 2025)
    and ``flora`` (Wang et al. 2024) add to the frozen weights what the factors cannot hold; with
    ``fedsa`` (Guo et al. 2024) each holder keeps its B to itself.
    ``robust`` is the rule that combines the
    updates, made to withstand ``byzantine`` hostile holders (0: one in five, at least one)."""

    method: str = _choice(
        "ffa", "lora", "ffa", "ffb", "fedsvd", "rolora", "hetlora", "flexlora", "fedex", "flora",
        "fedsa",
    )  # fmt: skip
    robust: str = _choice("mean", *ROBUST)
    byzantine: int = _number(0, 0, 100_000)
    optimizer: str = _choice("none", "none", "momentum", "adam", "yogi", "adagrad")
    momentum: float = _number(0.8, 0, 0.999)


@dataclass(frozen=True, kw_only=True)
class WireSpec:
    """The encoding of an update (``int8`` and ``int4``: blocks of 64 values with a scale of their
    own, see ``common.blocks``); the adapter always goes down in fp32."""

    encoding: str = _choice("fp32", "fp32", "bf16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Name, place and public seed of the run. The seed decides initial adapter and partitions; it
    never decides noise, private batches or which holders are drawn. ``coordinator`` is the name
    that the coordinator gives itself: nobody has checked it. ``id`` is set by the command that
    starts the run: its folder's name, and the word by which that command knows its own events."""

    name: str = "run"
    coordinator: str = ""
    out: str = "runs"
    id: str = ""
    resume: str = ""
    seed: int = _number(0, 0, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run; the field names are the prefixes of the flat keys."""

    model: ModelSpec = ModelSpec()
    lora: LoraSpec = LoraSpec()
    task: TaskSpec = TaskSpec()
    data: DataSpec = DataSpec()
    privacy: PrivacySpec = PrivacySpec()
    train: TrainSpec = TrainSpec()
    round: RoundSpec = RoundSpec()
    aggregate: AggregateSpec = AggregateSpec()
    wire: WireSpec = WireSpec()
    run: RunSpec = RunSpec()

    def to_flat(self) -> dict[str, Scalar]:
        """The flat form; ``from_flat(s.to_flat()) == s``."""
        return {
            _key(room.name, f.name): getattr(getattr(self, room.name), f.name)
            for room in fields(self)
            for f in fields(getattr(self, room.name))
        }


def known_keys() -> list[str]:
    """Every key of the run config, in order."""
    return list(Settings().to_flat())


def from_flat(config: Mapping[str, Any]) -> Settings:
    """Turn a flat run config into settings. What ``data.benchmark`` settles is filled in; a value
    that is the default counts as not chosen there, since Flower's run config has every key.

    Raises:
        ConfideError: ``settings.unknown-key``, ``settings.type``, ``settings.range``,
            ``settings.combination`` or ``benchmark.unknown``.
    """
    defaults = Settings()
    known = defaults.to_flat()
    for key in config:
        if key not in known:
            raise ConfideError(
                "settings.unknown-key",
                f"{key!r:.100} is not a setting.",
                nearest(str(key)[:100], known),
            )
    values = {
        key: _checked(key, config.get(key, known[key]), known[key], rule)
        for key, rule in _rules(defaults)
    }
    # A column has one name, or a ledger would be bound to a spelling of it.
    values |= {key: ",".join(columns_of(values[key])) for key in _COLUMNS}
    values |= settled({key: value for key, value in values.items() if value != known[key]})
    settings = _assembled(defaults, values)
    check_combinations(settings)
    return settings


def _rules(settings: Settings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every flat key with the rule of its value."""
    for room in fields(settings):
        for f in fields(getattr(settings, room.name)):
            yield _key(room.name, f.name), f.metadata


def _assembled(defaults: Settings, values: Mapping[str, Any]) -> Settings:
    rooms = {}
    for room in fields(defaults):
        spec = getattr(defaults, room.name)
        chosen = {f.name: values[_key(room.name, f.name)] for f in fields(spec)}
        rooms[room.name] = type(spec)(**chosen)
    return Settings(**rooms)


def _key(room: str, name: str) -> str:
    return f"{room}.{name.replace('_', '-')}"


def _checked(key: str, value: Any, default: Scalar, rule: Mapping[str, Any]) -> Any:
    if isinstance(default, float) and type(value) is int:
        # A whole number too large for a float is out of every range.
        value = float(value) if abs(value) < 2**1000 else math.inf
    same = type(value) is type(default)  # exactly: a truth value is no number here
    if not same:
        raise ConfideError(
            "settings.type",
            f"{key} = {value!r:.100} is {kind_of(value)}, but must be {kind_of(default)}.",
            f"Write for example {key} = {default!r}.",
        )
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfideError(
            "settings.range",
            f"{key} = {value!r:.100} is not text in UTF-8: a part of a character stands alone.",
            "Write it in UTF-8.",
        )
    if isinstance(value, str) and len(value) > _MOST_TEXT:
        raise ConfideError(
            "settings.range",
            f"{key} = {value!r:.100}... has {len(value)} characters, more than {_MOST_TEXT}.",
            "Write less.",
        )
    if "options" in rule and value not in rule["options"]:
        raise ConfideError(
            "settings.range",
            f"{key} = {value!r:.100} is not one of {', '.join(rule['options'])}.",
            nearest(value[:100], rule["options"]),
        )
    if "low" in rule:
        low, high, above = rule["low"], rule["high"], rule["above"]
        if not math.isfinite(value) or not (low <= value <= high) or (above and value == low):
            raise ConfideError(
                "settings.range",
                f"{key} = {value!r:.100} is outside {'(' if above else '['}{low:g}, {high:g}].",
                f"The default is {default!r}.",
            )
    return value


def kind_of(value: Any) -> str:
    """A value's type in plain words."""
    names = {bool: "a truth value", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")
