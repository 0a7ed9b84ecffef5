"""How tasks reach holders and replies come back, behind one small protocol.

``GridTransport`` speaks Flower's Message API. The rounds know nothing of Flower, so tests and
yardsticks run the same rounds over holders of their own process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from ..common.errors import ConfideError
from ..common.wire import Refusal, Reply, Task, reply_from_records, task_to_records

_POLL_SECONDS = 0.2


class Transport(Protocol):
    """Connected holders by node number, and one exchange with some of them."""

    def nodes(self) -> Sequence[int]: ...

    def ask(self, nodes: Sequence[int], task: Task, timeout: float) -> Mapping[int, Reply]: ...


class GridTransport:
    """A Flower grid as a transport."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Sequence[int]:
        return sorted(self._grid.get_node_ids())

    def ask(self, nodes: Sequence[int], task: Task, timeout: float) -> Mapping[int, Reply]:
        """Send ``task`` to ``nodes`` and collect replies until all are there or time is up.

        A node that fails, answers nonsense or not at all gets a refusal in its name; the text of
        a Flower error is dropped, since it may quote what the holder holds.
        """
        messages = [
            Message(
                content=task_to_records(task),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
                group_id=str(task.round),
                ttl=timeout,
            )
            for node in nodes
        ]
        # Flower's own send_and_receive looks for replies every three seconds, a round's length.
        open_ids = set(self._grid.push_messages(messages))
        replies: dict[int, Reply] = {}
        deadline = time.monotonic() + timeout
        while open_ids and time.monotonic() < deadline:
            for message in self._grid.pull_messages(open_ids):
                open_ids.discard(message.metadata.reply_to_message_id)
                replies[message.metadata.src_node_id] = _reply(message, task)
            if open_ids:
                time.sleep(_POLL_SECONDS)
        return {n: replies.get(n) or _refusal(task, "transport.no-answer") for n in nodes}


def _reply(message: Message, task: Task) -> Reply:
    if message.has_error():
        return _refusal(task, f"transport.error-{message.error.code}")
    try:
        return reply_from_records(message.content)
    except ConfideError as error:
        return _refusal(task, error.code)


def _refusal(task: Task, code: str) -> Refusal:
    return Refusal(holder="", task_hash=task.hash, code=code)


def wait_for_nodes(transport: Transport, wanted: int, timeout: float) -> Sequence[int]:
    """Wait until at least ``wanted`` holders are connected.

    Rounds that start before all are there would sample from whoever was quickest.

    Raises:
        ConfideError: ``run.too-few-holders``.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := transport.nodes()) < wanted:
        if time.monotonic() >= deadline:
            raise ConfideError(
                "run.too-few-holders",
                f"{len(nodes)} holders are connected after {timeout:g} s; the run needs {wanted}.",
                "Wait for the others, lower round.min-holders or round.holders, or in a simulation"
                f" pass --federation-config 'num-supernodes={wanted}'.",
            )
        time.sleep(_POLL_SECONDS)
    return nodes
