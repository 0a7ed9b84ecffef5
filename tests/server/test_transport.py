"""The transport over a grid that is late, silent, wrong or broken."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.common.errors import ConfideError
from confide.common.wire.messages import (
    Refusal,
    Reply,
    TrainRequest,
    Update,
    reply_to_records,
    request_from_records,
)
from confide.server import transport
from confide.server.transport import GridTransport, wait_for_nodes
from tests.messages import framed, opened, record

TASK = TrainRequest(
    run="r", round=4, settings={"a.b": 1}, schema="s", sent="1", rest="0" * 64, adapter=b"1234"
)
SECRET = "the private text of a record"
PATIENT, SHORT = 20.0, 0.2  # seconds; the first is never waited for

Answer = Callable[[Message], Message | None]


@pytest.fixture(autouse=True)
def _inside_a_server_app(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(transport, "_POLL_SECONDS", 0.01)


def update(node: int) -> Update:
    return Update(
        holder=f"holder-{node:02d}",
        run="r",
        round=4,
        task_hash=TASK.hash,
        schema="s",
        encoding="fp32",
        receipt={"head": "h"},
        values=b"\0" * 8,
    )


def good(message: Message) -> Message:
    assert request_from_records(message.content) == TASK
    return Message(reply_to_records(update(message.metadata.dst_node_id)), reply_to=message)


def failed(message: Message) -> Message:
    return Message(Error(code=4, reason=SECRET), reply_to=message)


def silent(message: Message) -> None:
    return None


def saying(records: RecordDict) -> Answer:
    return lambda message: Message(records, reply_to=message)


class Grid:
    """Flower's grid as far as it is used; ``rounds_late`` is how many looks a reply takes."""

    def __init__(self, answers: Mapping[int, Answer], rounds_late: int = 0) -> None:
        self.answers, self.late = dict(answers), rounds_late
        self.numbers = itertools.count(1)
        self.waiting: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.looks: list[set[str]] = []

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{next(self.numbers)}"
            self.sent.append(message)
            self.waiting[message.metadata.message_id] = message
        return list(self.waiting)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks.append(set(message_ids))
        assert None not in self.looks[-1]
        if len(self.looks) <= self.late:
            return []
        found = []
        for number in sorted(self.looks[-1] & self.waiting.keys()):
            message = self.waiting[number]
            reply = self.answers[message.metadata.dst_node_id](message)
            if reply is not None:
                del self.waiting[number]
                found.append(reply)
        return found


def ask(grid: Grid, nodes: Sequence[int], timeout: float = PATIENT) -> Mapping[int, Reply]:
    return GridTransport(grid).ask(nodes, TASK, timeout)  # type: ignore[arg-type]


def code(reply: Reply) -> str:
    assert isinstance(reply, Refusal)
    assert reply.task_hash == TASK.hash
    return reply.code


def test_every_node_gets_the_task_and_its_reply_comes_back_under_its_number() -> None:
    grid = Grid({7: good, 3: good, 5: good})
    found = ask(grid, [3, 7])
    assert found == {3: update(3), 7: update(7)}
    assert {(m.metadata.dst_node_id, m.metadata.ttl) for m in grid.sent} == {
        (3, PATIENT),
        (7, PATIENT),
    }


def test_nodes_come_in_order() -> None:
    assert GridTransport(Grid({7: good, 3: good})).nodes() == [3, 7]  # type: ignore[arg-type]


def test_a_late_reply_is_waited_for_and_only_what_is_open_is_asked_for() -> None:
    grid = Grid({1: good, 2: good}, rounds_late=3)
    assert ask(grid, [1, 2]) == {1: update(1), 2: update(2)}
    assert len(grid.looks) == 4


def test_when_time_is_up_the_others_count_and_the_missing_is_named() -> None:
    found = ask(Grid({1: good, 2: silent}), [1, 2], SHORT)
    assert found[1] == update(1)
    assert code(found[2]) == "transport.no-answer"


def test_whoever_watches_sees_who_trains_who_is_done_and_who_refuses_with_which_code() -> None:
    def refuses(message: Message) -> Message:
        refusal = Refusal(holder="h", task_hash=TASK.hash, code="policy.max-epsilon")
        return Message(reply_to_records(refusal), reply_to=message)

    def odd(message: Message) -> Message:
        refusal = Refusal(holder="h", task_hash=TASK.hash, code=f"{SECRET}!")
        return Message(reply_to_records(refusal), reply_to=message)

    seen: list[Mapping[int, str]] = []
    grid = Grid({1: good, 2: refuses, 3: failed, 4: odd, 5: silent}, rounds_late=1)
    live = GridTransport(grid, lambda task, states: seen.append(dict(states)))  # type: ignore[arg-type]
    live.ask([1, 2, 3, 4, 5], TASK, SHORT)
    assert seen == [
        dict.fromkeys(range(1, 6), "training"),
        {
            1: "done",
            2: "policy.max-epsilon",
            3: "transport.error-4",
            4: "holder.failed",
            5: "training",
        },
    ]
    assert SECRET not in repr(seen)


def test_when_all_have_answered_nobody_waits() -> None:
    grid = Grid({1: good})
    ask(grid, [1])
    assert len(grid.looks) == 1


def test_of_an_error_the_number_is_told_and_the_text_is_dropped() -> None:
    found = ask(Grid({1: failed, 2: good}), [1, 2])
    assert code(found[1]) == "transport.error-4"
    assert SECRET not in repr(found)
    assert found[2] == update(2)


def numpy_reply() -> RecordDict:
    records = reply_to_records(update(1))
    array = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"\x80\x04")
    records["message"] = ArrayRecord({"values": array})
    return records


def reply_with(receipt: str) -> RecordDict:
    header, payload = opened(reply_to_records(update(1)))
    text = json.dumps(header | {"receipt": 0}).replace('"receipt": 0', f'"receipt": {receipt}')
    return record(framed(text, payload))


MALFORMED = [
    RecordDict(),
    numpy_reply(),
    reply_with("["),
    reply_with("[]"),
    reply_with("[" * 60_000),
    reply_with('{"a": ' + "9" * 5000 + "}"),
]


@pytest.mark.parametrize("records", MALFORMED)
def test_a_malformed_reply_is_a_refusal_in_its_nodes_name(records: RecordDict) -> None:
    found = ask(Grid({1: saying(records), 2: good}), [1, 2])
    assert code(found[1]) == "wire.malformed"
    assert found[2] == update(2)


def test_whatever_a_reply_makes_the_parser_raise_the_others_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse = transport.reply_from_records

    def stumbling(records: RecordDict) -> Reply:
        if not records:
            raise OverflowError(SECRET)
        return parse(records)

    monkeypatch.setattr(transport, "reply_from_records", stumbling)
    found = ask(Grid({1: saying(RecordDict()), 2: good}), [1, 2])
    assert code(found[1]) == "wire.malformed"
    assert found[2] == update(2)


def test_of_two_replies_to_one_message_the_first_counts() -> None:
    class Twice(Grid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            found = super().pull_messages(message_ids)
            return [m for reply in found for m in (reply, failed(self.sent[0]))]

    assert ask(Twice({1: good}), [1]) == {1: update(1)}


def test_a_reply_that_comes_when_the_round_is_over_is_not_looked_at() -> None:
    grid = Grid({1: good, 2: silent})
    first = ask(grid, [1, 2], SHORT)
    grid.answers[2] = good  # now it answers what it was asked then
    waiting = set(grid.waiting)
    looked = len(grid.looks)
    assert ask(grid, [1], SHORT)[1] == update(1)
    assert code(first[2]) == "transport.no-answer"
    assert all(not waiting & look for look in grid.looks[looked:])


def test_a_holder_that_has_not_pinned_the_bundle_says_so() -> None:
    def unpinned(message: Message) -> Message:
        return Message(Error(code=7, reason=SECRET), reply_to=message)

    found = ask(Grid({1: unpinned}), [1])
    assert code(found[1]) == "bundle.not-pinned"
    assert SECRET not in repr(found)


def test_who_answers_is_told_by_what_is_answered() -> None:
    def from_elsewhere(message: Message) -> Message:
        reply = failed(message)
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    found = ask(Grid({1: from_elsewhere, 2: good}), [1, 2])
    assert code(found[1]) == "transport.error-4"
    assert found[2] == update(2)


def test_an_answer_to_something_else_is_dropped() -> None:
    def elsewhere(message: Message) -> Message:
        reply = good(message)
        reply.metadata.__dict__["_reply_to_message_id"] = "another"
        return reply

    found = ask(Grid({1: elsewhere, 2: good}), [1, 2], SHORT)
    assert code(found[1]) == "transport.no-answer"
    assert found[2] == update(2)


@pytest.mark.parametrize("kept", [None, 1])
def test_a_task_that_flower_does_not_take_is_told_apart_from_silence(kept: int | None) -> None:
    class Full(Grid):
        def push_messages(self, messages: Iterable[Message]) -> list[Any]:
            numbers = super().push_messages(messages)
            return [] if kept is None else [*numbers[:kept], None]

    found = ask(Full({1: good, 2: good}), [1, 2])
    assert code(found[2]) == "transport.not-sent"
    assert found[1] == update(1) if kept else code(found[1]) == "transport.not-sent"


def test_a_reply_that_flower_cannot_unpack_costs_the_others_nothing() -> None:
    class Poisoned(Grid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            wanted = set(message_ids)
            if any(self.waiting[n].metadata.dst_node_id == 2 for n in wanted):
                raise ValueError(SECRET)
            return super().pull_messages(wanted)

    grid = Poisoned({1: good, 2: good, 3: good})
    found = ask(grid, [1, 2, 3], SHORT)
    assert (found[1], found[3]) == (update(1), update(3))
    assert code(found[2]) == "transport.no-answer"


def test_an_interrupt_gets_out() -> None:
    def stop(message: Message) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(Grid({1: stop}), [1])


class Growing:
    """One more node at every look."""

    patience = math.inf

    def __init__(self) -> None:
        self.there = 0

    def nodes(self) -> Sequence[int]:
        self.there += 1
        return range(self.there)

    def ask(self, nodes: Sequence[int], task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
        return {}

    ready = ask


def test_waiting_ends_when_enough_are_connected() -> None:
    assert list(wait_for_nodes(Growing(), 5, PATIENT)) == [0, 1, 2, 3, 4]


def test_too_few_holders_is_said_with_both_numbers_and_what_to_do() -> None:
    with pytest.raises(ConfideError, match=r"run\.too-few-holders.* 2 .* 3\.") as caught:
        wait_for_nodes(GridTransport(Grid({1: good, 2: good})), 3, 0.05)  # type: ignore[arg-type]
    assert "num-supernodes=3" in caught.value.hint
