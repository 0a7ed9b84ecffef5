"""What a secure sum costs the processor: a contributor, an opener and the coordinator of one round.

The protocol itself, without training, network or disk. Times are of the processor, the least of
several where a step is quick. Beside them stands SecAgg+ (Bell et al. 2020) as Flower has it, which
is modelled and not run: a holder adds a keystream of its own and one for each of its k neighbours,
the coordinator takes the own ones off and, for every holder that dropped out, k more; at the time
that a keystream takes here, and without its key agreement and secret shares, in its favour.
"""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...common.masking.keys import Identity, Roster, SealingKey
from ...common.masking.openers import Call, Opener, Statement, combine, contribute, openable
from ...common.masking.ring import CHECKS, SEED_BYTES, add_mask, from_words, to_words

SHAPES = tuple(itertools.product((10, 50, 1000), (4_000, 300_000, 3_000_000)))  # holders, values
OPENERS = {10: 3, 50: 11, 1000: 5}
HEADER = (
    "| holders | values | openers | contribute | open | coordinator | bytes up over fp32 |"
    " kB to an opener | SecAgg+: its holder | its coordinator, none / 20 % dropped |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
_REPEATS, _STEP = 5, 2.0**-10
_DROPPED = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """Milliseconds of the processor for one round, and bytes."""

    members: int
    values: int
    openers: int
    contribute: float
    opening: float
    coordinator: float
    bytes_over: int
    kilobytes_to_opener: float
    peer_holder: float
    peer_coordinator: float
    peer_coordinator_dropped: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def line(row: Row) -> str:
    """One row of the table, times in milliseconds."""
    cells = [
        f"{row.members:,}",
        f"{row.values:,}",
        str(row.openers),
        *(f"{ms:,.1f}" for ms in (row.contribute, row.opening, row.coordinator)),
        f"{row.bytes_over:,}",
        f"{row.kilobytes_to_opener:,.0f}",
        f"{row.peer_holder:,.1f}",
        f"{row.peer_coordinator:,.1f} / {row.peer_coordinator_dropped:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def sum_rows(say: Callable[[str], None] = lambda _: None, *, most: int = 0) -> Iterator[Row]:
    """A row for each shape; of at most ``most`` values where that is not 0."""
    for members, values in SHAPES:
        if values <= (most or values):
            say(f"{members} holders, {values} values")
            yield sum_row(members, values, OPENERS[members])


def sum_row(members: int, values: int, openers: int) -> Row:
    """One round of ``members`` contributors, each step timed on its own. The sum is checked."""
    identities = [Identity(f"holder-{i:04d}", Identity.new_secret()) for i in range(members)]
    roster = Roster([one.member for one in identities])
    keys = [SealingKey(SealingKey.new_secret()) for _ in range(openers)]
    chosen = tuple(Opener.of(i, "run", k) for i, k in zip(identities, keys, strict=False))
    call = Call(
        run="run",
        request="0" * 64,
        roster=roster,
        openers=chosen,
        least=max(2, openers, math.ceil(0.8 * members)),
        colluding=openers - 1,
        size=values + CHECKS,
    )
    call.check()
    vector = to_words(np.ones(values), _STEP)
    contributing = _least(lambda: contribute(identities[0], call, vector))
    statements = list[Statement]()
    total = np.zeros(call.size, dtype=np.uint32)
    for one in identities:
        statement, payload = contribute(one, call, vector)
        statements.append(statement)
        total += np.frombuffer(payload, dtype="<u4")
    opened, times = dict[str, bytes](), []
    for opener, key in zip(chosen, keys, strict=True):
        started = time.process_time()
        opened[opener.name] = openable(opener.name, key, call, statements).answer()
        times.append(1000 * (time.process_time() - started))
    # All at once in memory would be gigabytes: what adding up takes is timed on one of them.
    adding = _least(lambda: combine(call, [payload], opened)) - _least(
        lambda: combine(call, [], opened)
    )
    sum_of_all = combine(call, [total.astype("<u4").tobytes()], opened)
    if not (from_words(sum_of_all, _STEP, members) == members).all():
        raise AssertionError("the sum is wrong")
    neighbours = min(members - 1, math.ceil(10 * math.log2(members)))
    mask = _least(lambda: add_mask(vector, secrets.token_bytes(SEED_BYTES)))
    sealed = len(statements[0].to_bytes())
    return Row(
        members=members,
        values=values,
        openers=openers,
        contribute=contributing,
        opening=sum(times) / len(times),
        coordinator=members * adding + _least(lambda: combine(call, [], opened)),
        bytes_over=4 * CHECKS + sealed,
        kilobytes_to_opener=(members * sealed + len(roster.to_bytes())) / 1000,
        peer_holder=(neighbours + 1) * mask,
        peer_coordinator=members * mask,
        peer_coordinator_dropped=members * mask * (1 - _DROPPED + _DROPPED * neighbours),
    )


def _least(work: Callable[[], object]) -> float:
    """Milliseconds of the processor, the least of several runs."""
    times = []
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started))
    return min(times)
