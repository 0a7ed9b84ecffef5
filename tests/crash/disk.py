"""What a disk may hold after the power failed: every state that the operations so far allow.

Promised is only what was synced: a file's bytes up to its last sync. Of what came later any part
may be there and any part missing, the last write may be cut at any byte, and a file that was made
longer may hold zeros where the bytes are missing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from tests.crash.vfs import Delete, Operation, Sync, Truncate, Write

Files = dict[Path, bytes]
Tears = Callable[[Write], Iterable[int]]


@dataclass(frozen=True)
class Acknowledged:
    """What the program took for certain from here on: a charge, or with ``reply`` a release."""

    task: str
    reply: bytes | None = None


Event = Operation | Acknowledged


@dataclass
class Disk:
    """``durable`` is on the medium; ``pending`` is in caches, in the order in which it was made."""

    durable: Files
    pending: list[Operation] = field(default_factory=list)

    def take(self, operation: Operation) -> None:
        if isinstance(operation, Sync):
            mine = [p for p in self.pending if p.file == operation.file]
            self.pending = [p for p in self.pending if p.file != operation.file]
            self.durable = after(self.durable, mine)
        elif isinstance(operation, Delete) and operation.durable:
            self.pending = [p for p in self.pending if p.file != operation.file]
            self.durable = after(self.durable, [operation])
        else:
            self.pending.append(operation)


def after(
    files: Files, operations: Iterable[Operation], *, zeros: Sequence[Operation] = ()
) -> Files:
    """The files once the operations were made; ``zeros`` lengthened their file and nothing more."""
    files = dict(files)
    lost = {id(operation) for operation in zeros}
    for operation in operations:
        old = files.get(operation.file, b"")
        if isinstance(operation, Delete):
            files.pop(operation.file, None)
        elif isinstance(operation, Truncate):
            files[operation.file] = old[: operation.size].ljust(operation.size, b"\0")
        elif isinstance(operation, Write):
            end = operation.offset + len(operation.data)
            old = old.ljust(end, b"\0")
            if id(operation) not in lost:
                old = old[: operation.offset] + operation.data + old[end:]
            files[operation.file] = old
    return files


def failures(
    files: Files, events: Sequence[Event], *, tears: Tears, all_subsets_of: int, some: int
) -> Iterator[tuple[Files, tuple[Acknowledged, ...]]]:
    """What may be on the disk, with what was acknowledged by then; each state once.

    Args:
        files: before the first event.
        tears: the lengths to which a write may be cut.
        all_subsets_of: so many pending operations or fewer are lost in every combination.
        some: of more, each alone, and this many combinations at random.
    """
    disk, acknowledged = Disk(files), ()
    chance, seen = random.Random(0), set[bytes]()

    def new(found: Iterable[Files]) -> Iterator[tuple[Files, tuple[Acknowledged, ...]]]:
        for state in found:
            name = sha256(repr((sorted(state.items()), len(acknowledged))).encode()).digest()
            if name not in seen:
                seen.add(name)
                yield state, acknowledged

    for event in events:
        if isinstance(event, Acknowledged):
            acknowledged = (*acknowledged, event)
            yield from new(_mixed(disk, all_subsets_of, some, chance))
            continue
        if isinstance(event, Sync):
            yield from new(_mixed(disk, all_subsets_of, some, chance))
        if isinstance(event, Write):
            yield from new(_torn(disk, event, tears(event)))
        disk.take(event)
        yield from new([disk.durable, after(disk.durable, disk.pending)])


def _torn(disk: Disk, write: Write, lengths: Iterable[int]) -> Iterator[Files]:
    """The write cut short, with all that was pending and with nothing of it."""
    whole = after(disk.durable, disk.pending)
    for length in lengths:
        part = [replace(write, data=write.data[:length])]
        yield after(whole, part)
        yield after(disk.durable, part)


def _mixed(disk: Disk, all_subsets_of: int, some: int, chance: random.Random) -> Iterator[Files]:
    """Some of what is pending, and the same with zeros in the place of the rest."""
    pending = disk.pending
    for kept in _subsets(len(pending), all_subsets_of, some, chance):
        lost = [operation for index, operation in enumerate(pending) if index not in kept]
        yield after(disk.durable, [p for index, p in enumerate(pending) if index in kept])
        yield after(disk.durable, [p for p in pending if not isinstance(p, Delete)], zeros=lost)


def _subsets(
    count: int, all_subsets_of: int, some: int, chance: random.Random
) -> Iterator[frozenset[int]]:
    everything = range(count)
    if count <= all_subsets_of:
        for size in range(count + 1):
            yield from map(frozenset, itertools.combinations(everything, size))
        return
    for one in everything:
        yield frozenset({one})
        yield frozenset(everything) - {one}
    for _ in range(some):
        yield frozenset(index for index in everything if chance.random() < 0.5)
