"""How fast a round learns, when a run has learnt enough, and which adapter is the best: from the
round's number and from what was measured on public text, so that it costs no privacy.

The rate is the coordinator's: it steps with it, or sends it in the round's own settings. Both
functions look at the whole history each time, so a resumed run goes on as if never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..common.settings import Settings, TrainSpec

# Of a plateau: so many measurements without a better one halve the rate.
_PATIENCE, _FACTOR = 2, 0.5
_BETTER = 1e-4  # relative: what is less is no progress


def rate_of(train: TrainSpec, number: int, rounds: int, losses: Sequence[float]) -> float:
    """The rate of round ``number`` (from 1) of ``rounds``; always above 0.

    Args:
        losses: on public text, before the first round and after each one that was not abandoned.
    """
    if number <= train.warmup:
        return train.lr * number / (train.warmup + 1)
    left = (rounds - number + 1) / max(rounds - train.warmup, 1)  # 1 at first, above 0 at last
    if train.schedule == "linear":
        return train.lr * left
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    if train.schedule == "plateau":
        return train.lr * _FACTOR ** _plateaus(losses)
    return train.lr


def measured_after(settings: Settings, number: int) -> tuple[bool, bool]:
    """Whether the public text is scored after round ``number``, and whether the model writes for
    it, too. What is measured after the last round is not decided here: a run always is."""
    after, needed = settings.round, settings.round.patience or settings.train.schedule == "plateau"
    written = _every(after.generate_every, number)
    return bool(needed) or written or _every(after.evaluate_every, number), written


def _every(rounds: int, number: int) -> bool:
    return rounds > 0 and number % rounds == 0


def is_done(losses: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` measurements brought nothing better; never with 0."""
    return patience > 0 and _since_best(losses) >= patience


def best_round(losses: Mapping[int, float]) -> int:
    """The round after which the loss was least, the earliest of equals; where no loss is a number,
    the latest. Before the first (0) nothing was learnt, so it is none.

    Args:
        losses: on public text, by round; at least one.
    """
    known = {number: loss for number, loss in losses.items() if number and not math.isnan(loss)}
    return min(known, key=lambda number: (known[number], number), default=max(losses))


def _plateaus(losses: Sequence[float]) -> int:
    found, since, best = 0, 0, math.inf
    for loss in losses:
        if _is_better(loss, best):
            since, best = 0, loss
            continue
        since += 1
        if since >= _PATIENCE:
            found, since = found + 1, 0
    return found


def _since_best(losses: Sequence[float]) -> int:
    best, since = math.inf, 0
    for loss in losses:
        since = 0 if _is_better(loss, best) else since + 1
        best = min(best, loss) if not math.isnan(loss) else best
    return since


def _is_better(loss: float, best: float) -> bool:
    """False for a loss that is no number."""
    return loss < best - _BETTER * abs(best) if math.isfinite(best) else loss < math.inf
