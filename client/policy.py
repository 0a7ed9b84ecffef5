"""The holder's limits: what it takes part in, decided before any text is opened.

A policy is a TOML file at the holder (``policy_file``). A task that asks for more than it allows
is refused with the code ``policy.<limit>``; nothing is ever adjusted to fit, but that less than the
run's rank is trained where its method admits that (``max_rank``). The checks come in
three steps, each before the text is opened wherever its figures are known by then: ``review`` (the
task's settings alone), ``review_plan`` (what follows from the number of units) and
``review_model`` (the weights that were loaded). Without a file the limits are the defaults below.

Every comparison is written so that a value that is no number is refused.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from ..common.combinations import OF_RANKS
from ..common.errors import ConfideError
from ..common.paths import cache_dir, local_or_cached
from ..common.privacy.accountant import GaussianSteps, within
from ..common.privacy.plan import Plan, Trust
from ..common.settings import Settings, TaskSpec
from ..common.sums import noise_of
from ..common.text.units import UNITS

TASKS: tuple[str, ...] = next(f for f in fields(TaskSpec) if f.name == "kind").metadata["options"]

# A name of the Hub, with or without its owner: never a path, and never longer than the Hub allows.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_PIN = "@sha256:"


def _number(default: float, low: float, high: float, says: str) -> Any:
    """A limit that is a number in [low, high], and what an administrator should know of it."""
    return field(default=default, metadata={"low": low, "high": high, "says": says})


def _words(default: tuple[str, ...], says: str, *known: str) -> Any:
    """A limit that is a list of words, of ``known`` ones if there are any."""
    return field(default=default, metadata={"known": known, "says": says})


def _plain(default: str | bool, says: str) -> Any:
    return field(default=default, metadata={"says": says})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits over all runs on this data set, and for each run. ``says`` is the comment that
    ``confide client init`` writes above each."""

    max_epsilon: float = _number(
        10.0, 0, 1000,
        "The most epsilon that all runs on this data set together may ever spend. Smaller is\n"
        "safer: below 1 is strong, 10 is weak. It cannot be earned back.",
    )  # fmt: skip
    max_epsilon_per_run: float = _number(
        10.0, 0, 1000,
        "The most epsilon that one run may plan to spend, over all of its rounds. If the data set\n"
        "changes during a run, the run may need a little more than it had planned.",
    )  # fmt: skip
    max_delta: float = _number(
        1e-4, 0, 0.1,
        "The largest delta: the chance that the promise of epsilon does not hold. A delta of\n"
        "1 / (number of records or persons) or more is always refused.",
    )  # fmt: skip
    min_noise_multiplier: float = _number(
        0.4, 0, 10_000,
        "The least noise in a step, as a multiple of the clip norm (no unit).",
    )  # fmt: skip
    max_clip: float = _number(
        10.0, 0, 1e6,
        "The largest clip norm: the length to which the part of a record or person in a step is\n"
        "cut. Noise grows with it, so it does not weaken the promise; 1 is usual.",
    )  # fmt: skip
    max_rounds: int = _number(200, 0, 100_000, "The most rounds of a run.")
    max_steps_per_round: int = _number(1000, 0, 100_000, "The most training steps in a round.")
    max_steps_per_run: int = _number(
        10_000, 0, 10_000_000,
        "The most training steps of a run, over all of its rounds. Steps cost computing time\n"
        "here; what they cost in privacy is part of epsilon.",
    )  # fmt: skip
    max_batch: int = _number(
        10_000, 0, 1_000_000,
        "The most records (or persons) that a step uses on average.",
    )  # fmt: skip
    max_rank: int = _number(
        256, 1, 256,
        "The largest rank of LoRA that is trained here. A run of a larger one whose method admits\n"
        "different ranks (hetlora, flexlora) is taken part in at this rank; any other is refused.",
    )  # fmt: skip
    max_sampling_rate: float = _number(
        1.0, 0, 1,
        "The largest share of the data set that a step uses on average: 0.1 is one record (or\n"
        "person) in ten, 1 is all of them.",
    )  # fmt: skip
    max_records_per_person: int = _number(
        100, 0, 1_000_000,
        "The most records of one person that a step uses, in runs that protect whole persons.",
    )  # fmt: skip
    units: tuple[str, ...] = _words(
        UNITS,
        "What a run may protect: single records, whole persons, or either. The first run with\n"
        "noise decides for this data set. If one person has several records, choose person.",
        *UNITS,
    )  # fmt: skip
    person: str = _plain(
        "",
        "The column that tells persons apart. Empty leaves the choice to the run, which could\n"
        "name a column that differs in every record.",
    )
    columns: tuple[str, ...] = _words(
        (), "The columns that a run may read. An empty list allows all of them."
    )
    tasks: tuple[str, ...] = _words(TASKS, "What a run may learn.", *TASKS)
    base_models: tuple[str, ...] = _words(
        (),
        "The base models that a run may use, by name or folder; followed by @sha256: and 64\n"
        "digits, only with these weights (cat *.safetensors | sha256sum shows them). An empty\n"
        "list allows what lies in confide's cache, by plain names; nothing is then downloaded.",
    )
    coordinators: tuple[str, ...] = _words(
        (),
        "The names that a coordinator may give itself (run.coordinator). This guards against a\n"
        "mix-up, not against a lie: who may connect is decided by certificates and keys. An\n"
        "empty list allows every name.",
    )
    allow_sums: bool = _plain(
        True,
        "Whether runs may ask for noisy sums besides training: how many records each class has,\n"
        "and how many the adapter gets right. Their noise is at least min-noise-multiplier, and\n"
        "their part of epsilon is counted as everything else; they use all of the text.",
    )
    allow_unprotected: bool = _plain(
        False,
        "Whether runs WITHOUT any noise may use this text. Only ever for public text: such a\n"
        "run may reveal every record, and spends the whole budget for good.",
    )
    allow_any_model: bool = _plain(
        False,
        "Whether a run may name any base model, even a folder of this machine or a download.\n"
        "Only for simulations on a researcher's own machine.",
    )


# A simulated holder has public text and a researcher who wants to compare.
SIMULATION = Policy(
    max_epsilon=math.inf,
    max_epsilon_per_run=math.inf,
    max_delta=1.0,
    min_noise_multiplier=0.0,
    max_clip=math.inf,
    max_rounds=sys.maxsize,
    max_steps_per_round=sys.maxsize,
    max_steps_per_run=sys.maxsize,
    max_batch=sys.maxsize,
    max_rank=sys.maxsize,
    max_records_per_person=sys.maxsize,
    allow_unprotected=True,
    allow_any_model=True,
)

# Limit -> the setting that it bounds from above.
_MOST = {
    "max_delta": "privacy.delta",
    "max_clip": "privacy.clip",
    "max_rounds": "round.count",
    "max_steps_per_round": "train.steps",
    "max_batch": "train.batch",
    "max_records_per_person": "privacy.records-per-person",
}


def review(settings: Settings, policy: Policy) -> None:
    """Refuse what the settings show the policy does not allow. Nothing is read but the policy.

    Raises:
        ConfideError: ``policy.`` and the name of the limit.
    """
    if settings.privacy.trust == "off" and not policy.allow_unprotected:
        _refuse(
            "allow_unprotected",
            "The run has privacy.trust = 'off'; this holder's policy refuses runs without noise.",
            "Only a simulation on public text should set allow-unprotected.",
        )
    flat = settings.to_flat()
    for limit, name in _MOST.items():
        _check_most(policy, limit, name, flat[name])
    steps = settings.train.steps * settings.round.count
    _check_most(policy, "max_steps_per_run", "train.steps times round.count", steps)
    if settings.lora.method == "lora" and settings.aggregate.method not in OF_RANKS:
        _check_most(policy, "max_rank", "lora.rank", settings.lora.rank)
    _check_noise(settings, policy)
    _check_unit(settings, policy)
    _check_words(settings, policy)
    if not _allows_model(settings.model.name, policy):
        _refuse(
            "base_models",
            f"{settings.model.name!r:.100} is not among the allowed base models.",
            "The holder may list it in base-models, or put it into the cache's models folder.",
        )


def review_sum(settings: Settings, policy: Policy) -> None:
    """Refuse a sum that the policy does not allow, by the settings alone.

    Raises:
        ConfideError: ``policy.allow-sums``, ``policy.max-sampling-rate`` or
            ``policy.min-noise-multiplier``.
    """
    if not policy.allow_sums:
        _refuse(
            "allow_sums",
            "The task asks for a noisy sum; this holder's policy refuses sums.",
            "Start a run without task.class-weights = 'counted' and round.holder-metric.",
        )
    _check_most(policy, "max_sampling_rate", "The sampling rate of a sum", 1.0)
    if settings.privacy.trust != "off" and not noise_of(settings) >= policy.min_noise_multiplier:
        _too_little_noise(noise_of(settings), policy)


def review_plan(
    plan: Plan,
    policy: Policy,
    charged: Sequence[GaussianSteps],
    summed: int = 0,
    sums: Sequence[GaussianSteps] = (),
    rounds: int = 1,
) -> None:
    """Refuse what only shows once the number of units is known.

    The epsilon of the run is that of what it was ``charged`` so far (``summed`` steps of it for
    sums) and of all rounds and ``sums`` that are left, at least the ``rounds`` asked for now, so
    that a run whose settings change half-way gains nothing.

    Raises:
        ConfideError: ``policy.max-sampling-rate``, ``policy.min-noise-multiplier`` or
            ``policy.max-epsilon-per-run``.
    """
    _check_most(policy, "max_sampling_rate", "The sampling rate", plan.sampling_rate)
    if plan.trust is Trust.OFF:
        return
    if not plan.noise_multiplier >= policy.min_noise_multiplier:
        _too_little_noise(plan.noise_multiplier, policy)
    done = sum(step.steps for step in charged) - summed
    left = max(plan.steps_per_round * plan.max_rounds - done, plan.steps_per_round * rounds)
    ahead = GaussianSteps(
        noise_multiplier=plan.noise_multiplier, sampling_rate=plan.sampling_rate, steps=left
    )
    besides = " and its sums" if summed or sums else ""
    if not within((*charged, ahead, *sums), plan.delta, policy.max_epsilon_per_run):
        _refuse(
            "max_epsilon_per_run",
            f"The {done + left} steps of this run, {done} of them charged{besides}, spend more than"
            f" max-epsilon-per-run = {policy.max_epsilon_per_run:g} at delta = {plan.delta:g}.",
            "Start a run with more noise or fewer rounds.",
        )


def review_model(name: str, sha256: str, policy: Policy) -> None:
    """Refuse weights that are not those of the name's pin, if the policy has one.

    Args:
        sha256: of the weight files as they were loaded; empty for a model without a folder.

    Raises:
        ConfideError: ``policy.base-model-hash``.
    """
    pins = [pin for known, pin in map(_pinned, policy.base_models) if known == name]
    if pins and "" not in pins and sha256 not in pins:
        raise ConfideError(
            "policy.base-model-hash",
            f"The weights of {name!r} here have SHA-256 {sha256 or 'unknown'}, the policy lists"
            f" {', '.join(pins)}.",
            "Put the model back that was meant, or list the new weights in base-models.",
        )


def _check_noise(settings: Settings, policy: Policy) -> None:
    """What the run says of its noise: an epsilon, or else a multiplier."""
    privacy = settings.privacy
    if privacy.trust == "off":
        return
    if privacy.noise_multiplier == 0:
        _check_most(policy, "max_epsilon_per_run", "privacy.epsilon", privacy.epsilon)
    elif not privacy.noise_multiplier >= policy.min_noise_multiplier:
        _too_little_noise(privacy.noise_multiplier, policy)


def _check_unit(settings: Settings, policy: Policy) -> None:
    unit, column = settings.privacy.unit, settings.data.person
    _check_listed(policy, "units", "privacy.unit", unit, must_list=True)
    if unit == "person" and policy.person and column != policy.person:
        _refuse(
            "person",
            f"data.person = {column!r:.100}, but persons are told apart by {policy.person!r} here.",
            f"Start the run with data.person = {policy.person!r}.",
        )


def _check_words(settings: Settings, policy: Policy) -> None:
    data = settings.data
    for name, column in (("text", data.text), ("target", data.target), ("person", data.person)):
        if column:
            _check_listed(policy, "columns", f"data.{name}", column)
    _check_listed(policy, "tasks", "task.kind", settings.task.kind, must_list=True)
    _check_listed(policy, "coordinators", "run.coordinator", settings.run.coordinator)


def _check_most(policy: Policy, limit: str, name: str, value: Any) -> None:
    most = getattr(policy, limit)
    if not value <= most:
        _refuse(
            limit,
            f"{name} = {value:g} is above {_key(limit)} = {most:g}.",
            "Start a run that asks for less, or ask the holder whether its limit may be raised.",
        )


def _check_listed(
    policy: Policy, limit: str, name: str, value: str, *, must_list: bool = False
) -> None:
    """A list of the policy; an empty one allows everything unless something must be listed."""
    allowed = getattr(policy, limit)
    if value not in allowed and (allowed or must_list):
        _refuse(
            limit,
            f"{name} = {value!r:.100} is not among {_key(limit)} ({', '.join(allowed) or 'none'}).",
            f"Start a run with an allowed {name}.",
        )


def _too_little_noise(noise_multiplier: float, policy: Policy) -> NoReturn:
    _refuse(
        "min_noise_multiplier",
        f"A noise multiplier of {noise_multiplier:g} is below min-noise-multiplier"
        f" = {policy.min_noise_multiplier:g}.",
        "Start a run with more noise.",
    )


def _allows_model(name: str, policy: Policy) -> bool:
    """The coordinator names the model, so that an unlisted name must not become a download, or a
    path to some other folder of this machine."""
    if policy.base_models:
        return name in {known for known, _ in map(_pinned, policy.base_models)}
    if policy.allow_any_model:
        return True
    if not _PLAIN_NAME.fullmatch(name) or ".." in name:
        return False
    cached = cache_dir() / "models" / name
    return cached.is_dir() and local_or_cached(name, "models") == cached.resolve()


def _pinned(entry: str) -> tuple[str, str]:
    """An entry of ``base_models`` as name and SHA-256, which is empty where none is given."""
    name, _, pin = entry.partition(_PIN)
    return name, pin


def _key(limit: str) -> str:
    return limit.replace("_", "-")


def _refuse(limit: str, message: str, hint: str) -> NoReturn:
    raise ConfideError(f"policy.{_key(limit)}", message, hint)
