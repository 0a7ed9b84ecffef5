"""The end of the budget: the last affordable round runs, the next one opens no file of text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import Update
from tests.client.conftest import Place, code, least_limit

DELTA, NOISE = 1e-3, 4.0
AFFORDABLE, ROUNDS = 3, 10

_watching: list[list[Path]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells of every file that is opened, by whatever call; a hook cannot be removed."""
    if event == "open" and _watching and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _watching[-1].append(Path(os.fsdecode(arguments[0])))


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """Every file that is opened from here on."""
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    _watching.append([])
    yield _watching[-1]
    _watching.pop()


_installed: list[bool] = []


def steps(rounds: int, rate: float) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=NOISE, sampling_rate=rate, steps=rounds)


@pytest.mark.parametrize("rate", [1.0, 0.25], ids=["every record", "sampled"])
def test_after_the_last_affordable_round_no_text_is_opened_and_nothing_overspent(
    make_place: Callable[..., Place], opened: list[Path], rate: float
) -> None:
    place = make_place(privacy__noise_multiplier=NOISE, round__count=ROUNDS, train__rate=rate)
    limit = least_limit((steps(ROUNDS, rate),), (steps(AFFORDABLE, rate),), DELTA)
    place.restart(max_epsilon=limit)
    for number in range(1, AFFORDABLE + 1):
        opened.clear()
        assert isinstance(place.holder.handle(place.task(number)), Update)
        assert place.data in opened
        place.restart()
    for number in range(AFFORDABLE + 1, ROUNDS + 1):
        task = place.task(number)
        opened.clear()
        assert code(place.holder.handle(task)) == "ledger.budget-exhausted"
        assert place.data not in opened
        place.restart()
    with Ledger.open(place.site.ledger) as ledger:
        assert ledger.steps() == (steps(AFFORDABLE, rate),)
        assert ledger.epsilon(DELTA) <= limit
