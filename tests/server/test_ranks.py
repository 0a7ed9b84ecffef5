"""Holders of different rank in one federation, against the same rounds by plain autograd."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client.guard.policy import SIMULATION
from confide.client.holder import Holder
from confide.common.methods.ranks import at_rank
from confide.common.models.batches import EncodedText
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from confide.common.wire.messages import Reply, TrainRequest, Update
from confide.server.run import run
from confide.server.run_folder import RunFolder
from confide.simulations.inprocess import federation
from tests import tiny
from tests.server.federated import SeededHolder, Transport, config, events
from tests.server.test_methods import (
    OFF,
    last_adapter,
)

RANK, RANKS = 3, (1, 3, 2)
METHODS = ("hetlora", "flexlora")
MIXED = {"lora__rank": RANK, "lora__alpha": 6, "lora__layers": 2}


def members(data: Path, ledgers: Path, ranks: Sequence[int]) -> list[Holder]:
    found = []
    for path, rank in zip(sorted(data.glob("holder-*.jsonl")), ranks, strict=False):
        holder = SeededHolder(_site(path, ledgers, rank))
        found.append(holder)
    return found


def _site(path: Path, ledgers: Path, rank: int) -> Any:
    from confide.client.holder import Site

    policy = dataclasses.replace(SIMULATION, max_rank=rank)
    ledger = ledgers / path.stem / "ledger.sqlite"
    return Site(name=path.stem, data=path, ledger=ledger, policy=policy, new_ledger=True)


def run_it(
    model: Path, data: Path, out: Path, ranks: Sequence[int], kind: Any = Transport, **wanted: Any
) -> tuple[RunFolder, Transport, LoadedModel]:
    transport = kind(members(data, out / "ledgers", ranks))
    flat = config(model, data, out / "runs", **MIXED, **wanted)
    return run(flat, transport), transport, load_model(from_flat(flat))


def text_of(loaded: LoadedModel, path: Path) -> EncodedText:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    records = [Record(text=row["text"], target=row["label"]) for row in rows]
    return EncodedText(loaded.task.encode(records, loaded.tokenizer, loaded.max_length), loaded)


@pytest.mark.parametrize(("name", "other"), [("hetlora", "ffa"), ("flexlora", "fedsvd")])
def test_where_every_holder_trains_the_whole_rank_it_is_the_method_of_one_rank(
    name: str, other: str, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    found = []
    for method in (name, other):
        wanted = {**OFF, "aggregate__method": method}
        folder, _, loaded = run_it(
            tiny_model, tiny_federation, tmp_path / method, (RANK,) * 3, **wanted
        )
        found.append(last_adapter(folder, loaded))
    for part, value in found[0].items():
        assert torch.equal(value, found[1][part]), part
    assert any(value.any() for part, value in found[0].items() if "lora_B" in part)


@pytest.mark.parametrize("name", METHODS)
def test_a_holder_of_smaller_rank_sends_less_and_states_its_receipt_as_everybody(
    name: str, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    folder, transport, loaded = run_it(
        tiny_model, tiny_federation, tmp_path, RANKS, aggregate__method=name
    )
    for event in events(folder, "round"):
        assert not event["left_out"]
        sizes = [4 * at_rank(loaded.schema, rank).trained_size for rank in RANKS]
        assert [row["bytes_up"] for row in event["accepted"]] == sizes
        steps = [row["receipt"]["steps_run"] for row in event["accepted"]]
        assert steps[0] == steps[1] == steps[2]
    assert {task.settings["aggregate.method"] for task in transport.tasks} == {name}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_clip_norm_is_of_all_that_is_trained_whatever_the_rank(
    rank: int, tiny_model: Path, tmp_path: Path
) -> None:
    data = tiny.save_federation(tmp_path / "data", holders=1, records=1)
    clip = 1e-3  # below any gradient's length
    changes = {"privacy__clip": clip, "train__batch": 1, "round__count": 1}
    wanted = {**OFF, **changes, "aggregate__method": "hetlora"}

    class Keeping(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            (self.reply,) = replies.values()
            return replies

    _, transport, loaded = run_it(tiny_model, data, tmp_path, (rank,), Keeping, **wanted)
    sent = transport.reply
    assert isinstance(sent, Update)
    change = torch.frombuffer(bytearray(sent.values), dtype=torch.float32)
    assert change.numel() == at_rank(loaded.schema, rank).trained_size
    assert float(change.double().norm()) == pytest.approx(clip, rel=1e-4)


def test_where_the_method_admits_one_rank_alone_a_smaller_policy_refuses(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    folder, _, _ = run_it(
        tiny_model, tiny_federation, tmp_path, RANKS, aggregate__method="ffa", round__min_holders=1
    )
    for event in events(folder, "round"):
        assert [row["holder"] for row in event["accepted"]] == ["holder-01"]
        assert {row["code"] for row in event["left_out"]} == {"policy.max-rank"}


@pytest.mark.parametrize("claim", ["rank 1", "rank 4", "nothing"])
def test_a_holder_can_claim_no_schema_but_one_of_the_run_s_ranks_and_of_its_size(
    claim: str, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    flat = config(tiny_model, tiny_federation, tmp_path, **MIXED)
    schema = load_model(from_flat(flat)).schema
    claims = {"rank 1": at_rank(schema, 1).digest, "rank 4": at_rank(schema, 4).digest}

    class Claiming(Transport):
        def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
            sent = replies[1]
            assert isinstance(sent, Update)
            return replies | {1: dataclasses.replace(sent, schema=claims.get(claim, ""))}

    folder, _, _ = run_it(
        tiny_model, tiny_federation, tmp_path, RANKS, Claiming, aggregate__method="hetlora"
    )
    code = "wire.size" if claim == "rank 1" else "gate.schema"
    for event in events(folder, "round"):
        assert event["left_out"] == [{"holder": "holder-01", "code": code}]


def test_under_a_method_of_one_rank_the_gate_knows_no_other(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Claiming(Transport):
        def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
            """One holder answers as if the method admitted its rank."""
            replies = dict(super().ask(nodes, task, timeout))
            sent = replies[1]
            assert isinstance(sent, Update)
            flat = config(tiny_model, tiny_federation, tmp_path, **MIXED)
            small = at_rank(load_model(from_flat(flat)).schema, 1)
            values = sent.values[: 4 * small.trained_size]
            return replies | {1: dataclasses.replace(sent, schema=small.digest, values=values)}

    folder, _, _ = run_it(
        tiny_model, tiny_federation, tmp_path, (3, 3, 3), Claiming, aggregate__method="ffa"
    )
    for event in events(folder, "round"):
        assert event["left_out"] == [{"holder": "holder-01", "code": "gate.schema"}]


def test_a_simulated_holder_trains_the_rank_of_the_policy_beside_its_text(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = tiny.save_federation(tmp_path / "data")
    (data / "holder-01.policy.toml").write_text("max-rank = 1\n", encoding="utf-8")
    transport = federation(sorted(data.glob("holder-*.jsonl")), tmp_path / "ledgers")
    changes = {"aggregate__method": "flexlora", "round__count": 1}
    flat = config(tiny_model, data, tmp_path / "runs", **MIXED, **changes)
    (event,) = events(run(flat, transport), "round")
    first, second, third = (row["bytes_up"] for row in event["accepted"])
    assert second < first == third
