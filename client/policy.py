"""The holder's limits: what it takes part in, decided before any text is read.

A policy is a TOML file at the holder. A task that asks for more than it allows is refused with a
code that names the limit; nothing is ever adjusted to fit. Without a file the limits are the
defaults below.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError, nearest
from ..common.paths import cache_dir, local_or_cached
from ..common.settings import Settings
from ..common.text.units import UNITS

# A name of the Hub, with or without its owner: never a path.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits over all runs on this data set, and for each task.

    Attributes:
        max_epsilon: over every run ever made on this data set, at the run's delta.
        max_delta: largest delta of a run.
        allow_unprotected: whether the text is public and the machine the researcher's own, so
            that a run with ``privacy.trust = off`` may read the text, and ``model.name`` may be
            any folder or Hub id.
        units: what a run may protect: ``record``, ``person`` or either.
        person: the column that tells persons apart, when the unit is the person; empty leaves the
            choice to the run, which could name a column that differs in every record.
        base_models: names of allowed base models, which may be paths or Hub ids; empty allows
            those in the cache's models folder, by their plain names.
    """

    max_epsilon: float = 10.0
    max_delta: float = 1e-4
    allow_unprotected: bool = False
    units: tuple[str, ...] = UNITS
    person: str = ""
    base_models: tuple[str, ...] = ()


def load_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfideError: ``policy.missing``, ``policy.format`` or ``policy.unknown-key``.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfideError(
            "policy.missing", f"The policy {path} cannot be read: {error.strerror}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfideError("policy.format", f"{path} is not TOML: {error}.") from None
    defaults = {f.name.replace("_", "-"): getattr(Policy(), f.name) for f in fields(Policy)}
    for key, value in table.items():
        if key not in defaults:
            raise ConfideError(
                "policy.unknown-key", f"{key!r} is no limit.", nearest(key, defaults)
            )
        _check_value(key, value, defaults[key])
    values: dict[str, Any] = {
        key.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for key, value in table.items()
    }
    return Policy(**values)


def _check_value(key: str, value: object, default: object) -> None:
    if isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, float):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if not good:
        raise ConfideError(
            "policy.format",
            f"{key} = {value!r} has the wrong type.",
            f"The default is {default!r}.",
        )
    if key == "units" and isinstance(value, list) and not set(value) <= set(UNITS):
        raise ConfideError("policy.format", f"units = {value!r}: known are {', '.join(UNITS)}.")


def review(settings: Settings, policy: Policy) -> None:
    """Refuse what the policy does not allow.

    Raises:
        ConfideError: ``policy.unprotected``, ``policy.delta``, ``policy.unit`` or
            ``policy.base-model``.
            (The epsilon over all runs is checked by the ledger in the transaction that charges.)
    """
    if settings.privacy.trust == "off" and not policy.allow_unprotected:
        raise ConfideError(
            "policy.unprotected",
            "The run has privacy.trust = 'off'; this holder's policy refuses runs without noise.",
            "Only a simulation on public text should allow-unprotected.",
        )
    if settings.privacy.delta > policy.max_delta:
        raise ConfideError(
            "policy.delta",
            f"privacy.delta = {settings.privacy.delta:g} is above max-delta"
            f" = {policy.max_delta:g}.",
        )
    _check_unit(settings, policy)
    if not _allows_model(settings.model.name, policy):
        raise ConfideError(
            "policy.base-model",
            f"{settings.model.name!r} is not among the allowed base models.",
            "The holder may list it in base-models, or put it into the cache's models folder.",
        )


def _check_unit(settings: Settings, policy: Policy) -> None:
    unit, column = settings.privacy.unit, settings.data.person
    if unit not in policy.units:
        raise ConfideError(
            "policy.unit",
            f"privacy.unit = {unit!r} is not among the allowed units"
            f" ({', '.join(policy.units) or 'none'}).",
            "Start the run with an allowed unit.",
        )
    if unit == "person" and policy.person and column != policy.person:
        raise ConfideError(
            "policy.unit",
            f"data.person = {column!r}, but persons are told apart by {policy.person!r} here.",
            f"Start the run with data.person = {policy.person!r}.",
        )


def _allows_model(name: str, policy: Policy) -> bool:
    """The coordinator names the model, so that an unlisted name must not become a download, or a
    path to some other folder of this machine."""
    if policy.base_models:
        return name in policy.base_models
    if policy.allow_unprotected:
        return True
    if not _PLAIN_NAME.fullmatch(name) or ".." in name:
        return False
    cached = cache_dir() / "models" / name
    return cached.is_dir() and local_or_cached(name, "models") == cached.resolve()
