"""Which holders take part."""

from __future__ import annotations

from collections import Counter

from confide.server.selection import select

NODES = [41, 7, 19, 3, 88, 56, 2, 30]
ROUNDS = 4000
CHOSEN = 3


def chosen(number: int, nodes: list[int] = NODES, seed: int = 0) -> list[int]:
    return select(nodes, CHOSEN, seed=seed, round_number=number)


def test_zero_or_more_than_there_are_means_all_in_order() -> None:
    for count in (0, len(NODES), 100):
        assert select(NODES, count, seed=0, round_number=1) == sorted(NODES)


def test_as_many_as_asked_for_each_once_in_order() -> None:
    for number in range(100):
        found = chosen(number)
        assert len(found) == CHOSEN == len(set(found))
        assert found == sorted(found)
        assert set(found) <= set(NODES)


def test_a_resumed_run_chooses_as_the_first_would_have() -> None:
    assert [chosen(n) for n in range(20)] == [chosen(n, NODES[::-1]) for n in range(20)]


def test_rounds_and_seeds_choose_differently() -> None:
    assert len({tuple(chosen(n)) for n in range(50)}) > 20
    assert [chosen(n) for n in range(20)] != [chosen(n, seed=1) for n in range(20)]


def test_every_holder_is_chosen_equally_often() -> None:
    times = Counter(node for number in range(ROUNDS) for node in chosen(number))
    expected = ROUNDS * CHOSEN / len(NODES)
    sd = (expected * (1 - CHOSEN / len(NODES))) ** 0.5
    assert all(abs(times[node] - expected) < 5 * sd for node in NODES)
