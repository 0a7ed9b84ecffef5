"""Which node speaks for which holder, so that nobody answers in another's name.

A name is a holder's own word; the node that an answer came from is what Flower knows, in a
deployment by the node's key. Where the coordinator registered the keys it also knows whose each is
(``deploy.members``), and takes a name from no other node. Elsewhere, in a simulation above all, a
node keeps the name under which its first update was accepted, for as long as the run and its
connection last; a second one that gives that name is refused, and the first stays. Two that give
one name at their first meeting cannot be told apart, and neither counts (``gate.duplicate``).

What was seen is not kept in a checkpoint: a resumed simulation has other nodes. Registered keys are
read anew for each round, so renewals and revocations take effect at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..common.errors import ConfideError

ANOTHERS_NAME = "gate.sender"
NAMELESS = "node-"  # how the coordinator calls a holder whose name it does not know

Known = Callable[[], Mapping[int, str]]


class Senders:
    """The names of one run's nodes.

    Args:
        connected: the nodes that are there now.
        known: the holder's name for each node, where the coordinator knows it; None to go by what
            was seen first.
    """

    def __init__(
        self, connected: Callable[[], Iterable[int]] = tuple, known: Known | None = None
    ) -> None:
        self._connected, self._known = connected, known
        self._names: dict[int, str] = {}

    def look(self) -> None:
        """Before the answers of a round: who is known by now, and who has left its name."""
        if self._known is not None:
            self._names = dict(self._known())
        elif self._names:
            there = set(self._connected())
            self._names = {node: name for node, name in self._names.items() if node in there}

    def check(self, node: int, claimed: str) -> None:
        """Let an answer pass whose name, if it gives one, can be that of its node.

        Raises:
            ConfideError: ``gate.sender``.
        """
        own = self._names.get(node)
        if self._known is not None or own is not None:
            right = claimed in ("", own)  # without a name are refusals alone: an update needs one
        else:
            right = claimed not in self._names.values()
        if not right:
            raise ConfideError(ANOTHERS_NAME, "The answer is in the name of another holder.")

    def keep(self, accepted: Mapping[int, str]) -> None:
        """Remember the names under which nodes were accepted; what is known stays as it is."""
        if self._known is None:
            self._names |= accepted

    def name_of(self, node: int) -> str:
        """What the coordinator itself calls a node: by its holder's name if that is known."""
        unknown = f"{NAMELESS}{node}"
        return unknown if self._known is None else self._names.get(node, unknown)
