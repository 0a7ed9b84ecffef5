"""The only way out: finite, charged, booked, and the very bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from confide.client.guard.release import encoded, release
from confide.common.adapter.encoding import decode_vector
from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.common.wire.messages import TrainRequest, reply_to_bytes

DELTA = 1e-5
SIZE = 5
TASK = TrainRequest(run="r", round=1, settings={}, schema="s", sent="", rest="0" * 64, adapter=b"")
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=2.0,
    sampling_rate=0.5,
    steps_per_round=1,
    max_rounds=1,
    delta=DELTA,
)


IDENTITY = "the keyed hash of a text"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def charged(ledger: Ledger) -> Ledger:
    ledger.charge(Charge(run=TASK.run, round=1, task_hash=TASK.hash, plan=PLAN), None)
    return ledger


def out(ledger: Ledger, change: torch.Tensor, encoding: str = "fp32") -> bytes:
    sent = encoded(change, encoding)
    reply = release(sent, TASK, ledger, holder="h", delta=DELTA, identity=IDENTITY)
    return reply_to_bytes(reply)


def test_what_leaves_is_what_was_booked(charged: Ledger) -> None:
    reply = out(charged, torch.arange(SIZE, dtype=torch.float32))
    booked = charged.entries()[-1].payload
    assert booked["state"] == "released"
    assert booked["text"] == IDENTITY
    assert IDENTITY.encode() not in reply
    assert booked["reply"] == hashlib.sha256(reply).hexdigest()
    assert charged.replay(TASK.hash) == reply


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_the_values_are_the_change(charged: Ledger, encoding: str) -> None:
    change = torch.tensor([1.0, -2.0, 0.5, 0.0, 4.0])  # exact in either encoding
    sent = encoded(change, encoding)
    reply = release(sent, TASK, charged, holder="h", delta=DELTA, identity=IDENTITY)
    assert torch.equal(decode_vector(reply.values, encoding, SIZE), change)
    assert (reply.run, reply.round, reply.schema) == (TASK.run, TASK.round, TASK.schema)
    assert reply.task_hash == TASK.hash


def test_what_was_not_charged_does_not_leave(ledger: Ledger) -> None:
    with pytest.raises(ConfideError, match=r"ledger\.not-charged"):
        out(ledger, torch.zeros(SIZE))


def test_nothing_leaves_twice(charged: Ledger) -> None:
    out(charged, torch.zeros(SIZE))
    with pytest.raises(ConfideError, match=r"ledger\.task-spent"):
        out(charged, torch.ones(SIZE))


@pytest.mark.parametrize(
    ("value", "encoding"),
    [(math.nan, "fp32"), (math.inf, "fp32"), (-math.inf, "bf16"), (3.4e38, "bf16")],
)
def test_what_is_not_finite_does_not_leave_and_stays_charged(
    charged: Ledger, value: float, encoding: str
) -> None:
    change = torch.zeros(SIZE)
    change[3] = value
    with pytest.raises(ConfideError, match=r"release\.not-finite"):
        out(charged, change, encoding)
    assert charged.entries()[-1].payload["state"] == "reserved"


def test_an_encoding_that_nobody_knows_is_refused(charged: Ledger) -> None:
    with pytest.raises(ConfideError, match=r"wire\.encoding"):
        out(charged, torch.zeros(SIZE), "int3")
