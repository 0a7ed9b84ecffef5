"""The privacy numbers of a run, in one frozen object that makes everything out of them.

Sampler, noise and accounting event come from the same fields, so that the accounting cannot
drift from what ran. A plan holds public numbers alone: never a record, a count or a seed.
Noise is calibrated to the largest participation (``max_rounds``) and accounted by the real one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfideError
from . import Unit as Unit
from .accountant import GaussianSteps, calibrate
from .noise import SecureGenerator

if TYPE_CHECKING:
    import dp_accounting  # type: ignore[import-untyped,unused-ignore]


class Trust(StrEnum):
    """Who adds the noise, and so whom it protects against."""

    LOCAL = "local"  # each holder, all of it, in every step: against everyone
    DISTRIBUTED = "distributed"  # each a share, and a secure sum hides it: against who sees the sum
    OFF = "off"  # nobody: for comparison, never a promise


class Relation(StrEnum):
    """Which data sets are neighbours."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    ZERO_OUT = "zero-out"  # a holder's update is replaced by zero; that it takes part is public


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One holder's part: per round ``steps_per_round`` sums over Poisson batches, each unit's
    term clipped to L2 norm ``clip_norm``, each sum with noise of std ``noise_std``. A person's
    term is clipped as a whole, whatever the number of records, so that no group factor appears.

    Where the unit is the holder its whole update is the one term, with ``sampling_rate`` 1 and one
    step a round, whatever goes on inside (McMahan et al. 2018, for users); neighbours differ by
    that update replaced with zero.

    With ``trust = off`` the noise multiplier is 0 and there is no promise; otherwise it is > 0.
    With ``trust = distributed`` the noise is that of a secure sum of at least ``least``
    contributions, of which ``colluding`` may tell theirs; each holder adds a share of it
    (``shares``). Otherwise a holder is alone with it: ``least`` is 1, ``colluding`` 0.
    """

    unit: Unit = Unit.RECORD
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    trust: Trust = Trust.LOCAL
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps_per_round: int
    max_rounds: int
    delta: float
    least: int = 1
    colluding: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("unit", Unit), ("relation", Relation), ("trust", Trust)):
            if not isinstance(getattr(self, name), kind):
                _refuse(name, getattr(self, name), f"one of {', '.join(kind)}")
        for name in ("clip_norm", "noise_multiplier", "sampling_rate", "delta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                _refuse(name, value, "a finite number")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one plan, one hash
        for name in ("steps_per_round", "max_rounds", "least"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                _refuse(name, value, "a whole number >= 1")
        self._check_sum()
        self._check_holder()
        if self.clip_norm <= 0:
            _refuse("clip_norm", self.clip_norm, "above 0")
        if not 0 < self.sampling_rate <= 1:
            _refuse("sampling_rate", self.sampling_rate, "in (0, 1]")
        if not 0 < self.delta < 1:
            _refuse("delta", self.delta, "in (0, 1)")
        if self.noise_multiplier < 0 or (self.noise_multiplier == 0) != (self.trust is Trust.OFF):
            _refuse("noise_multiplier", self.noise_multiplier, "above 0, and 0 with trust = off")

    def _check_sum(self) -> None:
        """The conditions of the theorem in ``shares``."""
        shared = self.trust is Trust.DISTRIBUTED
        most = self.least - 1 if shared else 0
        if type(self.colluding) is not int or not 0 <= self.colluding <= most:
            _refuse("colluding", self.colluding, "a whole number >= 0, below least")
        if (self.least > 1) != shared:
            _refuse("least", self.least, "1, or 2 and more with trust = distributed")
        if shared and self.steps_per_round != 1:
            _refuse("steps_per_round", self.steps_per_round, "1 with trust = distributed")

    def _check_holder(self) -> None:
        """A holder alone would drown in its noise: only a sum can have a holder for its unit."""
        whole = self.unit is Unit.HOLDER
        if whole != (self.relation is Relation.ZERO_OUT):
            _refuse("relation", self.relation, f"that of the unit {self.unit}")
        if whole and self.trust is Trust.LOCAL:
            _refuse("trust", self.trust, "distributed (two contributions or more), or off, here")
        if whole and (self.sampling_rate, self.steps_per_round) != (1, 1):
            _refuse("sampling_rate", self.sampling_rate, "1, and one step, for the unit holder")

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        sampling_rate: float,
        steps_per_round: int,
        max_rounds: int,
        clip_norm: float,
        unit: Unit = Unit.RECORD,
        trust: Trust = Trust.LOCAL,
        least: int = 1,
        colluding: int = 0,
        besides: tuple[GaussianSteps, ...] = (),
    ) -> Plan:
        """The plan whose ``max_rounds`` rounds, together with what the run releases ``besides``,
        spend at most ``epsilon`` by PLD."""
        if trust is Trust.OFF:
            noise_multiplier = 0.0
        else:
            noise_multiplier = calibrate(
                epsilon=epsilon,
                delta=delta,
                sampling_rate=sampling_rate,
                steps=steps_per_round * max_rounds,
                besides=besides,
            )
        return cls(
            unit=unit,
            relation=relation_of(unit),
            trust=trust,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            steps_per_round=steps_per_round,
            max_rounds=max_rounds,
            delta=delta,
            least=least,
            colluding=colluding,
        )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the *sum*, in gradient units."""
        return self.noise_multiplier * self.clip_norm

    @property
    def honest(self) -> int:
        """How many shares of noise are left of the fewest contributions, once all who may collude
        have told theirs; 1 where each holder adds all of it."""
        return self.least - self.colluding

    @property
    def share_std(self) -> float:
        """Standard deviation of the noise that one holder adds, in gradient units."""
        return self.noise_std / math.sqrt(self.honest)

    def unmasked(self, rounds: int = 1) -> GaussianSteps:
        """What ``rounds`` rounds release to somebody before whom every mask fails: the same as
        ``steps`` where there is none."""
        whole = self.steps(rounds)
        return replace(whole, noise_multiplier=whole.noise_multiplier / math.sqrt(self.honest))

    def steps(self, rounds: int = 1) -> GaussianSteps:
        """What ``rounds`` rounds release, empty batches included: they are steps of pure noise."""
        return GaussianSteps(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps_per_round * _whole("rounds", rounds),
        )

    def event(self, rounds: int = 1) -> dp_accounting.DpEvent:
        """The same as an event that any accountant of dp-accounting can compose."""
        import dp_accounting  # takes a second, and only reports and tests need it

        if self.trust is Trust.OFF:
            return dp_accounting.NonPrivateDpEvent()
        step = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.steps(rounds).steps)

    def draw(self, units: int, generator: SecureGenerator) -> NDArray[np.int64]:
        """One Poisson batch: ascending indices below ``units``, each in with probability
        ``sampling_rate`` independently of all others; often of another size, at times empty."""
        coins = generator.bernoulli(_whole("units", units), self.sampling_rate)
        return np.flatnonzero(coins).astype(np.int64)

    def check_units(self, n: int) -> None:
        """Refuse a delta at or above 1/n: publishing one unit whole would be within it."""
        if _whole("units", n) < 1:
            raise ConfideError("privacy.units", f"There is no {self.unit} to train on.")
        if self.trust is not Trust.OFF and self.delta >= 1 / n:
            raise ConfideError(
                "privacy.delta",
                f"delta = {self.delta:g} is not below 1/n = {1 / n:g}.",
                f"Choose privacy.delta at most {0.1 / n:.1g}, or use more {self.unit}s.",
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of text and numbers; ``from_json(p.to_json()) == p``."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Strict: exactly the fields of a plan, each checked like a new one."""
        names = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise ConfideError("privacy.plan", f"A plan has exactly {', '.join(sorted(names))}.")
        kinds = {"unit": Unit, "relation": Relation, "trust": Trust}
        values = dict(data)
        for name, kind in kinds.items():
            if values[name] not in list(kind):
                _refuse(name, values[name], f"one of {', '.join(kind)}")
            values[name] = kind(values[name])
        return cls(**values)


def relation_of(unit: Unit) -> Relation:
    """Which texts are neighbours where that is the unit."""
    return Relation.ZERO_OUT if unit is Unit.HOLDER else Relation.ADD_OR_REMOVE_ONE


def _whole(name: str, value: int) -> int:
    if type(value) is not int or value < 0:
        _refuse(name, value, "a whole number >= 0")
    return value


def _refuse(name: str, value: Any, rule: str) -> None:
    raise ConfideError("privacy.plan", f"The plan's {name} = {value!r} is not {rule}.")
