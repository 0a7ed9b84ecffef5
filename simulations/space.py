"""A search space: which settings ``confide tune`` varies, and over which values.

``KEY=low..high`` is a range (``KEY=low..high log`` a logarithmic one), ``KEY=a,b,c`` a choice. The
settings themselves check every end and every choice. The settings that make the promise cannot be
searched: the weakest promise would always win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.errors import ConfideError
from ..common.settings import COORDINATORS_OWN, Scalar, from_flat, hint, spelled
from .scenario import Scenario, run_config

# Of a range, an exhaustive search tries this many values: both ends and the middle.
GRID_POINTS = 3
_PROMISE = (
    "trust",
    "colluding",
    "unit",
    "records-per-person",
    "epsilon",
    "delta",
    "noise-multiplier",
    "sum-noise",
)
FIXED = (
    *COORDINATORS_OWN,
    "run.seed",
    "run.coordinator",
    "round.min-holders",  # of whose contributions a secure sum has to be opened
    *(f"privacy.{one}" for one in _PROMISE),
)
_NUMBER = r"[-+0-9.]+?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})\s*(log)?")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A setting and its values: either ``choices``, or all numbers from ``low`` to ``high``.

    Attributes:
        whole: whether only whole numbers are tried.
        log: whether the scale is logarithmic.
    """

    key: str
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def suggest(self, trial: Any) -> Scalar:
        """A value for an Optuna trial; numbers are kept to four digits, for people to read."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))  # type: ignore[no-any-return]
        if self.whole:
            return int(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
        return readable(trial.suggest_float(self.key, self.low, self.high, log=self.log))

    def holds(self, value: Scalar) -> bool:
        """Whether the value is one of this dimension's."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def grid(self) -> list[Scalar]:
        """The values that an exhaustive search tries."""
        if self.choices:
            return list(self.choices)
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        steps = [low + (high - low) * i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
        inner = [math.exp(step) if self.log else step for step in steps[1:-1]]
        values = [self.low, *inner, self.high]  # the ends as they were written
        return list(dict.fromkeys(round(v) if self.whole else readable(v) for v in values))


def readable(value: float) -> float:
    """The number to four significant digits."""
    return float(f"{value:.4g}")


def default_space(config: Mapping[str, Any]) -> list[str]:
    """Learning rate and clip norm around the scenario's own, and the rank of the adapter."""
    lr, clip = float(config["train.lr"]), float(config["privacy.clip"])
    space = [
        f"train.lr={readable(lr / 10)}..{readable(lr * 10)} log",
        f"privacy.clip={readable(clip / 4)}..{readable(clip * 4)} log",
    ]
    return space if config["lora.method"] == "head" else [*space, "lora.rank=2,4,8,16"]


def parse_space(texts: Sequence[str], scenario: Scenario) -> list[Dimension]:
    """The dimensions of ``KEY=low..high``, ``KEY=low..high log`` and ``KEY=a,b,c``.

    Raises:
        ConfideError: ``tune.space``, and what ``from_flat`` raises for a value.
    """
    config = run_config(scenario)
    dimensions = [_dimension(text, scenario, config) for text in texts]
    keys = [dimension.key for dimension in dimensions]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ConfideError(
            "tune.space", f"--space names {twice[0]} twice.", "Give each setting one range."
        )
    for dimension in dimensions:
        for value in dimension.choices or (dimension.grid()[0], dimension.grid()[-1]):
            from_flat({**config, dimension.key: value})
    return dimensions


def _dimension(text: str, scenario: Scenario, config: Mapping[str, Scalar]) -> Dimension:
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise ConfideError(
            "tune.space",
            f"--space {text!r} gives no values.",
            f"Write --space '{key or 'KEY'}=low..high', 'low..high log', or 'a,b,c'.",
        )
    key = spelled(key)
    if key in FIXED:
        raise ConfideError(
            "tune.space",
            f"--space {key} is the promise or the run's own, and is not searched.",
            "Set it with --set; `confide bench utility` compares promises.",
        )
    if key not in config:
        raise ConfideError("tune.space", f"--space {key:.100} is not a setting.", hint(key))
    if not isinstance(config[key], str) and ".." in values:
        return _range(key, values, whole=type(config[key]) is int)
    choices = [
        run_config(scenario, [f"{key}={one.strip()}"])[key] for one in values.split(",") if one
    ]
    return Dimension(key=key, choices=tuple(dict.fromkeys(choices)))


def _range(key: str, values: str, *, whole: bool) -> Dimension:
    found = _RANGE.fullmatch(values)
    try:
        low, high = (float(end) for end in found.groups()[:2]) if found else (math.nan, math.nan)
    except ValueError:
        low, high = math.nan, math.nan
    log = bool(found and found[3])
    sound = low < high < math.inf and (low > 0 or not log)
    if not sound or (whole and not (low.is_integer() and high.is_integer())):
        raise ConfideError(
            "tune.space",
            f"--space {key}={values} is no range of {'whole ' if whole else ''}numbers"
            f"{' above 0' if log else ''}.",
            f"Write for example --space '{key}={'2..16' if whole else '0.1..10 log'}'.",
        )
    return Dimension(key=key, low=low, high=high, whole=whole, log=log)
