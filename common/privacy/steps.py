"""Releases in the words of the accountants: how many steps of which noise at which sampling rate.

| input | result |
|---|---|
| noise multiplier 0 | no noise: allowed here, and infinite wherever it is accounted |
| sampling rate 0, or above 1 | refused |
| no steps | nothing was released; ``merge`` drops it |
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ..errors import ConfideError


@dataclass(frozen=True, kw_only=True, order=True)
class GaussianSteps:
    """``steps`` releases of a Poisson-sampled sum with Gaussian noise of std multiplier * clip."""

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        z, q, steps = self.noise_multiplier, self.sampling_rate, self.steps
        if not (is_number(z) and 0 <= z < math.inf):
            refuse_steps(f"noise multiplier = {z!r} is outside [0, inf)", "about 1; 0 is no noise")
        if not (is_number(q) and 0 < q <= 1):
            refuse_steps(f"sampling rate = {q!r} is outside (0, 1]", "batch / records, at most 1")
        if type(steps) is not int or steps < 0:
            refuse_steps(f"steps = {steps!r} is not a whole number >= 0", "rounds times steps")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GaussianSteps:
        names = ("noise_multiplier", "sampling_rate", "steps")
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfideError("privacy.steps", f"Steps need exactly {', '.join(names)}.")
        return cls(**{name: data[name] for name in names})


Steps = tuple[GaussianSteps, ...]


def refuse_steps(what: str, example: str) -> NoReturn:
    """The error of steps that are none."""
    raise ConfideError("privacy.steps", f"{what}.", f"Give {example}.")


def merge(steps: Iterable[GaussianSteps]) -> Steps:
    """Equal mechanisms added up, in a fixed order: equal histories share one cache entry."""
    return tuple(
        GaussianSteps(noise_multiplier=z, sampling_rate=q, steps=n)
        for (z, q), n in sorted(_by_kind(steps).items())
        if n
    )


def covers(whole: Sequence[GaussianSteps], part: Sequence[GaussianSteps]) -> bool:
    """Whether ``whole`` holds every step of ``part``: same noise, same rate, as many or more."""
    counts = _by_kind(whole)
    return all(counts[kind] >= count for kind, count in _by_kind(part).items())


def missing(whole: Sequence[GaussianSteps], part: Sequence[GaussianSteps]) -> Steps:
    """The steps of ``whole`` that ``part`` does not have."""
    rest = _by_kind(whole) - _by_kind(part)  # a Counter drops what is not above zero
    return merge(
        GaussianSteps(noise_multiplier=z, sampling_rate=q, steps=n) for (z, q), n in rest.items()
    )


def has_noise(steps: Iterable[GaussianSteps]) -> bool:
    """Whether every step has noise."""
    return all(step.noise_multiplier > 0 for step in steps)


def is_plain(steps: Iterable[GaussianSteps]) -> bool:
    """Whether every step uses all units: sampling rate 1."""
    return all(step.sampling_rate == 1 for step in steps)


def is_number(value: Any) -> bool:
    """A plain number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_kind(steps: Iterable[GaussianSteps]) -> Counter[tuple[float, float]]:
    counts: Counter[tuple[float, float]] = Counter()
    for step in steps:
        counts[float(step.noise_multiplier), float(step.sampling_rate)] += step.steps
    return counts
