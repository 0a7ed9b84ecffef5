"""Flower's side of a holder: messages in and out, and where a node's paths come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client import app as app_module
from confide.client.app import answer, app, site_of
from confide.client.guard.policy import Policy
from confide.common.errors import ConfideError
from confide.common.machine.installed import code_hash
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import (
    Refusal,
    Reply,
    TrainRequest,
    Update,
    reply_from_records,
    request_to_records,
)
from tests import tiny
from tests.client.conftest import Place, code
from tests.messages import altered, framed, opened, record

Node = dict[str, Any]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sets these in the process of a ClientApp; and every test starts without holders."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(app_module, "_HOLDERS", {})


def context(node: Node, run: Node | None = None) -> Context:
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run or {})


def ask(content: RecordDict, node: Node, run: Node | None = None) -> Reply:
    message = Message(content=content, dst_node_id=1, message_type="train")
    reply = app(message, context(node, run))
    assert not reply.has_error()
    return reply_from_records(reply.content)


@pytest.fixture
def deployed(place: Place) -> Node:
    policy = place.data.with_name("policy.toml")
    limits = f'max-delta = 0.01\nbase-models = ["{place.model}"]\n'
    policy.write_text(limits + tiny.DATA_TABLE, encoding="utf-8")
    Ledger.open(f"{place.data}.ledger.sqlite").close()
    return {"data": str(place.data), "policy": str(policy), "name": "clinic"}


def test_a_task_message_gives_an_update_message(place: Place, deployed: Node) -> None:
    reply = ask(request_to_records(place.task()), deployed)
    assert isinstance(reply, Update)
    assert reply.holder == "clinic"
    assert Path(f"{place.data}.ledger.sqlite").is_file()


def test_a_deployed_node_without_its_ledger_takes_part_in_nothing(
    place: Place, deployed: Node
) -> None:
    """Joining made it: what was spent is unknown without it, and none is made in its place."""
    ledger = Path(f"{place.data}.ledger.sqlite")
    moved = ledger.rename(ledger.with_name("moved"))
    assert code(ask(request_to_records(place.task()), deployed)) == "ledger.missing"
    assert not ledger.exists()
    moved.rename(ledger)
    assert code(ask(request_to_records(place.task()), deployed)) == "update"
    ledger.unlink()
    assert code(ask(request_to_records(place.task(2)), deployed)) == "ledger.missing"


def booked_code(ledger: Path) -> set[str]:
    with Ledger.open(ledger, create=False) as opened:
        return {e.payload["bundle"] for e in opened.entries() if e.payload["state"] == "reserved"}


def test_each_charge_books_the_code_that_is_installed(
    place: Place, deployed: Node, tiny_federation: Path, tmp_path: Path
) -> None:
    ask(request_to_records(place.task()), deployed)
    assert booked_code(Path(f"{place.data}.ledger.sqlite")) == {code_hash()}
    node, run = simulation(place, tiny_federation, tmp_path / "out")
    ask(request_to_records(place.task()), node, run)
    simulated = tmp_path / "out" / "run-1" / "holders" / "holder-01" / "ledger.sqlite"
    assert booked_code(simulated) == {code_hash()}


def test_the_same_holder_answers_every_message_of_a_node(place: Place, deployed: Node) -> None:
    for number in (1, 2):
        assert code(ask(request_to_records(place.task(number)), deployed)) == "update"
    assert len(app_module._HOLDERS) == 1


def test_a_policy_that_changes_counts_from_the_next_message(place: Place, deployed: Node) -> None:
    assert code(ask(request_to_records(place.task(1)), deployed)) == "update"
    Path(deployed["policy"]).write_text("max-epsilon = 0.1\n", encoding="utf-8")
    assert code(ask(request_to_records(place.task(2)), deployed)) == "policy.max-delta"


def test_a_deployed_node_ignores_every_path_of_the_run(
    place: Place, deployed: Node, tmp_path: Path
) -> None:
    other = {"data.path": str(tmp_path), "run.out": str(tmp_path), "run.resume": str(tmp_path)}
    task = place.task()
    before = site_of(task, deployed, {})
    assert site_of(task, deployed, other) == before
    assert before.data == place.data
    assert before.ledger.parent == place.data.parent
    files = sorted(tmp_path.iterdir())
    assert code(ask(request_to_records(task), deployed, other)) == "update"
    assert sorted(tmp_path.iterdir()) == files
    for key, value in other.items():
        task = place.task(2, settings=place.settings | {key: value})
        assert site_of(task, deployed, {}) == before
        assert code(ask(request_to_records(task), deployed)) == "task.path"


def test_a_node_with_a_number_is_deployed_all_the_same_when_it_names_its_own(
    place: Place, deployed: Node
) -> None:
    numbered = {**deployed, "partition-id": 0, "num-partitions": 2}
    assert site_of(place.task(), numbered, {}).data == place.data


def test_a_deployed_node_without_a_policy_has_the_defaults(place: Place) -> None:
    assert site_of(place.task(), {"data": str(place.data)}, {}).policy == Policy()


def simulation(place: Place, federation: Path, out: Path) -> tuple[Node, Node]:
    (out / "run-1").mkdir(parents=True)
    return {"partition-id": 1, "num-partitions": 3}, {
        "data.path": str(federation),
        "run.out": str(out),
    }


def test_a_simulated_node_has_its_number_and_the_runs_folder(
    place: Place, tiny_federation: Path, tmp_path: Path
) -> None:
    node, run = simulation(place, tiny_federation, tmp_path / "out")
    reply = ask(request_to_records(place.task()), node, run)
    assert isinstance(reply, Update)
    assert reply.holder == "holder-01"
    assert (tmp_path / "out" / "run-1" / "holders" / "holder-01" / "ledger.sqlite").is_file()


def test_a_simulated_node_keeps_to_the_policy_beside_its_text(place: Place, tmp_path: Path) -> None:
    federation = tiny.save_federation(tmp_path / "federation")
    (federation / "holder-01.policy.toml").write_text("max-rank = 1\n", encoding="utf-8")
    node, run = simulation(place, federation, tmp_path / "out")
    assert code(ask(request_to_records(place.task()), node, run)) == "policy.max-rank"


@pytest.mark.parametrize("missing", ["data.path", "run.out"])
def test_a_simulated_node_without_federation_or_run_folder_refuses(
    place: Place, tiny_federation: Path, tmp_path: Path, missing: str
) -> None:
    node, run = simulation(place, tiny_federation, tmp_path / "out")
    run[missing] = str(tmp_path / "nowhere")
    assert code(ask(request_to_records(place.task()), node, run)) == "simulation.federation"


@pytest.mark.parametrize(
    "node", [{}, {"num-partitions": 3}, {"policy": "p.toml"}, {"ledger": "l", "partition-id": 0}]
)
def test_a_node_that_names_no_data_refuses(
    place: Place, tiny_federation: Path, tmp_path: Path, node: Node
) -> None:
    _, run = simulation(place, tiny_federation, tmp_path / "out")
    assert code(ask(request_to_records(place.task()), node, run)) == "holder.not-configured"


def test_a_policy_that_is_missing_refuses(place: Place, deployed: Node) -> None:
    Path(deployed["policy"]).unlink()
    assert code(ask(request_to_records(place.task()), deployed)) == "policy.missing"


def with_header(**changes: Any) -> Callable[[TrainRequest], RecordDict]:
    def records(task: TrainRequest) -> RecordDict:
        return altered(request_to_records(task), **changes)

    return records


GARBAGE: list[Callable[[TrainRequest], RecordDict]] = [
    lambda _: RecordDict(),
    lambda _: RecordDict({"message": ConfigRecord({"run": "r"})}),
    lambda _: record(framed('{"run": "r"}')),
    lambda task: record(opened(request_to_records(task))[1]),
    lambda task: altered(request_to_records(task), without=["run"]),
    lambda _: record(framed("[1, 2")),
    lambda _: record(framed("[" * 30_000)),
    lambda _: record(framed('{"settings": {"train.batch": ' + "9" * 10_000 + "}}")),
    with_header(settings=[1, 2]),
    with_header(settings="x" * 100_000),
    with_header(settings=3),
    with_header(round="1"),
    with_header(round=-1),
    with_header(round=True),
    with_header(schema=[1]),
    with_header(run=""),
    with_header(run=".."),
    with_header(run="../../elsewhere"),
    with_header(run="a/b"),
    with_header(run="x" * 200),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused_and_leaves_no_trace(
    place: Place, deployed: Node, garbage: Callable[[TrainRequest], RecordDict]
) -> None:
    before = sorted(place.data.parent.iterdir())
    assert code(ask(garbage(place.task()), deployed)) == "wire.malformed"
    assert sorted(place.data.parent.iterdir()) == before


def test_no_exception_of_the_node_reaches_flower(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a private sentence")

    monkeypatch.setattr(app_module, "site_of", broken)
    message = Message(content=request_to_records(place.task()), dst_node_id=1, message_type="train")
    assert answer(message, context({})) == Refusal(holder="", task_hash="", code="holder.failed")


def test_where_a_node_is_not_configured_the_hint_says_how(place: Place) -> None:
    with pytest.raises(ConfideError) as caught:
        site_of(place.task(), {}, {})
    assert "--node-config" in caught.value.hint
