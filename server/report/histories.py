"""What a holder's accepted updates add up to, taken in one by one as metrics.jsonl is read.

Of a receipt only what the report needs is kept: the newest, where the ledger went back, which
updates told of no noise, and the steps at some of the rounds for the chart. So a history has a
bounded size, whatever the number of rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import ConfideError
from ...common.privacy.accountant import GaussianSteps
from ...common.privacy.chain import MOST_MECHANISMS, RECEIPT_KINDS
from ...common.privacy.ledger import Receipt
from . import Json

MOST_ROUNDS = 1_000_000
_KINDS = tuple((name, kind) for name, kind in RECEIPT_KINDS.items() if name != "limit")
_KEYS = set(RECEIPT_KINDS)
_STEP_KEYS = {"noise_multiplier", "sampling_rate", "steps"}
MOST_MARKS = 48  # rounds kept for the chart; when there are more, every other one is dropped


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round without its receipts. ``answered`` is only kept where somebody was left out;
    ``asked`` and ``connected`` are 0 where the run did not note them."""

    seconds: float | None
    bytes_up: float | None
    bytes_down: float | None
    left_out: tuple[tuple[str, str], ...]
    answered: frozenset[str]
    abandoned: bool
    asked: int
    connected: int

    @classmethod
    def of(cls, event: Json) -> Round:
        left_out = tuple((str(left["holder"]), str(left["code"])) for left in event["left_out"])
        who = (str(update["holder"]) for update in event["accepted"]) if left_out else ()
        return cls(
            seconds=event.get("seconds"),
            bytes_up=event.get("bytes_up"),
            bytes_down=event.get("bytes_down"),
            left_out=left_out,
            answered=frozenset(who),
            abandoned=event["abandoned"],
            asked=event.get("asked", 0),
            connected=event.get("connected", 0),
        )


@dataclass
class History:
    """One holder's accepted updates. ``updates`` counts every one, ``rounds`` those of different
    rounds, ``sums`` the different sums; ``bare`` lists rounds whose receipt tells of no noised
    step; ``breaks`` says where its ledger did not go on from the receipt before."""

    updates: int = 0
    rounds: int = 0
    sums: int = 0
    last_round: int = 0
    newest: Receipt | None = None
    bare: list[int] = field(default_factory=list)
    breaks: list[str] = field(default_factory=list)
    marks: list[tuple[int, tuple[GaussianSteps, ...]]] = field(default_factory=list)
    _seen: bytearray = field(default_factory=bytearray)
    _stride: int = 1
    _last: Mapping[str, Any] | None = None

    def take(self, number: int, told: Any, *, is_sum: bool = False) -> None:
        """One accepted update and its receipt as it was told; None where there is no receipt."""
        self.updates += 1
        self._count(number, is_sum=is_sum)
        receipt = told if _is_receipt(told) else None
        if receipt is None or not _all_noised(receipt["steps_run"]):
            self.bare.append(number)
        if receipt is None:
            return
        if self._last is not None:
            self._follow(self._last, receipt)
        self._last = receipt
        if self.rounds % self._stride == 0 or not self.marks:
            self._mark(number, receipt)

    def finish(self) -> None:
        """Keep the newest receipt in full; its round always ends the chart's line."""
        if self._last is None:
            return
        self.newest = Receipt.from_json(self._last)
        if self.marks[-1][0] != self.last_round:
            self.marks.append((self.last_round, self.newest.steps_run))

    def _count(self, number: int, *, is_sum: bool) -> None:
        if number >= len(self._seen):
            self._seen.extend(bytes(number + 1 - len(self._seen)))
        if not self._seen[number]:
            self._seen[number] = 1
            self.sums += is_sum
            self.rounds += not is_sum
        self.last_round = max(self.last_round, number)

    def _follow(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Between two receipts a ledger grows; a restored backup would step back."""
        if after["ledger_id"] != before["ledger_id"]:
            self.breaks.append("another ledger took over")
        elif after["entries"] < before["entries"] or _spent(after) < _spent(before):
            self.breaks.append("its ledger went back")
        elif after["entries"] == before["entries"] and after["head"] != before["head"]:
            self.breaks.append("its ledger was rewritten")

    def _mark(self, number: int, receipt: Mapping[str, Any]) -> None:
        self.marks.append((number, tuple(map(GaussianSteps.from_json, receipt["steps_run"]))))
        if len(self.marks) > MOST_MARKS:
            self.marks = self.marks[::2]
            self._stride *= 2


def add_round(histories: dict[str, History], event: Json) -> None:
    """Take in every accepted update of the line of a round, or of a sum."""
    number = event["round"]
    if type(number) is not int or not 0 <= number <= MOST_ROUNDS:
        raise ConfideError(
            "report.metrics",
            f"metrics.jsonl has a round {number!r}; rounds are whole numbers.",
            "Restore the file; the report is computed from it.",
        )
    for update in event["accepted"]:
        name = str(update["holder"])
        history = histories.get(name)
        if history is None:
            history = histories[name] = History()
        history.take(number, update.get("receipt"), is_sum=event["event"] == "sum")


def _is_receipt(told: Any) -> bool:
    """Whether it is one; each comes from another machine, so each is checked in full. A million of
    them are, so what plainly is a receipt is not made into an object first."""
    if _plainly(told):
        return True
    try:
        Receipt.from_json(told)
    except ConfideError:
        return False
    return True


def _plainly(told: Any) -> bool:
    """Whether ``Receipt.from_json`` would accept it; False is no answer."""
    if type(told) is not dict or told.keys() != _KEYS:
        return False
    for name, kind in _KINDS:
        if type(told[name]) is not kind:
            return False
    if not (0 <= told["epsilon"] <= told["proven"] and 0 < told["delta"] < 1):
        return False
    if told["limit"] is not None and not (type(told["limit"]) is float and told["limit"] >= 0):
        return False
    if told["entries"] < 1 or told["runs"] < 1:
        return False
    steps = told["steps_run"]
    return len(steps) <= MOST_MECHANISMS and all(_plain_steps(step) for step in steps)


def _plain_steps(step: Any) -> bool:
    if type(step) is not dict or step.keys() != _STEP_KEYS:
        return False
    noise, rate, count = step["noise_multiplier"], step["sampling_rate"], step["steps"]
    right = type(noise) is float and type(rate) is float and type(count) is int
    return right and 0 <= noise < float("inf") and 0 < rate <= 1 and count >= 0


def _all_noised(steps: list[Mapping[str, Any]]) -> bool:
    return bool(steps) and all(step["noise_multiplier"] > 0 for step in steps)


def _spent(receipt: Mapping[str, Any]) -> float:
    epsilon = receipt["epsilon"]
    return float("inf") if epsilon is None else float(epsilon)
