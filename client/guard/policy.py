"""The holder's limits: what it takes part in, decided before any text is opened.

A policy is a TOML file at the holder (``policy_file``). A task that asks for more than it allows
is refused with the code ``policy.<limit>``, one that does not fit what the holder says of its text
with ``contract.<what>`` (``contract``); nothing is ever adjusted to fit, but that less than the
run's rank is trained where its method admits that (``max_rank``). The checks come in three steps,
none of which opens the text: ``review`` (the task's settings alone), ``review_plan`` (the run's
plan and what the ledger has booked) and ``review_model`` (the weights that were loaded). Without a
file the limits are the defaults below, and no text is described: every task is refused.

Every comparison is written so that a value that is no number is refused.
"""

from __future__ import annotations

import math
import re
import sys
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ...common.errors import ConfideError
from ...common.machine.paths import cache_dir, local_or_cached
from ...common.methods import METHODS, method_of
from ...common.plans import is_shared, noise_of
from ...common.privacy.accountant import GaussianSteps, within
from ...common.privacy.plan import Plan, Trust
from ...common.settings import Settings
from .contract import Contract, missing

# A name of the Hub, with or without its owner: never a path, and never longer than the Hub allows.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SHA256 = "sha256:"
_PIN = f"@{_SHA256}"
_DAY = 24 * 3600.0  # seconds
_OF_RANKS = ", ".join(name for name, method in METHODS.items() if method.ranks)


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
        "The largest delta: the chance that the promise of epsilon does not hold. Choose it well\n"
        "below 1 / (number of your records or persons); `confide client check-data` says how far.\n"
        "No run is refused for your number: that would tell it.",
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
    max_passes: float = _number(
        2000.0, 0, 1e9,
        "How many times a run may go through the whole text: sampling rate times steps times\n"
        "rounds times copies. It bounds the work here by public numbers; a clock that ended a\n"
        "task would tell how much text there is.",
    )  # fmt: skip
    max_length: int = _number(1024, 8, 8192, "The longest text, and target, in tokens.")
    max_copies: int = _number(8, 1, 64, "The most copies of a record that a step uses.")
    max_dropout: float = _number(0.9, 0, 0.9, "The most dropout, of inputs or of words.")
    max_requests_per_day: int = _number(
        10_000, 0, 10_000_000,
        "The most tasks that are worked on in 24 hours, since this program was started.",
    )  # fmt: skip
    max_batch: int = _number(
        10_000, 0, 1_000_000,
        "The largest number that the run divides sums by (train.batch).",
    )  # fmt: skip
    max_rank: int = _number(
        256, 1, 256,
        "The largest rank of LoRA that is trained here. A run of a larger one whose method admits\n"
        f"different ranks ({_OF_RANKS}) is taken part in at this rank; any other is\nrefused.",
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
    dtypes: tuple[str, ...] = _words(
        ("float32",),
        "The arithmetic of the frozen model. In bfloat16 a record moves another's gradient by up\n"
        "to a thousandth, and the clip norm holds only that well.",
        "float32", "bfloat16", "auto",
    )  # fmt: skip
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
    roster: str = _plain(
        "",
        "The members of secure sums: sha256: and the 64 digits of their roster, whose twelve\n"
        "words you compared with all administrators (`confide client roster FILE` shows both).\n"
        "Empty: no run with a secure sum (privacy.trust = 'distributed') is taken part in.",
    )
    openers: tuple[str, ...] = _words(
        (),
        "Members whom you trust to open a secure sum once only. A run without one of them, or\n"
        "this holder itself, among its openers is refused.",
    )
    min_contributions: int = _number(
        3, 2, 4096,
        "The fewest holders whose sum may be opened. What a holder sends has a share of the noise\n"
        "alone; the sum of so many, less those who collude, has all of it.",
    )  # fmt: skip
    colluding: int = _number(
        1, 0, 63,
        "The fewest other members that a run with a secure sum assumes may tell the coordinator\n"
        "all that they sent.",
    )  # fmt: skip
    max_epsilon_unmasked: float = _number(
        50.0, 0, 1e6,
        "The most epsilon that all runs together may be worth if every mask of every secure sum\n"
        "fails: what is then left is each holder's own share of noise.",
    )  # fmt: skip
    ask_before_run: bool = _plain(
        False,
        "Whether each run waits for your yes: it is refused until `confide client allow KIT RUN`,\n"
        "and `confide client runs KIT` shows which asked. Without it you can still say no to a\n"
        "run, at any time: `confide client deny KIT RUN`.",
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
    allow_any_roster: bool = _plain(
        False,
        "Whether a run may name any members and openers of a secure sum. Only for simulations: a\n"
        "coordinator could then be all the others itself.",
    )
    allow_any_data: bool = _plain(
        False,
        "Whether a run may read any column of this text, for any task, where there is no [data]\n"
        "below. Only for simulations: what is refused then would tell what the text holds.",
    )
    data: Contract | None = field(default=None, metadata={"table": True})


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
    max_passes=math.inf,
    max_length=sys.maxsize,
    max_copies=sys.maxsize,
    max_requests_per_day=sys.maxsize,
    max_batch=sys.maxsize,
    max_rank=sys.maxsize,
    max_records_per_person=sys.maxsize,
    dtypes=("float32", "bfloat16", "auto"),
    allow_unprotected=True,
    allow_any_model=True,
    allow_any_roster=True,
    allow_any_data=True,
    min_contributions=2,
    colluding=0,
    max_epsilon_unmasked=math.inf,
)

# The setting that a limit bounds from above.
_MOST = {
    "privacy.delta": "max_delta",
    "privacy.clip": "max_clip",
    "round.count": "max_rounds",
    "train.steps": "max_steps_per_round",
    "train.batch": "max_batch",
    "train.rate": "max_sampling_rate",
    "train.max-length": "max_length",
    "task.target-length": "max_length",
    "task.copies": "max_copies",
    "task.word-dropout": "max_dropout",
    "lora.dropout": "max_dropout",
    "privacy.records-per-person": "max_records_per_person",
}


def review(settings: Settings, policy: Policy) -> None:
    """Refuse what the settings show the policy, or its contract, does not allow. Nothing is read
    but the policy.

    Raises:
        ConfideError: ``policy.`` and the name of the limit, or ``contract.`` and what does not fit.
    """
    if settings.privacy.trust == "off" and not policy.allow_unprotected:
        _refuse(
            "allow_unprotected",
            "The run has privacy.trust = 'off'; this holder's policy refuses runs without noise.",
            "Only a simulation on public text should set allow-unprotected.",
        )
    flat = settings.to_flat()
    for name, limit in _MOST.items():
        _check_most(policy, limit, name, flat[name])
    steps = settings.train.steps * settings.round.count
    _check_most(policy, "max_steps_per_run", "train.steps times round.count", steps)
    passes = settings.train.rate * steps * settings.task.copies
    _check_most(policy, "max_passes", "train.rate times steps times task.copies", passes)
    if settings.lora.method != "head" and not method_of(settings.aggregate.method).ranks:
        _check_most(policy, "max_rank", "lora.rank", settings.lora.rank)
    _check_noise(settings, policy)
    if is_shared(settings):
        review_sizes(settings.round.min_holders, settings.privacy.colluding, policy)
    _check_listed(policy, "dtypes", "model.dtype", settings.model.dtype, must_list=True)
    _check_listed(policy, "coordinators", "run.coordinator", settings.run.coordinator)
    if policy.data is not None:
        policy.data.check(settings)
    elif not policy.allow_any_data:
        raise missing()
    if not _allows_model(settings.model.name, policy):
        _refuse(
            "base_models",
            f"{settings.model.name!r:.100} is not among the allowed base models.",
            "The holder may list it in base-models, or put it into the cache's models folder.",
        )


def review_sizes(least: int, colluding: int, policy: Policy) -> None:
    """Refuse a secure sum of fewer contributions, or fewer who may collude, than the policy wants.

    Raises:
        ConfideError: ``policy.min-contributions`` or ``policy.colluding``.
    """
    said = {
        "min_contributions": ("round.min-holders", least),
        "colluding": ("privacy.colluding", colluding),
    }
    for limit, (name, value) in said.items():
        if not value >= getattr(policy, limit):
            _refuse(
                limit,
                f"{name} = {value} is below {_key(limit)} = {getattr(policy, limit)}.",
                f"Start a run with a larger {name}.",
            )


def review_roster(roster: str, policy: Policy) -> None:
    """Refuse members of a secure sum that are not those the administrators compared.

    Args:
        roster: the digest of the run's roster; empty for none.

    Raises:
        ConfideError: ``policy.roster``.
    """
    if policy.allow_any_roster and not policy.roster:
        return
    if not policy.roster or policy.roster != f"{_SHA256}{roster}":
        _refuse(
            "roster",
            f"The run's roster is {roster or 'none'}, the policy has {policy.roster or 'none'}.",
            "Compare the roster's words with the other administrators, and write its digest into"
            " the policy (`confide client roster FILE`).",
        )


def review_openers(openers: Collection[str], own: str, policy: Policy) -> None:
    """Refuse openers of whom this holder trusts none.

    Args:
        own: this holder's name.

    Raises:
        ConfideError: ``policy.openers``.
    """
    if policy.allow_any_roster or {own, *policy.openers} & set(openers):
        return
    _refuse(
        "openers",
        f"The run's openers are {', '.join(openers)}; this holder trusts"
        f" {', '.join((own, *policy.openers))}.",
        "Let the coordinator choose one of these, or list one of those in openers.",
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
    unmasked: Sequence[GaussianSteps] = (),
) -> None:
    """Refuse a plan that the policy does not allow after what was charged.

    The epsilon of the run is that of what it was ``charged`` so far (``summed`` steps of it for
    sums) and of all rounds and ``sums`` that are left, at least the ``rounds`` asked for now, so
    that a run whose settings change half-way gains nothing. ``unmasked`` is what all runs were
    charged so far, as if every mask had failed.

    Raises:
        ConfideError: ``policy.max-sampling-rate``, ``policy.min-noise-multiplier``,
            ``policy.max-epsilon-per-run`` or ``policy.max-epsilon-unmasked``.
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
    if plan.trust is Trust.DISTRIBUTED:
        _check_unmasked(plan, policy, unmasked, left)
    besides = " and its sums" if summed or sums else ""
    if not within((*charged, ahead, *sums), plan.delta, policy.max_epsilon_per_run):
        _refuse(
            "max_epsilon_per_run",
            f"The {done + left} steps of this run, {done} of them charged{besides}, spend more than"
            f" max-epsilon-per-run = {policy.max_epsilon_per_run:g} at delta = {plan.delta:g}.",
            "Start a run with more noise or fewer rounds.",
        )


def _check_unmasked(
    plan: Plan, policy: Policy, charged: Sequence[GaussianSteps], left: int
) -> None:
    bare = replace(plan.unmasked(), steps=left)
    if not within((*charged, bare), plan.delta, policy.max_epsilon_unmasked):
        _refuse(
            "max_epsilon_unmasked",
            "If every mask failed, what this run has left and all that was charged would be worth"
            f" more than max-epsilon-unmasked = {policy.max_epsilon_unmasked:g} at delta ="
            f" {plan.delta:g}.",
            "Start a run with more noise or fewer rounds, or with fewer contributions and more who"
            " may collude, which makes each share larger.",
        )


def review_requests(worked: deque[float], policy: Policy, now: float) -> None:
    """Refuse one more task than the policy allows in 24 hours (``policy.max-requests-per-day``), or
    note it in ``worked``, the times of earlier ones in seconds."""
    while worked and worked[0] <= now - _DAY:
        worked.popleft()
    _check_most(policy, "max_requests_per_day", "The number of tasks today", len(worked) + 1)
    worked.append(now)


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
