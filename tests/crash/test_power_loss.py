"""Power loss: whatever the disk kept, the ledger has every charge that was acknowledged.

The operations of a real charge and release are recorded at SQLite's own door (``vfs``), and the
ledger is opened on every disk that they allow (``disk``). Ledgers that sync less are seen to fail.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy import ledger as ledger_file
from confide.common.privacy import ledger as ledger_module
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from tests.crash.disk import Acknowledged, Disk, Event, Files, Tears, after, failures
from tests.crash.vfs import Operation, Sync, Truncate, Write, looking

PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=10.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=1000,
    delta=1e-5,
)
EARLIER = 5  # rounds before, so that pages are full, overflow and are free for use
REPLY = 3000  # bytes
NAME = "ledger.sqlite"


def charge(number: int) -> Charge:
    return Charge(run="run", round=number, task_hash=f"task-{number}", plan=PLAN)


def a_round(ledger: Ledger, number: int, say: Callable[[Acknowledged], None]) -> None:
    ledger.charge(charge(number), limit=None)
    say(Acknowledged(f"task-{number}"))
    reply = os.urandom(REPLY)
    ledger.release(f"task-{number}", reply)
    say(Acknowledged(f"task-{number}", reply))


def recorded(folder: Path) -> tuple[Files, list[Event]]:
    """A ledger with a past, and every operation of the data set's entry and one round more."""
    path, events = folder / NAME, list[Event]()
    with Ledger.open(path) as ledger:
        for number in range(EARLIER):
            a_round(ledger, number, lambda _: None)
    files = {path: path.read_bytes()}
    with looking(events.append), Ledger.open(path) as ledger:
        a_round(ledger, EARLIER, events.append)
    return files, events


def put(files: Files, folder: Path) -> Path:
    for old in folder.iterdir():
        old.unlink()
    for file, content in files.items():
        (folder / file.name).write_bytes(content)
    return folder / NAME


def verdict(path: Path, acknowledged: tuple[Acknowledged, ...]) -> str:
    """``sound``, ``refused`` (as damaged), or ``under-count``, the one that must not be."""
    try:
        with Ledger.open(path, create=False) as ledger:
            payloads = [e.payload for e in ledger.entries()]
    except ConfideError as error:
        return "refused" if error.code == "ledger.corrupt" else "under-count"
    charged = {p["task"] for p in payloads if p["state"] == "reserved"}
    released = {p["task"]: p["reply"] for p in payloads if p["state"] == "released"}
    earlier = {f"task-{number}" for number in range(EARLIER)}
    for known in acknowledged:
        booked = known.reply is None or released.get(known.task) == sha256(known.reply).hexdigest()
        if known.task not in charged or not booked:
            return "under-count"
    return "sound" if earlier <= charged else "under-count"


def survey(folder: Path, *, tears: Tears, all_subsets_of: int, some: int) -> Counter[str]:
    """The verdicts on every disk."""
    (folder / "first").mkdir()
    files, events = recorded(folder / "first")
    (folder / "second").mkdir()
    found: Counter[str] = Counter()
    for state, acknowledged in failures(
        files, events, tears=tears, all_subsets_of=all_subsets_of, some=some
    ):
        found[verdict(put(state, folder / "second"), acknowledged)] += 1
    return found


def at_the_edges(write: Write) -> Iterator[int]:
    """Around each sector, and in the middle of small writes."""
    for sector in range(0, len(write.data), 512):
        yield from {max(0, sector - 1), sector, sector + 1} & set(range(len(write.data)))
    yield len(write.data) // 2


def at_every_byte(write: Write) -> Iterator[int]:
    yield from range(len(write.data))


def with_pragma(statement: str) -> Callable[..., Any]:
    connect = ledger_file.connect

    def changed(path: Path, *, mode: str) -> Any:
        connection = connect(path, mode=mode)
        connection.execute(statement)
        return connection

    return changed


def test_no_disk_after_a_power_failure_holds_fewer_charges_than_were_acknowledged(
    in_memory: Path,
) -> None:
    found = survey(in_memory, tears=at_the_edges, all_subsets_of=5, some=20)
    assert set(found) == {"sound"}
    assert found["sound"] > 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_write_torn_at_any_byte_costs_no_charge(in_memory: Path) -> None:
    found = survey(in_memory, tears=at_every_byte, all_subsets_of=9, some=2000)
    assert set(found) == {"sound"}
    assert found["sound"] > 50_000


@pytest.mark.parametrize(
    ("statement", "harm"),
    [
        ("PRAGMA synchronous = OFF", "under-count"),
        ("PRAGMA synchronous = NORMAL", "under-count"),
        ("PRAGMA journal_mode = DELETE", "under-count"),
        ("PRAGMA journal_mode = MEMORY", "refused"),
    ],
)
def test_a_ledger_that_syncs_less_is_found_out(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch, statement: str, harm: str
) -> None:
    monkeypatch.setattr(ledger_module, "connect", with_pragma(statement))
    found = survey(in_memory, tears=lambda _: (), all_subsets_of=5, some=20)
    assert found[harm] > 0


def test_a_new_ledger_has_its_name_only_once_it_is_whole_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages before its name, and its name before anybody hears of it."""
    path, seen = tmp_path / NAME, list[Operation | str]()
    link, fsync = os.link, os.fsync

    def on_link(draft: Path, name: Path) -> None:
        disk = Disk({})
        for operation in seen:
            if not isinstance(operation, str):
                disk.take(operation)
        assert not disk.pending
        assert disk.durable[Path(draft)] == Path(draft).read_bytes()
        link(draft, name)
        seen.append("named")

    def on_fsync(handle: int) -> None:
        fsync(handle)
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            seen.append("folder synced")

    monkeypatch.setattr(os, "link", on_link)
    monkeypatch.setattr(os, "fsync", on_fsync)
    with looking(seen.append):
        Ledger.open(path).close()
    assert [item for item in seen if isinstance(item, str)] == ["named", "folder synced"]
    assert any(isinstance(item, Sync) for item in seen)


# The model of the disk itself

A, B = Path("a"), Path("b")


def states(*events: Event) -> list[Files]:
    found = failures({A: b"0000"}, events, tears=at_every_byte, all_subsets_of=5, some=0)
    return [state for state, _ in found]


def test_what_was_synced_stays_and_what_was_not_may_be_lost_or_torn() -> None:
    written = states(Write(A, 1, b"xy"))
    assert {state[A] for state in written} == {b"0000", b"0x00", b"0xy0"}
    later = states(Write(A, 1, b"xy"), Sync(A), Write(A, 3, b"z"), Acknowledged("t"))
    assert {s[A] for s in later} >= {b"0xy0", b"0xyz"}
    assert {s[A] for s in states(Sync(A), Truncate(A, 2), Acknowledged("t"))} == {b"0000", b"00"}


def test_writes_may_reach_the_disk_in_any_order_and_leave_zeros() -> None:
    found = {s[A] for s in states(Write(A, 0, b"x"), Write(A, 5, b"y"), Acknowledged("t"))}
    assert {b"0000", b"x000", b"0000\0y", b"x000\0y", b"x000\0\0"} <= found


def test_a_sync_is_of_one_file() -> None:
    found = states(Write(A, 0, b"x"), Write(B, 0, b"y"), Sync(B), Acknowledged("t"))
    assert {A: b"0000", B: b"y"} in found
    assert after({A: b"0000"}, [Write(A, 4, b"1")])[A] == b"00001"
