"""Names by node: as the coordinator knows them, or as they were first accepted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Receipt
from confide.common.wire.messages import Refusal, Reply, Update
from confide.server.gate import Accepted, sift
from confide.server.senders import Senders
from tests.server.test_gate import CHANGE, receipt, update

NORTH, SOUTH = 11, 22
RECEIPT = Receipt.from_json(receipt())


def refusal(holder: str, code: str = "policy.max-epsilon") -> Refusal:
    return Refusal(holder=holder, task_hash="", code=code)


def judged(senders: Senders, replies: dict[int, Reply]) -> tuple[list[str], list[tuple[str, str]]]:
    """Who is accepted, and who is left out with which code, where every update is well made."""

    def passes(sent: Update, last: object) -> Accepted:
        return Accepted(sent.holder, CHANGE, RECEIPT, 0)

    accepted, left_out = sift(replies, passes, {}, (), senders)
    return sorted(accepted), [(row["holder"], row["code"]) for row in left_out]


def known(**names: int) -> Senders:
    return Senders(known=lambda: {node: name for name, node in names.items()})


def test_where_nodes_are_known_the_honest_one_stays_and_the_other_is_named() -> None:
    senders = known(north=NORTH, south=SOUTH)
    both: dict[int, Reply] = {NORTH: update(holder="north"), SOUTH: update(holder="north")}
    assert judged(senders, both) == (["north"], [("south", "gate.sender")])


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (update(holder="north"), "gate.sender"),
        (update(holder=""), "gate.name"),
        (update(holder="North"), "gate.sender"),
        (update(holder="node-11"), "gate.sender"),
        (refusal("north"), "gate.sender"),
        (refusal("south"), "policy.max-epsilon"),
        (refusal("", "transport.no-answer"), "transport.no-answer"),
        (refusal("south", "gate.ledger"), "holder.failed"),
    ],
)
def test_a_known_node_answers_under_its_own_name_or_none(reply: Reply, code: str) -> None:
    senders = known(north=NORTH, south=SOUTH)

    def checked(sent: Update, last: object) -> Accepted:
        raise ConfideError("gate.name", "It has none.")

    _, left_out = sift({SOUTH: reply}, checked, {}, (), senders)
    assert left_out == [{"holder": "south", "code": code}]


def test_a_node_that_was_shut_out_speaks_for_nobody() -> None:
    senders = known(north=NORTH)
    answers: dict[int, Reply] = {NORTH: update(holder="north"), SOUTH: update(holder="south")}
    assert judged(senders, answers) == (["north"], [("node-22", "gate.sender")])
    assert judged(senders, {SOUTH: refusal("north", "policy.x")}) == (
        [],
        [("node-22", "gate.sender")],
    )
    silent = refusal("", "transport.no-answer")
    assert judged(senders, {SOUTH: silent}) == ([], [("node-22", "transport.no-answer")])


def test_a_renewed_and_an_added_holder_are_known_from_the_next_round_on() -> None:
    names = {NORTH: "north"}
    senders = Senders(known=lambda: names)
    assert judged(senders, {NORTH: update(holder="north")}) == (["north"], [])
    names.clear()
    names.update({33: "north", 44: "south"})
    answers: dict[int, Reply] = {
        NORTH: update(holder="north"),
        33: update(holder="north"),
        44: update(holder="south"),
    }
    assert judged(senders, answers) == (["north", "south"], [("node-11", "gate.sender")])


def seen(*connected: int) -> tuple[Senders, Callable[..., None]]:
    """Senders that go by what they see, and by what changes who is connected."""
    there = list(connected)

    def now(*nodes: int) -> None:
        there[:] = nodes

    return Senders(lambda: there), now


def test_elsewhere_the_first_node_that_is_accepted_keeps_the_name() -> None:
    senders, _ = seen(NORTH, SOUTH)
    assert judged(senders, {NORTH: update(holder="north")}) == (["north"], [])
    both: dict[int, Reply] = {SOUTH: update(holder="north"), NORTH: update(holder="north")}
    assert judged(senders, both) == (["north"], [("node-22", "gate.sender")])
    # Also in a round for which the first was not asked, and also by a refusal.
    assert judged(senders, {SOUTH: update(holder="north")}) == ([], [("node-22", "gate.sender")])
    assert judged(senders, {SOUTH: refusal("north")}) == ([], [("node-22", "gate.sender")])


def test_elsewhere_a_node_has_one_name() -> None:
    senders, _ = seen(NORTH)
    judged(senders, {NORTH: update(holder="north")})
    assert judged(senders, {NORTH: update(holder="east")}) == ([], [("node-11", "gate.sender")])
    assert judged(senders, {NORTH: update(holder="north")}) == (["north"], [])


def test_elsewhere_two_that_give_one_name_at_once_cannot_be_told_apart() -> None:
    senders, _ = seen(NORTH, SOUTH)
    both: dict[int, Reply] = {SOUTH: update(holder="north"), NORTH: update(holder="north")}
    for _ in range(2):
        assert judged(senders, both) == ([], [("north", "gate.duplicate")] * 2)
    # Nobody has got the name by that.
    assert judged(senders, {NORTH: update(holder="north")}) == (["north"], [])


def test_elsewhere_a_refusal_takes_no_name() -> None:
    senders, _ = seen(NORTH, SOUTH)
    assert judged(senders, {SOUTH: refusal("north")}) == ([], [("north", "policy.max-epsilon")])
    assert judged(senders, {NORTH: update(holder="north")}) == (["north"], [])


def test_elsewhere_a_holder_that_comes_back_under_another_number_has_its_name_again() -> None:
    """As a SuperNode without a key does that was restarted."""
    senders, now = seen(NORTH, SOUTH)
    judged(senders, {NORTH: update(holder="north"), SOUTH: update(holder="south")})
    now(SOUTH, 33)
    assert judged(senders, {33: update(holder="north")}) == (["north"], [])
