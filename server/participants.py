"""Who takes part: who can in a run, asked before anything is charged; who is chosen for a round.

A holder that refuses by its policy, its contract, its budget or the model will refuse each round of
the run, so that it is asked no more, and named in each round. Where too few are left who can ever
take part, the others would be charged for rounds that are abandoned: so none is begun.

The choice for a round is no secret from the coordinator, which makes it, so it amplifies no
holder's privacy towards the coordinator, and none is claimed. To whoever sees the final adapter
alone it is one: it is uniform, anew in each round, and follows a secret key that lies beside the
checkpoint, so that a resumed run chooses as the first one would have. A choice by the public
``run.seed`` could be worked out by anybody.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence

from ..common.errors import ConfideError
from ..common.settings import Settings
from ..common.wire.messages import Ready, Refusal, Reply, TrainRequest
from .gate import named, refusal_code
from .run_folder import RunFolder
from .senders import NAMELESS, Senders
from .transport import Transport

logger = logging.getLogger("confide.server")

# What a holder says for good, in this run: by what its administrator wrote, what is left of its
# budget, the model it has, and the code that it runs.
_LASTING = (
    "policy.", "contract.", "settings.", "task.", "model.", "adapter.", "lora.", "train.",
    "privacy.", "bundle.", "ledger.budget-exhausted", "ledger.unit", "ledger.missing",
    "ledger.corrupt", "ledger.format", "holder.not-configured", "sum.stranger", "sum.no-identity",
)  # fmt: skip
# What may be otherwise the next time: the administrator says yes, or a day goes by.
_PASSING = ("policy.ask-before-run", "policy.decisions", "policy.max-requests-per-day")
KEY = "checkpoint/selection.key"
_KEY_BYTES = 32
_AGAIN_SECONDS = 5.0  # between two questions to who may still say yes


def is_lasting(code: str) -> bool:
    """Whether a holder that refuses with this code will refuse all the run."""
    return code.startswith(_LASTING) and code not in _PASSING


class Able:
    """Who of a run's holders can still take part.

    Attributes:
        out: who cannot, by node: its name and the code.
        cards: what each said of its keys, in a run with a secure sum.
    """

    def __init__(self, settings: Settings, transport: Transport, senders: Senders) -> None:
        self._least, self._timeout = settings.round.min_holders, settings.round.timeout
        self._transport, self._senders = transport, senders
        self.out: dict[int, tuple[str, str]] = {}
        self.cards: dict[int, bytes] = {}

    def ask(self, request: TrainRequest, nodes: Sequence[int], folder: RunFolder) -> None:
        """Ask each holder whether it would work on a request, until enough say yes. Whoever may
        still do so is asked again for as long as a round lasts.

        Raises:
            ConfideError: ``run.too-few-holders`` with who refused and why; nothing was charged.
        """
        deadline = time.monotonic() + self._timeout
        said: dict[int, tuple[str, str]] = {}
        open_nodes = list(nodes)
        while True:
            replies = self._transport.ready(open_nodes, request, self._timeout)
            self._senders.look()
            said |= {node: self._said(node, reply, request) for node, reply in replies.items()}
            self._note(said)
            ready = [node for node, (_, code) in said.items() if not code]
            open_nodes = [n for n in nodes if n not in self.out and n not in ready]
            if len(ready) >= self._least or len(ready) + len(open_nodes) < self._least:
                break
            if time.monotonic() >= deadline:
                break
            waited = ", ".join(" ".join(said[node]) for node in open_nodes if node in said)
            logger.info("waiting for %s", waited)
            time.sleep(min(_AGAIN_SECONDS, self._timeout))
        refused = {node: told for node, told in said.items() if told[1]}
        rows = [{"holder": name, "code": code} for _, (name, code) in sorted(refused.items())]
        folder.event("ready", round=request.round, ready=len(ready), refused=rows)
        for row in rows:
            logger.warning("%s cannot take part: %s", row["holder"], row["code"])
        if len(ready) < self._least:
            raise self._too_few(len(ready), len(nodes), refused)

    def _said(self, node: int, reply: Reply, request: TrainRequest) -> tuple[str, str]:
        """A node's name, and its code; none for a yes."""
        name = self._senders.name_of(node)
        name = named(reply.holder, node) if name.startswith(NAMELESS) else name
        if isinstance(reply, Ready) and reply.task_hash == request.hash:
            self.cards[node] = reply.card
            return name, ""
        return name, refusal_code(reply) if isinstance(reply, Refusal) else "gate.task"

    def note(self, replies: Mapping[int, Reply], left_out: Iterable[Mapping[str, str]]) -> None:
        """Remember who refused a round for good; ``left_out`` has the names that it was told by."""
        names = {row["holder"] for row in left_out}
        for node, reply in replies.items():
            if isinstance(reply, Refusal) and is_lasting(refusal_code(reply)):
                known = self._senders.name_of(node)
                name = known if known in names else named(reply.holder, node)
                self.out[node] = (name, refusal_code(reply))

    def _note(self, said: Mapping[int, tuple[str, str]]) -> None:
        self.out |= {node: told for node, told in said.items() if is_lasting(told[1])}

    def of(self, nodes: Iterable[int]) -> list[int]:
        """Those of ``nodes`` that can take part."""
        return [node for node in nodes if node not in self.out]

    def left_out(self, nodes: Iterable[int]) -> list[dict[str, str]]:
        """The rows of those of ``nodes`` that cannot."""
        told = [self.out[node] for node in sorted(nodes) if node in self.out]
        return [{"holder": name, "code": code} for name, code in told]

    def too_few(self, nodes: Iterable[int]) -> ConfideError | None:
        """The error of a run that can have no further round, where ``nodes`` are all its holders:
        those that were there at its start or came later."""
        everybody = set(nodes)
        able = self.of(everybody)
        if len(able) >= self._least or not self.out:
            return None
        return self._too_few(len(able), len(everybody), self.out)

    def _too_few(self, able: int, of: int, refused: Mapping[int, tuple[str, str]]) -> ConfideError:
        told = [f"{name} said {code}" for _, (name, code) in sorted(refused.items())]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        return ConfideError(
            "run.too-few-holders",
            f"{able} of {of} holders can take part, and the run needs {self._least}"
            f" (round.min-holders): {', '.join(told[:5]) or 'nobody said why'}{more}.",
            "Mend what the codes name, at the holders or in the settings, or lower"
            " round.min-holders.",
        )


def select(nodes: Sequence[int], count: int, *, key: bytes, round_number: int) -> list[int]:
    """``count`` of the connected nodes (0: all), in fixed order.

    Those with the smallest HMAC-SHA256 of round and node under ``key``: to whoever does not have
    the key a uniform draw without replacement, independent of all other rounds.
    """
    ordered = sorted(nodes)
    if not count or count >= len(ordered):
        return ordered

    def lot(node: int) -> bytes:
        return hmac.digest(key, f"{round_number}/{node}".encode(), "sha256")

    return sorted(sorted(ordered, key=lot)[:count])


def selection_key(folder: RunFolder) -> bytes:
    """The run's key: drawn once from the operating system, readable by its owner alone.

    Raises:
        ConfideError: ``run.resume`` when it is there and damaged.
    """
    path = folder.path / KEY
    if not path.is_file():
        folder.write(KEY, secrets.token_bytes(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfideError(
            "run.resume", f"{path} is no key of {_KEY_BYTES} bytes.", "Start a new run."
        )
    return key
