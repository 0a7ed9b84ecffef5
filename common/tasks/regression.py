"""Regression: one text, one number in a declared range.

The loss is the squared error of each example. The range is the coordinator's, never taken from the
text; it is checked, since a misread column would otherwise train on numbers of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..errors import ConfideError
from .example import Prediction
from .pooled import PooledTask
from .task import Agreed, Described

if TYPE_CHECKING:
    from torch import Tensor

    from ..settings import TaskSpec
    from ..text.readers import Record

NUMBER = "value"  # the one label of its head


class Regression(PooledTask):
    """See the module's docstring."""

    kind = "regression"
    takes = ("word_dropout", "low", "high")
    scale = True
    known, shown = ("pearson", "spearman"), 2
    does = "gives a text a number from {low:g} to {high:g}"
    described: ClassVar[Described] = {"text-regression": {}}
    learns_from = ("scale",)
    problem_type = "regression"
    answer_code = "print(logits.squeeze(-1).tolist())\n"

    @classmethod
    def fits(cls, target: str | None, agreed: Agreed) -> bool:
        try:
            return agreed.low <= float(target or "") <= agreed.high
        except ValueError:
            return False

    @classmethod
    def in_words(cls, column: str, agreed: Agreed) -> str:
        return f"{column!r} a number from {agreed.low:g} to {agreed.high:g}"

    @classmethod
    def head_labels(cls, spec: TaskSpec) -> tuple[str, ...]:
        return (NUMBER,)

    @classmethod
    def begins_at(cls, spec: TaskSpec) -> float:
        """In the middle of its scale."""
        return (spec.low + spec.high) / 2

    @classmethod
    def line(cls, text: str, found: Prediction) -> str:
        return f"{found.answer:.3f}  {text}"

    def targets(self, records: Sequence[Record]) -> list[float]:
        """The number of each record.

        Raises:
            ConfideError: ``data.bad-number``; it names the record's number, never its content.
        """
        return [self._number(r.target, place) for place, r in enumerate(records, start=1)]

    def _number(self, target: str | None, place: int) -> float:
        try:
            number = float(target or "")
        except ValueError:
            number = math.nan
        low, high = self.spec.low, self.spec.high
        if not low <= number <= high:
            raise ConfideError(
                "data.bad-number",
                f"The target of record {place} is not a number in [{low:g}, {high:g}].",
                "Set task.low and task.high to the range of the scale, or correct the record.",
            )
        return number

    def no_target(self) -> float:
        return 0.0

    def made_up_target(self, number: int) -> float:
        return self.spec.low + (self.spec.high - self.spec.low) / (2 + number)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The squared error of each example (B,)."""
        return (logits.float().squeeze(-1) - targets) ** 2

    def answers(self, logits: Tensor) -> list[float]:
        return list(logits.float().squeeze(-1).tolist())

    def references(self, targets: Tensor) -> list[float]:
        return list(targets.tolist())

    def tell(self, logits: Tensor) -> list[Prediction]:
        return [Prediction(number) for number in self.answers(logits)]
