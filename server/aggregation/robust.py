"""Rules that combine the changes of a round although some of them may be hostile.

What the gate cannot tell from an honest change (a turned sign, a length within the bound) is left
to these. They are post-processing of private changes and cost no privacy; they cost accuracy, since
each looks at fewer changes than there are. ``f`` is how many hostile holders are assumed, ``n`` how
many changes there are.

| rule | what it gives | withstands | needs | source |
|---|---|---|---|---|
| mean | the mean | none: one holder moves it anywhere | n >= 1 | McMahan et al. 2017 |
| median | the middle of each value | f < n / 2 | n >= 2f + 1 | Yin et al. 2018 |
| trimmed-mean | the mean without f at each end | f | n >= 2f + 1 | Yin et al. 2018 |
| krum | the change closest to n - f - 2 others | f | n >= 2f + 3 | Blanchard et al. 2017 |
| multi-krum | the mean of the n - f closest ones | f | n >= 2f + 3 | Blanchard et al. 2017 |
| geometric-median | least sum of distances | f < n / 2 | n >= 2f + 1 | Pillutla et al. 2022 |

Every rule is float64 and depends on names and changes alone, never on the order of arrival: where
two values of Krum tie, the first name wins. The median of an even number is the mean of the two in
the middle. Fewer holders than a rule needs are refused. The changes must be finite (the gate).
Noise hides: what is closer than the noise of an honest change to the others is left to the mean.

The mean serves ``aggregate.method`` ``lora`` and ``ffa`` alike. With ``ffa`` (Sun et al. 2024,
"Improving LoRA in privacy-preserving federated learning") A is frozen and the mean of B is the mean
of the product BA exactly; with ``lora`` A and B are averaged apart, which is not the mean of the
products and has noise squared in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.errors import ConfideError
from ...common.settings.combinations import fewest_holders, hostile_holders


def mean_change(changes: Mapping[str, Tensor]) -> Tensor:
    """Uniform mean (M,) of the changes by holder; empty input is refused."""
    if not changes:
        raise ConfideError("aggregate.empty", "No update was accepted, so there is no mean.")
    # A running sum: a stack of a thousand holders in float64 would be the largest thing here.
    total = torch.zeros_like(next(iter(changes.values())), dtype=torch.float64)
    for holder in sorted(changes):
        total += changes[holder]
    return (total / len(changes)).float()


OUTLIER = "aggregate.outlier"  # the code of a holder whose change a rule has left out

_VALUES = 1 << 21  # of a stack in float64, 16 MiB, whatever the number of holders
_MOST_STEPS = 1000  # of Weiszfeld's iteration, which is at rest after some dozens
_AT_REST = 1e-12  # change of the weights
_SMOOTH = 1e-6  # of the least distance: a change exactly in the middle has no infinite weight


@dataclass(frozen=True)
class Combined:
    """The combined change (M,), float32, and the names of those that it was made without."""

    change: Tensor
    outliers: tuple[str, ...] = ()


def combine(changes: Mapping[str, Tensor], rule: str, byzantine: int = 0) -> Combined:
    """One change out of those of all holders (each (M,), finite).

    Args:
        rule: ``aggregate.robust``.
        byzantine: ``aggregate.byzantine``; 0 stands for one holder in five.

    Raises:
        ConfideError: ``aggregate.empty``, or ``aggregate.too-few`` where the rule needs more.
    """
    if rule == "mean":
        return Combined(mean_change(changes))
    names = sorted(changes)
    f = hostile_holders(byzantine, len(names))
    least = fewest_holders(rule, f)
    if len(names) < least:
        raise ConfideError(
            "aggregate.too-few",
            f"aggregate.robust = {rule!r} needs {least} updates against {f} hostile ones; there"
            f" are {len(names)}.",
            "Raise round.min-holders, or choose another rule.",
        )
    rows = [changes[name] for name in names]
    if rule == "median":
        return Combined(_by_value(rows, lambda stack: _middle(stack, (len(rows) - 1) // 2)))
    if rule == "trimmed-mean":
        return Combined(_by_value(rows, lambda stack: _middle(stack, f)))
    distances = _distances(rows)
    if rule == "geometric-median":
        return Combined(_weighted(rows, _weiszfeld(distances)))
    order = _by_score(distances, f)
    chosen = order[:1] if rule == "krum" else order[: len(names) - f]
    weights = torch.zeros(len(names), dtype=torch.float64)
    weights[chosen] = 1 / len(chosen)
    far = sorted(order[len(names) - f :])
    return Combined(_weighted(rows, weights), tuple(names[i] for i in far))


def _parts(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """The changes (n, m) in float64, some values of all holders at a time."""
    width = max(1, _VALUES // len(rows))
    for start in range(0, rows[0].numel(), width):
        yield torch.stack([row[start : start + width] for row in rows]).double()


def _by_value(rows: Sequence[Tensor], rule: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([rule(part) for part in _parts(rows)]).float()


def _middle(stack: Tensor, cut: int) -> Tensor:
    """The mean of each column (n, m) without the ``cut`` smallest and largest: (m,)."""
    return stack.sort(dim=0).values[cut : len(stack) - cut].mean(dim=0)


def _weighted(rows: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of the changes by weights (n,): (M,). A weight of zero leaves a change out."""
    used = [i for i in range(len(rows)) if weights[i] > 0]
    kept = [rows[i] for i in used]
    return torch.cat([weights[used] @ part for part in _parts(kept)]).float()


def _distances(rows: Sequence[Tensor]) -> Tensor:
    """Squared L2 distances (n, n), from differences: a product of the changes would cancel."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in _parts(rows):
        for i, row in enumerate(part):
            total[i] += (part - row).square().sum(dim=1)
    return total


def _by_score(distances: Tensor, f: int) -> list[int]:
    """Holders by the sum of squared distances to their n - f - 2 closest others, least first."""
    count = len(distances)
    others = distances.clone()
    others.fill_diagonal_(torch.inf)  # nobody is close to itself
    scores = others.sort(dim=1).values[:, : count - f - 2].sum(dim=1)
    return torch.sort(scores, stable=True).indices.tolist()


def _weiszfeld(distances: Tensor) -> Tensor:
    """Weights (n,) of the geometric median, which is a mean of the changes by weights.

    The distance of change i from the mean by weights w is, squared,
    sum_j w_j D_ij - 1/2 sum_jk w_j w_k D_jk, so that the changes themselves are not needed.
    """
    apart = distances.sqrt()
    near = apart[apart > 0]
    if not len(near):
        return torch.full((len(apart),), 1 / len(apart), dtype=torch.float64)
    least = float(near.min())
    # From the change with the least sum: from the mean, one at 1e12 would take long to leave.
    apart = apart[int(apart.sum(dim=1).argmin())].clamp(min=least)
    weights = (1 / apart) / (1 / apart).sum()
    for _ in range(_MOST_STEPS):
        mixed = distances @ weights
        apart = (mixed - 0.5 * (weights @ mixed)).clamp(min=0).sqrt()
        pull = 1 / apart.clamp(min=_SMOOTH * least)
        moved = pull / pull.sum()
        rest = float((moved - weights).abs().max()) <= _AT_REST
        weights = moved
        if rest:
            break
    return weights
