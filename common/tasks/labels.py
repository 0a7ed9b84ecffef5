"""``task.labels`` and the numbers that go with them, for the tasks that have labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ..text.rows import label_places

if TYPE_CHECKING:
    from ..settings import TaskSpec
    from .task import Refuse

# Of class weights and rates that come from a noisy sum over the holders; numbers may follow it.
COUNTED = "counted"
_FEWEST = {1: "one name", 2: "two different names"}


@lru_cache(maxsize=8)
def places_of(labels: tuple[str, ...]) -> Callable[[str], int | None]:
    """``label_places``, made once and not for each record."""
    return label_places(labels)


def numbers_in(text: str) -> tuple[float, ...]:
    """A comma-separated list; NaN for what is no number."""
    return tuple(_number_or_nan(part) for part in text.split(",") if part.strip())


def _number_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_labels(task: TaskSpec, fewest: int, refuse: Refuse) -> None:
    """Refuse too few labels, or two of one name."""
    labels = task.label_names
    if len(labels) < fewest or len(set(labels)) < len(labels):
        refuse(
            f"task.labels = {task.labels!r:.100} names {len(set(labels))} different classes.",
            f"Give at least {_FEWEST[fewest]}, separated by commas.",
        )


def check_weights(task: TaskSpec, refuse: Refuse, *, countable: bool) -> None:
    """Refuse weights and rates that are not one number in range for each label, and not to be
    counted either, which ``combinations`` refuses where none is ``countable``."""
    classes = len(task.label_names)
    counts = f", or {COUNTED!r} for what a noisy count at the holders gives" if countable else ""
    lists = (("class-weights", task.class_weights, 1e6), ("class-rates", task.class_rates, 1.0))
    for name, text, most in lists:
        numbers = numbers_in(text.removeprefix(COUNTED))
        fits = len(numbers) == classes and all(0 < n <= most for n in numbers)
        if text not in ("", COUNTED) and not fits:
            refuse(
                f"task.{name} = {text!r:.100} is not {classes} numbers in (0, {most:g}].",
                f"Give one for each of task.labels, in their order, with commas between{counts}.",
            )
