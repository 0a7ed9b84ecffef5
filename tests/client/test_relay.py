"""The gateway's ClientApp: it hands a message on, and that is all that it can do."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client.app import _patience, app
from confide.common.wire.messages import (
    Refusal,
    Reply,
    reply_from_records,
    request_to_records,
)
from tests.client.test_resident import TASK, UPDATE, Served

WITHOUT_TORCH = """
import json, os, sys
from confide.client.app import app
print(json.dumps([name for name in ("torch", "transformers", "opacus") if name in sys.modules]))
print(sum(os.times()[:2]))
"""
MOST_SECONDS = 3.0


@pytest.fixture
def served(tmp_path: Path) -> Any:
    made = Served(tmp_path)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def ask(socket: Path, content: RecordDict) -> Reply:
    node = {"socket": str(socket), "data": "/never/read"}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    reply = app(Message(content=content, dst_node_id=1, message_type="train"), context)
    assert not reply.has_error()
    return reply_from_records(reply.content)


def test_a_message_goes_through_the_socket_and_back(served: Served) -> None:
    assert ask(served.path, request_to_records(TASK)) == UPDATE


def test_a_malformed_message_does_not_reach_the_resident(served: Served) -> None:
    seen: list[bytes] = []
    served.answer = lambda data: seen.append(data) or UPDATE
    reply = ask(served.path, RecordDict())
    assert reply == Refusal(holder="", task_hash="", code="wire.malformed")
    assert seen == []


def test_a_resident_that_is_not_there_is_a_code(tmp_path: Path) -> None:
    reply = ask(tmp_path / "socket", request_to_records(TASK))
    assert reply == Refusal(holder="", task_hash="", code="resident.unreachable")


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(600.0, 600.0), (1, 30.0), (1e9, 86400.0), (-5, 30.0), (math.nan, 30.0), ("x", 30.0)],
)
def test_it_waits_as_long_as_the_coordinator_does_within_reason(
    timeout: Any, seconds: float
) -> None:
    assert _patience(dataclasses.replace(TASK, settings={"round.timeout": timeout})) == seconds


def test_the_app_starts_quickly_and_without_torch(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=root, capture_output=True, text=True, check=True
    )
    loaded, seconds = done.stdout.splitlines()
    assert json.loads(loaded) == []
    assert float(seconds) < MOST_SECONDS
