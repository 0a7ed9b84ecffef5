"""Which holders take part."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.server.participants import KEY, select, selection_key
from confide.server.run_folder import RunFolder

NODES = [41, 7, 19, 3, 88, 56, 2, 30]
ROUNDS = 4000
CHOSEN = 3


def chosen(number: int, nodes: list[int] = NODES, key: bytes = b"a") -> list[int]:
    return select(nodes, CHOSEN, key=key, round_number=number)


def test_zero_or_more_than_there_are_means_all_in_order() -> None:
    for count in (0, len(NODES), 100):
        assert select(NODES, count, key=b"a", round_number=1) == sorted(NODES)


def test_as_many_as_asked_for_each_once_in_order() -> None:
    for number in range(100):
        found = chosen(number)
        assert len(found) == CHOSEN == len(set(found))
        assert found == sorted(found)
        assert set(found) <= set(NODES)


def test_a_resumed_run_chooses_as_the_first_would_have() -> None:
    assert [chosen(n) for n in range(20)] == [chosen(n, NODES[::-1]) for n in range(20)]


def test_rounds_and_keys_choose_differently() -> None:
    assert len({tuple(chosen(n)) for n in range(50)}) > 20
    assert [chosen(n) for n in range(20)] != [chosen(n, key=b"b") for n in range(20)]


def test_every_holder_is_chosen_equally_often() -> None:
    times = Counter(node for number in range(ROUNDS) for node in chosen(number))
    expected = ROUNDS * CHOSEN / len(NODES)
    sd = (expected * (1 - CHOSEN / len(NODES))) ** 0.5
    assert all(abs(times[node] - expected) < 5 * sd for node in NODES)


def test_a_pair_of_holders_is_drawn_together_as_often_as_chance_has_it() -> None:
    pairs = Counter(
        (one, other)
        for number in range(ROUNDS)
        for drawn in [chosen(number)]
        for one in drawn
        for other in drawn
        if one < other
    )
    expected = ROUNDS * CHOSEN * (CHOSEN - 1) / (len(NODES) * (len(NODES) - 1))
    assert len(pairs) == len(NODES) * (len(NODES) - 1) // 2
    assert all(abs(times - expected) < 5 * expected**0.5 for times in pairs.values())


def test_rounds_are_drawn_independently_of_each_other() -> None:
    node = NODES[0]
    drawn = [node in chosen(number) for number in range(ROUNDS)]
    twice = sum(a and b for a, b in pairwise(drawn))
    expected = ROUNDS * (CHOSEN / len(NODES)) ** 2
    assert abs(twice - expected) < 5 * expected**0.5


def test_the_key_is_secret_kept_for_a_resumed_run_and_new_for_another(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second")
    key = selection_key(first)
    assert len(key) == 32
    assert selection_key(RunFolder(tmp_path / "first")) == key
    assert selection_key(second) != key
    assert (first.path / KEY).stat().st_mode & 0o077 == 0


def test_a_damaged_key_is_not_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write(KEY, b"short")
    with pytest.raises(ConfideError, match=r"run\.resume") as caught:
        selection_key(folder)
    assert caught.value.hint
