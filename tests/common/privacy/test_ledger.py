"""The ledger: nothing released without a booked charge, nothing altered without being noticed."""

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import confide
from confide.common.errors import ConfideError
from confide.common.privacy import chain
from confide.common.privacy import ledger as ledger_file
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.filters import Terms, enforced, settle
from confide.common.privacy.ledger import KEPT_REPLIES, Charge, Ledger, Receipt, verify
from confide.common.privacy.plan import Plan, Trust, Unit

ROOT = Path(confide.__file__).resolve().parent.parent
DELTA = 1e-5
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=10.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=1000,
    delta=DELTA,
)
FULL = 2  # of PRAGMA synchronous
KILLS = 6
MOST_CHARGES_BEFORE_A_KILL = 12
CHARGES_EACH = 500

# A holder at work: charge, then say that the charge was acknowledged, for ever or LIMITED times.
WORKER = """
import sys
from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
path, name, count, limit = sys.argv[1:5]
plan = Plan(clip_norm=1.0, noise_multiplier=10.0, sampling_rate=1.0, steps_per_round=1,
            max_rounds=1000, delta=1e-5)
with Ledger.open(path) as ledger:
    for k in range(int(count)):
        try:
            charge = Charge(run=name, round=k, task_hash=f"{name}-{k}", plan=plan)
            ledger.charge(charge, float(limit) if limit else None)
        except ConfideError as error:
            print(error.code, flush=True)
        else:
            print("charged", flush=True)
"""


def task(number: int, plan: Plan = PLAN, run: str = "run") -> Charge:
    return Charge(run=run, round=number, task_hash=f"task-{number}", plan=plan)


def spent(ledger: Ledger) -> int:
    return sum(s.steps for s in ledger.steps())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path) as opened:
        yield opened


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(ConfideError) as caught:
        yield
    assert caught.value.code == code


def start_worker(path: Path, name: str, count: int, limit: str = "") -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WORKER, str(path), name, str(count), limit]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_new_ledger_has_one_entry_and_its_own_name(ledger: Ledger, tmp_path: Path) -> None:
    assert [e.payload["state"] for e in ledger.entries()] == ["created"]
    assert ledger.steps() == ()
    with Ledger.open(tmp_path / "other.sqlite") as other:
        assert other.ledger_id != ledger.ledger_id


def test_only_its_owner_may_read_a_new_ledger(ledger: Ledger, path: Path) -> None:
    assert ledger.entries()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith("-journal")] == [path.name]


def test_a_commit_is_synced_before_it_returns(ledger: Ledger) -> None:
    assert ledger._sql.execute("PRAGMA synchronous").fetchone() == (FULL,)
    assert ledger._sql.execute("PRAGMA journal_mode").fetchone() == ("truncate",)


def test_what_was_charged_is_there_after_reopening(ledger: Ledger, path: Path) -> None:
    ledger.charge(task(0), limit=8.0)
    with Ledger.open(path, create=False) as again:
        assert again.head == ledger.head
        assert again.ledger_id == ledger.ledger_id
        assert spent(again) == 1
        reserved = again.entries()[-1].payload
    assert reserved["state"] == "reserved"
    assert Plan.from_json(reserved["plan"]) == PLAN


def test_a_charge_that_was_never_released_stays_spent(ledger: Ledger, path: Path) -> None:
    ledger.charge(task(0), limit=None)
    with Ledger.open(path) as again:
        assert spent(again) == 1
        with refused("ledger.task-spent"):
            again.replay("task-0")
        with refused("ledger.task-spent"):
            again.charge(task(0), limit=None)


def test_the_same_task_five_times_is_one_charge_and_five_equal_replies(
    ledger: Ledger, path: Path
) -> None:
    replies = []
    for _ in range(5):
        with Ledger.open(path) as holder:
            kept = holder.replay("task-0")
            if kept is None:
                holder.charge(task(0), limit=8.0)
                kept = os.urandom(1000)
                holder.release("task-0", kept)
            replies.append(kept)
    assert len(set(replies)) == 1
    assert spent(ledger) == 1


def test_an_old_reply_is_refused_rather_than_made_anew(ledger: Ledger) -> None:
    for k in range(KEPT_REPLIES + 1):
        ledger.charge(task(k), limit=None)
        ledger.release(f"task-{k}", bytes([k]))
    assert ledger.replay("task-1") == bytes([1])
    with refused("ledger.task-spent"):
        ledger.replay("task-0")
    assert ledger.replay("never-seen") is None


def test_nothing_is_released_before_it_is_charged_nor_twice(ledger: Ledger) -> None:
    with refused("ledger.not-charged"):
        ledger.release("task-0", b"update")
    ledger.charge(task(0), limit=None)
    ledger.release("task-0", b"update")
    with refused("ledger.task-spent"):
        ledger.release("task-0", b"other noise")
    assert ledger.replay("task-0") == b"update"


ROUNDS = 5


def calibrated(rate: float) -> Plan:
    return Plan.calibrate(
        epsilon=2.0,
        delta=DELTA,
        sampling_rate=rate,
        steps_per_round=2,
        max_rounds=ROUNDS,
        clip_norm=1.0,
    )


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_the_last_affordable_task_is_charged_and_the_next_refused(
    ledger: Ledger, rate: float
) -> None:
    plan = calibrated(rate)
    for k in range(ROUNDS):
        ledger.charge(task(k, plan), limit=2.0)
    before = ledger.entries()
    with pytest.raises(ConfideError) as caught:
        ledger.charge(task(ROUNDS, plan), limit=2.0)
    assert caught.value.code == "ledger.budget-exhausted"
    assert " of 2 " in caught.value.message
    assert ledger.entries() == before
    assert 0.999 * 2.0 <= epsilon_pld(ledger.steps(), DELTA) <= 2.0


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_of_several_runs_the_last_task_within_the_filter_is_charged_and_the_next_refused(
    ledger: Ledger, rate: float
) -> None:
    """What fits by PLD alone may have been chosen by what was seen, and PLD then proves nothing."""
    one = replace(calibrated(rate), max_rounds=1)
    charged = 0
    for k in range(2 * ROUNDS):
        try:
            ledger.charge(task(k, one, run=f"run-{k}"), limit=2.0)
        except ConfideError as error:
            if error.code != "ledger.budget-exhausted":
                raise
            break
        charged += 1
    assert 2 <= charged < 2 * ROUNDS
    order = ledger.entries()[1].payload["order"]
    terms = Terms(order=order, plain=rate == 1, limit=2.0)
    assert enforced(terms, (one.steps(charged),), 2.0, DELTA)
    assert not enforced(terms, (one.steps(charged + 1),), 2.0, DELTA)


PERSONS = replace(PLAN, unit=Unit.PERSON)


def by(number: int, column: str) -> Charge:
    """A task that counts persons by that column."""
    return replace(task(number, PERSONS), person=column)


def test_what_is_spent_on_records_and_on_persons_is_never_added_up(
    ledger: Ledger, path: Path
) -> None:
    ledger.charge(by(0, "author"), limit=8.0)
    assert ledger.unit == (Unit.PERSON, "author")
    before = ledger.entries()
    with Ledger.open(path) as again:
        for limit in (8.0, None):
            for other in (task(1), by(1, "line")):
                with pytest.raises(ConfideError) as caught:
                    again.charge(other, limit=limit)
                assert caught.value.code == "ledger.unit"
                assert "author" in caught.value.hint
    assert ledger.entries() == before
    with refused("ledger.unit"):
        ledger.check_unit(Unit.RECORD)
    ledger.check_unit(Unit.PERSON, "author")
    ledger.charge(by(1, "author"), limit=8.0)


def test_a_person_cannot_follow_a_record(ledger: Ledger) -> None:
    ledger.charge(task(0), limit=8.0)
    with refused("ledger.unit"):
        ledger.charge(by(1, "author"), limit=8.0)
    assert ledger.unit == (Unit.RECORD, "")


def test_another_process_settles_the_unit_in_the_last_moment(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> None:
        """Called before the transaction begins."""
        with monkeypatch.context() as once, Ledger.open(path) as other:
            once.setattr(Ledger, "objection", lambda *_: None)
            other.charge(task(0), limit=None)

    monkeypatch.setattr(Ledger, "objection", meanwhile)
    with refused("ledger.unit"):
        ledger.charge(by(1, "author"), limit=8.0)
    assert ledger.unit == (Unit.RECORD, "")


def test_a_comparison_without_noise_settles_no_unit(ledger: Ledger) -> None:
    bare = replace(PLAN, trust=Trust.OFF, noise_multiplier=0.0)
    ledger.charge(task(0, bare), limit=None)
    assert ledger.unit is None
    ledger.charge(by(1, "author"), limit=None)
    ledger.charge(task(2, bare), limit=None)
    assert ledger.unit == (Unit.PERSON, "author")


def test_a_column_goes_with_the_person_alone(ledger: Ledger) -> None:
    for charge in (by(0, ""), replace(task(0), person="author")):
        with refused("ledger.charge"):
            ledger.charge(charge, limit=None)


RESERVED = {
    "state": "reserved",
    "run": "r",
    "whole": [PLAN.steps(5).to_json()],
    "limit": 8.0,
    "order": 3.0,
}


def test_a_ledger_that_adds_up_two_units_is_damaged() -> None:
    book, head = chain.Book(), chain.NO_HASH
    for number, payload in enumerate(
        [
            {"state": "created", "format": chain.FORMAT, "ledger": "x", "key": "x"},
            {**RESERVED, "task": "a", "plan": PLAN.to_json()},
            {**RESERVED, "task": "b", "plan": PERSONS.to_json()},
        ]
    ):
        text = chain.canonical({**payload, "number": number, "previous": head})
        head = sha256(text.encode()).hexdigest()
        if payload.get("task") != "b":
            book.take(number, text, head)
            continue
        with refused("ledger.corrupt"):
            book.take(number, text, head)
    assert book.unit == (Unit.RECORD, "")


def test_a_task_without_noise_fits_no_limit(ledger: Ledger) -> None:
    bare = replace(PLAN, trust=Trust.OFF, noise_multiplier=0.0)
    with refused("ledger.budget-exhausted"):
        ledger.charge(task(0, bare), limit=1e9)
    ledger.charge(task(0, bare), limit=None)
    assert Receipt.from_json(ledger.receipt(DELTA, "run").to_json()).epsilon == float("inf")


def test_another_text_is_booked_with_its_release_and_the_budget_goes_on(ledger: Ledger) -> None:
    assert ledger.identity == ""
    for number, identity in enumerate(("first", "first", "second")):
        ledger.charge(task(number), limit=None)
        ledger.release(f"task-{number}", b"reply", identity)
        assert ledger.identity == identity
    states = [e.payload["state"] for e in ledger.entries()]
    assert states == ["created", *["reserved", "released"] * 3]
    assert spent(ledger) == 3


def test_a_receipt_names_the_head_all_runs_and_this_run(ledger: Ledger) -> None:
    ledger.charge(task(0, run="old"), limit=None)
    ledger.charge(task(1, run="new"), limit=None)
    ledger.charge(task(2, run="new"), limit=None)
    receipt = ledger.receipt(DELTA, "new")
    assert receipt.head == ledger.head
    assert receipt.epsilon == epsilon_pld([PLAN.steps(3)], DELTA)
    assert receipt.steps_run == (PLAN.steps(2),)
    assert (receipt.runs, receipt.limit) == (2, None)
    assert receipt.proven > receipt.epsilon
    assert Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": -1.0},
        {"epsilon": float("nan")},
        {"epsilon": "1"},
        {"entries": 0},
        {"entries": True},
        {"delta": 0.0},
        {"head": 3},
        {"steps_run": {}},
        {"steps_run": [PLAN.steps(1).to_json()] * (chain.MOST_MECHANISMS + 1)},
        {"runs": 0},
        {"runs": 1.0},
        {"proven": 0.001},
        {"proven": "8"},
        {"unmasked": 0.001},
        {"unmasked": "8"},
        {"limit": 8},
        {"limit": -1.0},
        {"limit": float("inf")},
        {"extra": 1},
    ],
)
def test_a_malformed_receipt_is_refused(ledger: Ledger, bad: dict[str, object]) -> None:
    ledger.charge(task(0), limit=8.0)
    data = ledger.receipt(DELTA, "run").to_json()
    assert Receipt.from_json(data).limit == 8.0
    with refused("ledger.receipt"):
        Receipt.from_json({**data, **bad})


def test_kill_9_loses_no_acknowledged_charge(path: Path) -> None:
    acknowledged = 0
    for kill in range(KILLS):
        with start_worker(path, f"run-{kill}", count=100_000) as worker:
            assert worker.stdout is not None
            for _ in range(random.randint(1, MOST_CHARGES_BEFORE_A_KILL)):
                assert worker.stdout.readline() == "charged\n"
                acknowledged += 1
            worker.kill()
            acknowledged += worker.stdout.read().count("charged\n")
        with Ledger.open(path, create=False) as ledger:
            # A charge may be booked whose acknowledgement was killed, never the other way round.
            assert acknowledged <= spent(ledger) <= acknowledged + kill + 1
    assert acknowledged >= KILLS


def test_a_sum_is_booked_once_over_one_set_and_costs_nothing(path: Path, ledger: Ledger) -> None:
    ledger.charge(task(1), None)
    before = ledger.epsilon(DELTA)
    for _ in range(2):
        ledger.open_sum("call", "set")
    ledger.open_sum("another call", "another set")
    with pytest.raises(ConfideError, match=r"sum\.opened"):
        ledger.open_sum("call", "another set")
    booked = [(e.payload["call"], e.payload["set"]) for e in ledger.entries()[2:]]
    assert booked == [("call", "set"), ("another call", "another set")]
    assert ledger.epsilon(DELTA) == before
    with Ledger.open(path, create=False) as again:
        with pytest.raises(ConfideError, match=r"sum\.opened"):
            again.open_sum("call", "another set")
        assert again.head == ledger.head
    assert verify(path).ok


def test_what_is_charged_for_shares_is_told_with_and_without_masks(ledger: Ledger) -> None:
    shared = replace(PLAN, trust=Trust.DISTRIBUTED, least=8, colluding=4)
    ledger.charge(task(1, shared), None)
    assert [s.noise_multiplier for s in ledger.steps()] == [PLAN.noise_multiplier]
    bare = ledger.steps(unmasked=True)
    assert [s.noise_multiplier for s in bare] == [PLAN.noise_multiplier / 2]
    receipt = ledger.receipt(DELTA, "run")
    assert receipt.epsilon == epsilon_pld(ledger.steps(), DELTA)
    assert receipt.unmasked == epsilon_pld(bare, DELTA) > receipt.epsilon


def test_two_processes_that_charge_at_once_lose_nothing(in_memory: Path) -> None:
    path = in_memory / "ledger.sqlite"
    workers = [start_worker(path, name, CHARGES_EACH) for name in ("one", "two")]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert outputs == ["charged\n" * CHARGES_EACH] * 2
    with Ledger.open(path, create=False) as ledger:
        assert spent(ledger) == 2 * CHARGES_EACH == sum(s.steps for s in ledger.steps("one")) * 2
        assert len(ledger.entries()) == 1 + 2 * CHARGES_EACH
        tasks = {e.payload["task"] for e in ledger.entries()[1:]}
        assert tasks == {f"{name}-{k}" for name in ("one", "two") for k in range(CHARGES_EACH)}


def test_two_processes_cannot_overspend_together(path: Path) -> None:
    affordable, limit = 7, 1.05
    terms = settle((PLAN.steps(PLAN.max_rounds),), DELTA, limit)
    assert enforced(terms, (PLAN.steps(affordable),), limit, DELTA)
    assert not enforced(terms, (PLAN.steps(affordable + 1),), limit, DELTA)
    workers = [start_worker(path, name, affordable, repr(limit)) for name in ("one", "two")]
    outputs = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    answers = outputs[0] + outputs[1]
    assert answers.count("charged") == affordable
    assert answers.count("ledger.budget-exhausted") == affordable
    with Ledger.open(path, create=False) as ledger:
        assert spent(ledger) == affordable


def test_an_open_ledger_sees_what_another_process_charged(ledger: Ledger, path: Path) -> None:
    ledger.charge(task(0), limit=None)
    with Ledger.open(path) as other:
        other.charge(task(1), limit=None)
        assert ledger.head == other.head
    with refused("ledger.task-spent"):
        ledger.charge(task(1), limit=None)


def test_a_ledger_in_use_for_too_long_is_named(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_SECONDS", 0.01)
    with Ledger.open(path) as other, ledger._transaction("IMMEDIATE"), refused("ledger.locked"):
        other.charge(task(0), limit=None)
    assert spent(ledger) == 0


def test_entries_can_be_neither_changed_nor_deleted_by_accident(ledger: Ledger) -> None:
    for statement in ("DELETE FROM entries", "UPDATE entries SET hash = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            ledger._sql.execute(statement)


@pytest.mark.parametrize("make", [None, Path.mkdir])
def test_a_missing_ledger_is_not_made_when_only_read(
    path: Path, make: Callable[[Path], None] | None
) -> None:
    if make is not None:
        make(path)
    before = path.exists()
    with refused("ledger.missing"):
        Ledger.open(path, create=False)
    with refused("ledger.missing"):
        verify(path)
    assert path.exists() == before


def test_a_ledger_in_a_missing_folder_is_refused(path: Path) -> None:
    with refused("ledger.missing"):
        Ledger.open(path / "ledger.sqlite")


def test_a_full_disk_refuses_the_charge_and_books_nothing(ledger: Ledger) -> None:
    pages = ledger._sql.execute("PRAGMA page_count").fetchone()[0]
    ledger._sql.execute(f"PRAGMA max_page_count = {pages}")
    ledger.charge(task(0), limit=None)
    with refused("ledger.write"):
        ledger.release("task-0", bytes(100_000))
    assert [e.payload["state"] for e in ledger.entries()] == ["created", "reserved"]


def test_a_ledger_of_a_later_format_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(ledger_file, "FORMAT", chain.FORMAT + 1)  # as a later version would write
        later.setattr(chain, "FORMAT", chain.FORMAT + 1)  # and read
        Ledger.open(path).close()
    with refused("ledger.format"):
        Ledger.open(path)


@pytest.mark.parametrize("bad", [{"run": ""}, {"task_hash": ""}, {"round": 1.5}])
def test_a_charge_that_names_nothing_is_refused(ledger: Ledger, bad: dict[str, object]) -> None:
    with refused("ledger.charge"):
        ledger.charge(replace(task(0), **bad), limit=None)  # type: ignore[arg-type]
    for limit in (-1.0, float("nan")):
        with refused("ledger.charge"):
            ledger.charge(task(0), limit=limit)
