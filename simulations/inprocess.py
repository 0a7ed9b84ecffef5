"""A federation inside this process: the same holders and rounds, without Flower and Ray.

For yardsticks, benchmarks and tests, where the 15 to 30 seconds that Ray takes to start would be
most of the time. Every request and reply still goes through bytes, as on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..client.guard.policy_file import simulated_policy
from ..client.holder import Holder, Site
from ..common.machine.installed import code_hash
from ..common.privacy.noise import SecureGenerator
from ..common.wire.messages import (
    Reply,
    Request,
    TrainRequest,
    reply_from_records,
    reply_to_records,
    request_from_records,
    request_to_records,
)


class InProcessTransport:
    """Holders by number, called one after the other."""

    patience = 0.0

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = list(holders)

    def nodes(self) -> Sequence[int]:
        return range(len(self._holders))

    def ask(self, nodes: Sequence[int], request: Request, timeout: float) -> Mapping[int, Reply]:
        return self._handed(nodes, request)

    def ready(
        self, nodes: Sequence[int], request: TrainRequest, timeout: float
    ) -> Mapping[int, Reply]:
        return self._handed(nodes, replace(request, dry=True))

    def _handed(self, nodes: Sequence[int], request: Request) -> Mapping[int, Reply]:
        sent = request_to_records(request)
        return {
            node: reply_from_records(
                reply_to_records(self._holders[node].handle(request_from_records(sent)))
            )
            for node in nodes
        }


def federation(
    files: Sequence[Path], ledgers: Path, *, generator: SecureGenerator | None = None
) -> InProcessTransport:
    """One holder per data file, each with a fresh ledger below ``ledgers``; the text is public
    or synthetic, so the policy allows everything that a file beside it does not limit."""
    return InProcessTransport(
        [
            Holder(
                Site(
                    name=file.stem,
                    data=file,
                    ledger=ledgers / file.stem / "ledger.sqlite",
                    policy=simulated_policy(file),
                    bundle=code_hash(),
                    new_ledger=True,
                ),
                generator,
            )
            for file in files
        ]
    )
