"""The pin: no byte of another bundle gets past it, and an upgrade of Flower tells."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from hashlib import sha256
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as start
from flwr.supernode.nodestate import NodeStateFactory

from confide.client.site import supernode
from confide.common.errors import ConfideError

OURS, THEIRS = b"our bundle", b"a hostile bundle"
PIN = sha256(OURS).hexdigest()
RUN = 7


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's module, as it was, again after the test."""
    for name in ("_pull_and_store_message", "_verify_fab", "FAB_VERIFICATION_ERROR"):
        monkeypatch.setattr(start, name, getattr(start, name))
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return start


class Link:
    """A coordinator that sends one message of a run with this bundle, by Flower's own functions."""

    def __init__(self, content: bytes, claimed: str | None = None) -> None:
        self.store = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=self.store).state()
        self.state.set_node_id(1)
        self.fab = Fab(claimed or sha256(content).hexdigest(), content, {"valid_license": "yes"})

    def pull(self) -> Any:
        """Let Flower take the message; the replies that it has made itself."""
        message = Message(content=RecordDict(), dst_node_id=1, message_type="train")
        message.metadata.__dict__.update(_run_id=RUN, _message_id=message.object_id)
        run = SimpleNamespace(
            run_id=RUN,
            fab_hash=self.fab.hash_str,
            series_id=1,
            primary_task_type="",
        )
        start._pull_and_store_message(
            state=self.state,
            object_store=self.store.store(),
            node_config={},
            receive=lambda: (message, start.get_object_tree(message)),
            get_run=lambda _: run,
            get_fab=lambda *_: self.fab,
            pull_object=lambda *_: b"",
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )
        return self.state.get_messages_legacy(is_reply=True)


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch, flower: ModuleType) -> list[bytes]:
    """The bundles that Flower opened to read their configuration, the first thing it does."""
    opened: list[bytes] = []

    def fused(content: bytes, run: Any) -> dict[str, Any]:
        opened.append(content)
        raise InterruptedError  # far enough: it is past the pin

    monkeypatch.setattr(flower, "get_fused_config_from_fab", fused)
    return opened


def test_a_pinned_bundle_gets_through(config_of: list[bytes]) -> None:
    supernode.pin(frozenset({PIN}))
    with pytest.raises(InterruptedError):
        Link(OURS).pull()
    assert config_of == [OURS]


@pytest.mark.parametrize(
    ("content", "claimed"), [(THEIRS, None), (THEIRS, PIN), (OURS, sha256(THEIRS).hexdigest())]
)
def test_any_other_is_answered_with_a_code_before_it_is_opened(
    config_of: list[bytes], content: bytes, claimed: str | None
) -> None:
    supernode.pin(frozenset({PIN}))
    link = Link(content, claimed)
    (reply,) = link.pull()
    assert (reply.error.code, reply.error.reason) == (ErrorCode.INVALID_FAB, "bundle.not-pinned")
    assert config_of == []
    assert link.state.get_run(RUN) is None


def test_no_pin_allows_nothing(config_of: list[bytes]) -> None:
    supernode.pin(frozenset())
    (reply,) = Link(OURS).pull()
    assert reply.error.reason == "bundle.not-pinned"
    assert config_of == []


def test_flower_itself_lets_anything_through(config_of: list[bytes]) -> None:
    """Why there is a pin; if this fails, look at what Flower offers now."""
    with pytest.raises(InterruptedError):
        Link(THEIRS).pull()
    assert config_of == [THEIRS]


def test_of_a_bundle_that_is_not_pinned_no_byte_is_handed_on() -> None:
    fetch = supernode.pinned(frozenset({PIN}), lambda *_: Fab("x", THEIRS, {"valid_license": "y"}))
    assert fetch(PIN, RUN) == Fab(sha256(THEIRS).hexdigest(), b"", {})


def test_a_pin_that_is_no_sum_is_refused(flower: ModuleType) -> None:
    for wrong in ("", "abc", PIN.upper(), f"{PIN} "):
        with pytest.raises(ConfideError) as caught:
            supernode.pin(frozenset({wrong}))
        assert caught.value.code == "gateway.pin"


def test_the_private_names_of_flower_are_there_and_used_as_we_mean() -> None:
    supernode.check_flower()
    assert list(inspect.signature(start._verify_fab).parameters) == ["fab", "trusted_entities"]
    assert start.FAB_VERIFICATION_ERROR.code == ErrorCode.INVALID_FAB


def _other_pull(*, receive: Any, get_fab: Any) -> None: ...


def _deaf_pull(*, get_fab: Any, trusted_entities: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("_pull_and_store_message", _other_pull),
        ("_pull_and_store_message", _deaf_pull),
        ("_pull_and_store_message", None),
        ("_verify_fab", None),
        ("start_client_internal", _other_pull),
    ],
)
def test_a_flower_that_changed_is_not_started(
    flower: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    other: Callable[..., None] | None,
) -> None:
    monkeypatch.setattr(flower, name, other)
    with pytest.raises(ConfideError) as caught:
        supernode.pin(frozenset({PIN}))
    assert caught.value.code == "gateway.flower"
    assert "constraints.txt" in caught.value.hint


def test_the_pin_stands_on_what_flower_calls_by_name() -> None:
    """``start_client_internal`` looks the function up in its module each time."""
    module = importlib.import_module("flwr.supernode.start_client_internal")
    assert module.start_client_internal.__globals__ is vars(start)
