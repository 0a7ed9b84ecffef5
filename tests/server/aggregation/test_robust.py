"""The robust rules against their definitions written out slowly, and what they withstand."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from confide.common.errors import ConfideError
from confide.common.settings.combinations import ROBUST, fewest_holders, hostile_holders
from confide.server.aggregation import combine, mean_change, robust

RULES = sorted(ROBUST)
SIZE = 40
CLOSE = 1e-5


def changes(count: int, seed: int = 0, size: int = SIZE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"h{i:02d}": torch.randn(size, generator=generator) for i in range(count)}


def slow_scores(rows: list[Tensor], f: int) -> list[float]:
    """Krum's scores as Blanchard et al. 2017 define them."""
    scores = []
    for i, row in enumerate(rows):
        to_others = sorted(
            float((row.double() - other.double()).square().sum())
            for j, other in enumerate(rows)
            if j != i
        )
        scores.append(sum(to_others[: len(rows) - f - 2]))
    return scores


def slow(rule: str, given_changes: dict[str, Tensor], f: int) -> tuple[Tensor, list[str]]:
    names = sorted(given_changes)
    rows = [given_changes[name].double() for name in names]
    columns = list(zip(*(row.tolist() for row in rows), strict=True))
    if rule == "mean":
        return torch.tensor([statistics.fmean(c) for c in columns]), []
    if rule == "median":
        return torch.tensor([statistics.median(c) for c in columns]), []
    if rule == "trimmed-mean":
        kept = [sorted(column)[f : len(rows) - f] for column in columns]
        return torch.tensor([statistics.fmean(c) for c in kept]), []
    scores = slow_scores(rows, f)
    order = sorted(range(len(rows)), key=lambda i: (scores[i], names[i]))
    far = sorted(names[i] for i in order[len(rows) - f :])
    chosen = order[:1] if rule == "krum" else order[: len(rows) - f]
    return torch.stack([rows[i] for i in chosen]).mean(0), far


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "geometric-median"])
@pytest.mark.parametrize(("count", "byzantine"), [(5, 0), (5, 1), (8, 1), (9, 3), (10, 2), (12, 0)])
def test_a_rule_is_what_its_paper_says(rule: str, count: int, byzantine: int) -> None:
    f = hostile_holders(byzantine, count)
    for seed in range(12):
        made = changes(count, seed, size=5)  # few values, so that distances differ much
        expected, far = slow(rule, made, f)
        found = combine(made, rule, byzantine)
        assert torch.allclose(found.change.double(), expected.double(), atol=CLOSE)
        assert list(found.outliers) == far
        assert found.change.dtype == torch.float32


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_no_point_beside_the_geometric_median_is_closer_to_all(count: int) -> None:
    made = changes(count, seed=count)
    rows = torch.stack(list(made.values())).double()

    def distance(point: Tensor) -> float:
        return float((rows - point).norm(dim=1).sum())

    found = combine(made, "geometric-median").change.double()
    generator = torch.Generator().manual_seed(1)
    for step in (1.0, 1e-2, 1e-3):
        for _ in range(50):
            aside = step * torch.randn(SIZE, generator=generator, dtype=torch.float64)
            assert distance(found) <= distance(found + aside) + 1e-9


def test_the_geometric_median_of_a_line_is_its_middle_also_where_it_is_a_holders() -> None:
    line = {str(i): torch.tensor([float(x), 0.0]) for i, x in enumerate((0, 1, 2, 50, 1000))}
    assert torch.allclose(
        combine(line, "geometric-median").change, torch.tensor([2.0, 0.0]), atol=1e-3
    )


@pytest.mark.parametrize("rule", RULES)
def test_equal_changes_come_back_as_they_are(rule: str) -> None:
    same = {name: torch.linspace(-1, 1, SIZE) for name in changes(6)}
    assert torch.allclose(combine(same, rule).change, torch.linspace(-1, 1, SIZE), atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(count=st.integers(5, 9), size=st.integers(1, 30), seed=st.integers(0, 2**20))
def test_the_order_of_arrival_does_not_change_one_bit(
    rule: str, count: int, size: int, seed: int
) -> None:
    made = changes(count, seed, size)
    names = list(made)
    random.Random(seed).shuffle(names)
    first, other = combine(made, rule), combine({name: made[name] for name in names}, rule)
    assert torch.equal(first.change, other.change)
    assert first.outliers == other.outliers


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_moves_and_scales_with_the_changes(rule: str) -> None:
    made, aside = changes(8), torch.linspace(-3, 3, SIZE)
    found = combine(made, rule).change
    moved = combine({n: 2 * c + aside for n, c in made.items()}, rule).change
    assert torch.allclose(moved, 2 * found + aside, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_many_values_are_taken_in_parts_with_the_same_result(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = combine(changes(7), rule)
    monkeypatch.setattr(robust, "_VALUES", 7 * 3)
    cut = combine(changes(7), rule)
    assert torch.allclose(cut.change, whole.change, atol=1e-6)
    assert cut.outliers == whole.outliers


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mean"])
def test_hostile_changes_up_to_the_breakdown_point_move_it_little_however_long(rule: str) -> None:
    count = 11
    f = (count - ROBUST[rule]) // 2
    honest = changes(count)
    widest = max(float(a.sub(b).norm()) for a, b in itertools.combinations(honest.values(), 2))
    for length in (1e3, 1e6, 1e12):
        names = list(honest)
        hostile = {name: torch.full((SIZE,), length) for name in names[:f]}
        found = combine(honest | hostile, rule, f)
        kept = torch.stack([honest[name] for name in names[f:]]).mean(0)
        assert float((found.change - kept).norm()) <= widest * SIZE**0.5
        if "krum" in rule:
            assert list(found.outliers) == names[:f]


def test_one_hostile_holder_moves_the_mean_anywhere() -> None:
    hostile = {"h00": torch.full((SIZE,), 1e12)}
    assert float(combine(changes(11) | hostile, "mean").change.norm()) > 1e11


def test_of_an_even_number_the_median_is_the_mean_of_the_middle_two() -> None:
    made = {str(i): torch.tensor([x]) for i, x in enumerate((1.0, 2.0, 10.0, 100.0))}
    assert combine(made, "median").change.item() == 6.0


def test_where_scores_tie_the_first_name_is_chosen() -> None:
    tie = {
        name: torch.tensor([x])
        for name, x in zip("edcba", (1.0, 1.0, 0.0, -1.0, -1.0), strict=True)
    }
    assert combine(tie, "krum", 1).change.item() == -1.0  # those at 1 and at -1 tie
    same = {name: torch.zeros(2) for name in "edcba"}
    assert combine(same, "multi-krum", 1).outliers == ("e",)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mean"])
def test_fewer_holders_than_a_rule_needs_are_refused(rule: str) -> None:
    least = fewest_holders(rule, 2)
    assert combine(changes(least), rule, 2)
    with pytest.raises(ConfideError, match=rf"aggregate\.too-few.*needs {least} updates"):
        combine(changes(least - 1), rule, 2)


@pytest.mark.parametrize("count", range(1, 60))
def test_one_in_five_is_never_more_than_a_rule_can_stand(count: int) -> None:
    f = hostile_holders(0, count)
    assert f == max(1, count // 5)
    for rule in RULES:
        assert fewest_holders(rule, f) <= max(count, fewest_holders(rule, 1))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_accepted_is_refused(rule: str) -> None:
    with pytest.raises(ConfideError, match=r"aggregate\.(empty|too-few)"):
        combine({}, rule)


def test_the_mean_is_that_of_all() -> None:
    assert torch.equal(combine(changes(5), "mean").change, mean_change(changes(5)))
