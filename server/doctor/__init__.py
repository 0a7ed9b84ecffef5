"""What is not private, or not sound, in a configuration or in a run: each with reason and remedy.

``privacy`` and ``noise`` hold the rules: pure functions of the settings and of a few public facts.
``run`` adds what a finished run folder shows. Reading a scenario or a file belongs to
``simulations.doctor``, which may also look at a prepared federation. Nothing here needs torch,
trains, or changes a file. A rule says nothing where a fact that it needs is not known, and that
is said once (``facts-unknown``).

Sources: Dwork and Roth 2014 (delta), Ponomareva et al. 2023 (which epsilon is worth something),
Sun et al. 2024 (both factors under noise), NIST SP 800-226 (unit, hazards of implementation), and
the project's own measurements (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How bad a finding is, worst first."""

    NOT_PRIVATE = "not private"  # no promise is left, or one that the text can do without
    NOT_SOUND = "not sound"  # the promise is weaker than it looks, or bought for nothing
    NOTE = "note"  # to be known


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong; ``name`` is stable, like the code of an error."""

    name: str
    severity: Severity
    what: str
    why: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "severity": str(self.severity)}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known beside the settings, and from where; empty or 0 where it is not.

    ``sizes`` are the units of privacy at each holder, ascending; where ``at_most``, upper bounds.
    ``trained`` is the number of trained values. ``column`` names persons in the text, of whom one
    has up to ``most_records`` records at one holder.
    """

    source: str = ""
    sizes: tuple[int, ...] = ()
    at_most: bool = False
    holders: int = 0
    trained: int = 0
    column: str = ""
    most_records: int = 0


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A fault of other systems that no setting of confide can bring about, and what prevents it."""

    fault: str
    guard: str
    test: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


GUARDS = (
    Guard(
        fault="Shuffled or fixed-size batches accounted as Poisson samples",
        guard="the only sampler is Plan.draw, from the numbers that are accounted; no setting",
        test="tests/common/privacy/test_plan.py::test_the_size_of_a_batch_varies_like_a_binomial",
    ),
    Guard(
        fault="A loss averaged over the batch or over its tokens",
        guard="before each charge the gradients of made-up records are held against each record"
        " alone (train.self-check)",
        test="tests/client/test_self_check.py::test_a_loss_that_mixes_examples_is_refused",
    ),
    Guard(
        fault="Losses, metrics, counts or label shares of private text sent along",
        guard="no message has a field for them; accuracy is the coordinator's, on its own text",
        test="tests/client/test_outgoing.py::test_nothing_of_the_kind_that_others_send_has_a_field",
    ),
    Guard(
        fault="Noise calibrated to the rounds that are expected rather than to all",
        guard="a plan is calibrated to every round of the run and charged by those released",
        test="tests/client/test_holder.py::test_the_noise_is_for_all_rounds_of_the_run",
    ),
    Guard(
        fault="Amplification by the drawing of holders claimed against the coordinator",
        guard="no accountant here takes a client rate, and no figure rests on not knowing who took"
        " part",
        test="tests/server/report/test_html.py::test_no_figure_rests_on_not_knowing_who_took_part",
    ),
)


def sort(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first, otherwise as they came."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))
