"""How requests reach holders and replies come back, behind one small protocol.

``GridTransport`` speaks Flower's Message API. The rounds know nothing of Flower, so tests and
yardsticks run the same rounds over holders of their own process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from ..common.errors import ConfideError
from ..common.wire.messages import (
    Refusal,
    Reply,
    Request,
    TrainRequest,
    reply_from_records,
    request_to_records,
)
from .gate import refusal_code
from .run_folder import DONE, TRAINING, Live, nowhere

logger = logging.getLogger("confide.server")

_POLL_SECONDS = 0.2


class Transport(Protocol):
    """Connected holders by node number, and one exchange with some of them. ``patience`` is how
    many seconds more of them may come; 0 where all are there from the start."""

    @property
    def patience(self) -> float: ...

    def nodes(self) -> Sequence[int]: ...

    def ask(
        self, nodes: Sequence[int], request: Request, timeout: float
    ) -> Mapping[int, Reply]: ...

    def ready(
        self, nodes: Sequence[int], request: TrainRequest, timeout: float
    ) -> Mapping[int, Reply]:
        """Whether each would work on the request, at no charge to anybody."""
        ...


class GridTransport:
    """A Flower grid as a transport; ``live`` hears of every answer when it comes."""

    def __init__(self, grid: Grid, live: Live = nowhere, patience: float = math.inf) -> None:
        self._grid, self._live, self.patience = grid, live, patience
        self._one_by_one = False

    def nodes(self) -> Sequence[int]:
        return sorted(self._grid.get_node_ids())

    def ask(self, nodes: Sequence[int], request: Request, timeout: float) -> Mapping[int, Reply]:
        """Send ``request`` to ``nodes`` and collect replies until all are there or time is up.

        A node that fails, answers nonsense or not at all gets a refusal in its name; the text of
        a Flower error is dropped, since it may quote what the holder holds.
        """
        asked = self._send(nodes, request, timeout)
        replies: dict[int, Reply] = {}
        heard = 0
        self._tell(request, asked, replies)
        open_ids, deadline = set(asked), time.monotonic() + timeout
        while open_ids and time.monotonic() < deadline:
            # Flower's own send_and_receive looks every three seconds, the length of a round.
            for message in self._pull(open_ids):
                # Who answers is told by what is answered: a reply that Flower could not fetch
                # has the coordinator for its source.
                answered = message.metadata.reply_to_message_id
                if answered in open_ids:
                    open_ids.discard(answered)
                    replies[asked[answered]] = _reply(message, request)
            if len(replies) > heard:
                heard = len(replies)
                self._tell(request, asked, replies)
            if open_ids:
                time.sleep(_POLL_SECONDS)
        sent = set(asked.values())
        return {
            node: replies.get(node)
            or _refusal(request, "transport.no-answer" if node in sent else "transport.not-sent")
            for node in nodes
        }

    def ready(
        self, nodes: Sequence[int], request: TrainRequest, timeout: float
    ) -> Mapping[int, Reply]:
        """As ``ask``, for a request that only asks."""
        return self.ask(nodes, replace(request, dry=True), timeout)

    def _tell(
        self, request: Request, asked: Mapping[str, int], replies: Mapping[int, Reply]
    ) -> None:
        if isinstance(request, TrainRequest):
            self._live(request, _states(asked.values(), replies))

    def _send(self, nodes: Sequence[int], request: Request, timeout: float) -> dict[str, int]:
        """The node by the number of the message that is on its way to it."""
        kind, group = MessageType.QUERY, "sum"
        if isinstance(request, TrainRequest):
            kind, group = MessageType.TRAIN, str(request.round)
        messages = [
            Message(
                content=request_to_records(request),
                message_type=kind,
                dst_node_id=node,
                group_id=group,
                ttl=timeout,
            )
            for node in nodes
        ]
        pushed = set(self._grid.push_messages(messages))  # with None for what was not accepted
        ids = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        return {number: node for number, node in ids.items() if number in pushed}

    def _pull(self, open_ids: set[str]) -> Iterable[Message]:
        """What has come in. Flower raises when it cannot unpack one message, and the others of
        the same call are lost; after the first such failure each is fetched alone."""
        groups = [{number} for number in sorted(open_ids)] if self._one_by_one else [set(open_ids)]
        found: list[Message] = []
        for group in groups:
            try:
                found += self._grid.pull_messages(group)
            except Exception as error:  # noqa: BLE001 - a holder's bytes decide what is raised
                self._one_by_one = True
                logger.warning("a reply could not be fetched (%s)", type(error).__name__)
        return found


def _reply(message: Message, request: Request) -> Reply:
    if message.has_error():
        number = message.error.code
        pin = number == ErrorCode.INVALID_FAB  # what a holder's gateway says of our bundle
        return _refusal(request, "bundle.not-pinned" if pin else f"transport.error-{number}")
    try:
        return reply_from_records(message.content)
    except ConfideError as error:
        return _refusal(request, error.code)
    except Exception as error:  # noqa: BLE001 - whatever one holder sends, the round goes on
        logger.warning("a reply could not be parsed (%s)", type(error).__name__)
        return _refusal(request, "wire.malformed")


def _states(sent: Iterable[int], replies: Mapping[int, Reply]) -> dict[int, str]:
    def state(reply: Reply | None) -> str:
        if reply is None:
            return TRAINING
        return refusal_code(reply) if isinstance(reply, Refusal) else DONE

    return {node: state(replies.get(node)) for node in sent}


def _refusal(request: Request, code: str) -> Refusal:
    return Refusal(holder="", task_hash=request.hash, code=code)


def wait_for_nodes(transport: Transport, wanted: int, timeout: float) -> Sequence[int]:
    """Wait until at least ``wanted`` holders are connected, while more may come.

    Rounds that start before all are there would sample from whoever was quickest.

    Raises:
        ConfideError: ``run.too-few-holders``.
    """
    began, patience = time.monotonic(), min(timeout, transport.patience)
    while len(nodes := transport.nodes()) < wanted:
        if time.monotonic() >= began + patience:
            waited = f" after {patience:g} s" if patience else ""
            raise ConfideError(
                "run.too-few-holders",
                f"{len(nodes)} holders are connected{waited}; the run needs {wanted}.",
                "Wait for the others, lower round.min-holders or round.holders, or in a simulation"
                f" pass --federation-config 'num-supernodes={wanted}'.",
            )
        time.sleep(_POLL_SECONDS)
    return nodes
