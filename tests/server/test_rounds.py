"""Rounds with holders that fail, refuse, lie, share a name, or are gone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confide.client.training.trainer import Trainer
from confide.common.adapter.schema import flatten, unflatten
from confide.common.errors import ConfideError
from confide.common.models.loading import LoadedModel, load_model
from confide.common.privacy.ledger import Ledger, verify
from confide.common.settings import Settings, from_flat
from confide.common.wire.messages import Refusal, Reply, TrainRequest, Update
from confide.server import transport as transport_module
from confide.server.checkpoint import load_checkpoint
from confide.server.evaluation import Score, public_evaluator
from confide.server.participants import KEY
from confide.server.rounds import Rounds
from confide.server.run_folder import RunFolder
from confide.server.senders import Known
from tests.server.federated import Transport, config, events, holders, received

Spoil = Callable[[TrainRequest, dict[int, Reply]], Mapping[int, Reply]]
NAMES = ["holder-00", "holder-01", "holder-02"]


class Spoiled(Transport):
    """``spoil`` is given from outside."""

    spoiler: Spoil = staticmethod(lambda task, replies: replies)  # type: ignore[assignment]

    def spoil(self, task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return self.spoiler(task, replies)


class Bench:
    """Rounds over the tiny federation, in a folder of their own."""

    def __init__(self, model: Path, data: Path, out: Path, **overrides: Any) -> None:
        self.settings: Settings = from_flat(config(model, data, out, **overrides))
        self.loaded: LoadedModel = load_model(self.settings)
        self.folder = RunFolder.create(str(out), "rounds")
        self.ledgers = out / "ledgers"
        self.transport = Spoiled(holders(data, self.ledgers))
        self.evaluator = public_evaluator(self.loaded, self.settings, data)
        self.known: Known | None = None

    def run(self, spoil: Spoil | None = None, nodes: Sequence[int] = (0, 1, 2)) -> Score:
        if spoil:
            self.transport.spoiler = spoil
        parts = self.settings, self.loaded, self.transport, self.folder, self.evaluator
        return Rounds(*parts, self.known).run(nodes)

    def rounds(self) -> list[dict[str, Any]]:
        return events(self.folder, "round")

    def adapter(self) -> torch.Tensor:
        return load_checkpoint(self.folder, self.loaded.schema).adapter

    def accepted(self) -> list[list[str]]:
        return [[a["holder"] for a in one["accepted"]] for one in self.rounds()]

    def left_out(self) -> list[list[tuple[str, str]]]:
        return [[(a["holder"], a["code"]) for a in one["left_out"]] for one in self.rounds()]


Make = Callable[..., Bench]


@pytest.fixture
def make(tiny_model: Path, tiny_federation: Path, tmp_path: Path) -> Make:
    def bench(**overrides: Any) -> Bench:
        made = len(list(tmp_path.iterdir()))
        return Bench(tiny_model, tiny_federation, tmp_path / str(made), **overrides)

    return bench


def replace(node: int, **changes: Any) -> Spoil:
    def spoil(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return {**replies, node: dataclasses.replace(replies[node], **changes)}

    return spoil


def values(update: Reply) -> torch.Tensor:
    assert isinstance(update, Update)
    return torch.from_numpy(np.frombuffer(update.values, dtype="<f4").copy())


def test_a_round_is_the_mean_of_the_changes_through_the_optimizer(make: Make) -> None:
    bench, seen = make(round__count=1, aggregate__optimizer="none", train__lr=0.5), []

    def keep(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        seen.append((received(task, bench.loaded), dict(replies)))
        return replies

    bench.run(keep)
    ((before, replies),) = seen
    mean = torch.stack([values(r).double() for r in replies.values()]).mean(0)
    schema = bench.loaded.schema
    named = unflatten(before, schema.shapes)
    trained = flatten(named, schema.trained_shapes).double() + 0.5 * mean
    named |= unflatten(trained.float(), schema.trained_shapes)
    expected = flatten(named, schema.shapes)
    assert torch.allclose(bench.adapter(), expected, atol=1e-6)
    assert not torch.equal(bench.adapter(), before)


def test_a_run_starts_anew_in_a_process_where_another_one_ran(make: Make) -> None:
    first, second, other = make(), make(), make(run__seed=1)
    for bench in (first, second, other):
        bench.run()
    starts = [bench.transport.tasks[0].rest for bench in (first, second, other)]
    assert starts[0] == starts[1] != starts[2]
    assert events(first.folder, "evaluation")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert torch.equal(first.adapter(), second.adapter())


def test_what_a_round_did_is_in_metrics(make: Make) -> None:
    bench = make()
    bench.run()
    first, second = bench.rounds()
    size = bench.loaded.schema.trained_size * 4
    assert bench.accepted() == [NAMES, NAMES]
    assert (first["round"], second["round"]) == (1, 2)
    assert first["bytes_up"] == size
    assert first["bytes_down"] == 0
    assert second["bytes_down"] == size
    assert not first["abandoned"]
    assert [e["round"] for e in events(bench.folder, "evaluation")] == [0, 1, 2]
    steps = [r["accepted"][1]["receipt"]["steps_run"][0]["steps"] for r in (first, second)]
    assert steps == [1, 2]


@pytest.mark.parametrize(("every", "measured"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (0, [0, 5])])
def test_the_public_text_is_scored_as_often_as_asked_and_the_adapter_is_the_same(
    make: Make, every: int, measured: list[int]
) -> None:
    often, seldom = make(round__count=5), make(round__count=5, round__evaluate_every=every)
    scores = [bench.run() for bench in (often, seldom)]
    told = events(seldom.folder, "evaluation")
    assert [e["round"] for e in told] == measured
    assert scores[0] == scores[1]
    assert told[-1]["loss"] == events(often.folder, "evaluation")[-1]["loss"]
    assert torch.equal(often.adapter(), seldom.adapter())


def test_what_looks_at_the_loss_has_it_after_each_round(make: Make) -> None:
    for change in ({"round__patience": 3}, {"train__schedule": "plateau"}):
        bench = make(round__count=3, round__evaluate_every=0, **change)
        bench.run()
        measured = [e["round"] for e in events(bench.folder, "evaluation")]
        assert measured[:4] == [0, 1, 2, 3], change  # and after it the one that is kept


def test_an_abandoned_last_round_leaves_the_score_of_the_last_one_that_counted(make: Make) -> None:
    def silent(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return replies if task.round < 3 else {}

    bench = make(round__count=3, round__evaluate_every=0)
    score = bench.run(silent)
    told = events(bench.folder, "evaluation")
    assert [e["round"] for e in told] == [0, 3]
    assert score.loss == pytest.approx(told[-1]["loss"], abs=1e-6)
    assert score.loss != pytest.approx(told[0]["loss"], abs=1e-6)


def test_no_setting_that_holders_hear_names_a_place_of_the_coordinator(
    make: Make, tiny_federation: Path, tmp_path: Path
) -> None:
    bench = make()
    bench.run()
    told = bench.transport.tasks[0].settings
    assert not {"data.path", "run.out", "run.resume", "run.name"} & told.keys()
    assert {"privacy.clip", "privacy.delta", "train.batch"} <= told.keys()
    places = [k for k, v in told.items() if "/" in str(v)]
    assert places == ["model.name"]  # a folder here, since the tiny model is on no hub
    assert str(tmp_path) not in str(told)
    assert str(tiny_federation) not in str(told)


def test_a_holder_that_fails_is_left_out_and_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, calls, train = make(), [], Trainer.train

    def second_fails(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) % 3 == 2:
            raise RuntimeError("quotes a private text")
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", second_fails)
    bench.run()
    assert bench.accepted() == [["holder-00", "holder-02"]] * 2
    assert bench.left_out() == [[("holder-01", "holder.failed")]] * 2
    assert "private" not in (bench.folder.path / "metrics.jsonl").read_text()


def test_a_holder_that_refuses_is_left_out_and_named(make: Make) -> None:
    bench = make()
    members = bench.transport._holders
    strict = dataclasses.replace(members[2].site.policy, max_delta=1e-9)
    members[2].site = dataclasses.replace(members[2].site, policy=strict)
    bench.run()
    assert bench.left_out() == [[("holder-02", "policy.max-delta")]] * 2


def poisoned(number: float) -> Spoil:
    def spoil(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        bad = torch.full_like(values(replies[1]), number)
        return replace(1, values=bad.numpy().tobytes())(task, replies)

    return spoil


HOSTILE: list[tuple[Spoil, str]] = [
    (replace(1, task_hash="0" * 64), "gate.task"),
    (replace(1, round=9), "gate.task"),
    (replace(1, schema="0" * 64), "gate.schema"),
    (replace(1, values=b""), "wire.size"),
    (replace(1, receipt={}), "gate.receipt"),
    (poisoned(math.nan), "gate.not-finite"),
    (poisoned(math.inf), "gate.not-finite"),
    (poisoned(1e30), "gate.norm"),
    (poisoned(1e3), "gate.norm"),
]


def test_a_hostile_holder_is_named_and_the_adapter_is_that_of_the_others(make: Make) -> None:
    def attack(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return HOSTILE[task.round - 1][0](task, replies)

    def drop(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return {**replies, 1: Refusal(holder="holder-01", task_hash=task.hash, code="gone")}

    hostile, honest = make(round__count=len(HOSTILE)), make(round__count=len(HOSTILE))
    hostile.run(attack)
    honest.run(drop)
    assert hostile.left_out() == [[("holder-01", code)] for _, code in HOSTILE]
    assert torch.equal(hostile.adapter(), honest.adapter())


def test_a_ledger_that_goes_back_between_rounds_is_left_out(make: Make) -> None:
    bench, first = make(round__count=3), {}

    def old_receipt(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        assert isinstance(replies[1], Update)
        told = first.setdefault("receipt", replies[1].receipt)
        return {**replies, 1: dataclasses.replace(replies[1], receipt=told)}

    bench.run(old_receipt)
    assert bench.left_out() == [[]] + [[("holder-01", "gate.ledger")]] * 2


def test_a_ledger_put_back_from_a_backup_is_noticed_by_the_coordinator(make: Make) -> None:
    """A holder restores its ledger file of after round 1 when it has answered round 2. To itself
    the copy is sound, and round 2 unspent; the receipt of round 3 tells the coordinator."""
    bench, backup = make(round__count=4), list[bytes]()
    ledger = bench.ledgers / "holder-01" / "ledger.sqlite"

    def restore(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if task.round == 1:
            backup.append(ledger.read_bytes())
        elif task.round == 2:
            ledger.write_bytes(backup[0])
        return replies

    bench.run(restore)
    assert verify(ledger).ok
    assert bench.left_out()[:2] == [[], []]
    assert bench.left_out()[2:] == [[("holder-01", "gate.ledger")]] * 2
    assert load_checkpoint(bench.folder, bench.loaded.schema).barred == {"holder-01"}


def test_nobody_is_barred_in_the_name_of_another(make: Make) -> None:
    """A stranger without the ledger's number fails alone, also where the holder did not answer."""
    bench, first = make(round__count=3), {}

    def forge(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        update = replies[1]
        assert isinstance(update, Update)
        first.setdefault("receipt", update.receipt)
        if task.round != 2:
            return replies
        receipt = {**first["receipt"], "ledger_id": "ef" * 16}
        return {**replies, 1: dataclasses.replace(update, receipt=receipt)}

    bench.run(forge)
    assert bench.left_out() == [[], [("holder-01", "gate.receipt")], []]


def test_a_name_that_is_none_is_never_written(make: Make) -> None:
    names = ["<script>alert(1)</script>", "../../up", "a" * 99, "two\nlines"]
    bench = make(round__count=len(names))
    bench.run(lambda task, replies: replace(2, holder=names[task.round - 1])(task, replies))
    assert bench.left_out() == [[("node-2", "gate.name")]] * len(names)
    written = (bench.folder.path / "metrics.jsonl").read_text()
    assert not any(name in written or repr(name)[1:-1] in written for name in names)


def test_two_holders_of_one_name_are_both_left_out(make: Make) -> None:
    bench = make(round__count=1, round__min_holders=1)
    bench.run(replace(2, holder="holder-00"))
    assert bench.accepted() == [["holder-01"]]
    assert bench.left_out() == [[("holder-00", "gate.duplicate")] * 2]


def test_a_name_that_was_accepted_from_one_node_is_taken_from_no_other(make: Make) -> None:
    """Holder 2 answers as holder 0 from the second round on, and is the only one left out."""
    bench = make(round__count=3)

    def spoil(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return replies if task.round == 1 else replace(2, holder="holder-00")(task, replies)

    bench.run(spoil)
    assert bench.accepted() == [NAMES, NAMES[:2], NAMES[:2]]
    assert bench.left_out() == [[], [("node-2", "gate.sender")], [("node-2", "gate.sender")]]


def test_where_the_nodes_are_known_another_name_counts_from_the_first_round_on_for_nothing(
    make: Make,
) -> None:
    bench = make(round__count=2)
    bench.known = lambda: dict(enumerate(NAMES))
    bench.run(replace(2, holder="holder-00"))
    assert bench.accepted() == [NAMES[:2]] * 2
    assert bench.left_out() == [[("holder-02", "gate.sender")]] * 2


@pytest.mark.parametrize("known", [None, lambda: dict(enumerate(NAMES))])
def test_nobody_gets_another_holder_barred_by_answering_in_its_name(
    make: Make, known: Known | None
) -> None:
    """Holder 0 misses two rounds. In one of them holder 2 says in its name what only the gate may
    say, in the other it sends in its name a receipt from before."""
    bench, first = make(round__count=4, round__min_holders=1), dict[str, Any]()
    bench.known = known

    def spoil(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        away = Refusal(holder="", task_hash=task.hash, code="transport.no-answer")
        if task.round == 2:
            liar = Refusal(holder="holder-00", task_hash=task.hash, code="gate.ledger")
            return {**replies, 0: away, 2: liar}
        if task.round == 3:
            old = replace(2, holder="holder-00", receipt=first["receipt"])
            return {**old(task, replies), 0: away}
        assert isinstance(replies[0], Update)
        first.setdefault("receipt", replies[0].receipt)
        return replies

    bench.run(spoil)
    assert bench.accepted() == [NAMES, ["holder-01"], ["holder-01"], NAMES]


def test_a_refusal_under_the_name_of_another_does_not_push_it_out(make: Make) -> None:
    bench = make(round__count=1)

    def spoil(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        liar = Refusal(holder="holder-00", task_hash=task.hash, code="<b>" * 40)
        return {**replies, 2: liar}

    bench.run(spoil)
    assert bench.accepted() == [["holder-00", "holder-01"]]
    assert bench.left_out() == [[("node-2", "holder.failed")]]


def test_below_min_holders_the_round_is_abandoned_whole(make: Make) -> None:
    bench = make(round__min_holders=3)

    def first_round(task: TrainRequest, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        return replace(1, schema="0" * 64)(task, replies) if task.round == 1 else replies

    bench.run(first_round)
    one, two = bench.rounds()
    assert (one["abandoned"], two["abandoned"]) == (True, False)
    assert [a["holder"] for a in one["accepted"]] == ["holder-00", "holder-02"]
    first, second = bench.transport.tasks
    assert first.adapter == second.adapter
    assert [e["round"] for e in events(bench.folder, "evaluation")] == [0, 2]
    # What was released stays charged: three tasks of round one, three of round two.
    assert two["accepted"][0]["receipt"]["steps_run"][0]["steps"] == 2


def test_when_every_round_is_abandoned_the_run_says_so(make: Make) -> None:
    bench = make(round__min_holders=3)
    with pytest.raises(ConfideError, match=r"run\.no-round.*2 rounds.*metrics\.jsonl"):
        bench.run(replace(0, schema=""))
    assert [one["abandoned"] for one in bench.rounds()] == [True, True]
    again = dataclasses.replace(
        bench.settings, run=dataclasses.replace(bench.settings.run, resume=str(bench.folder.path))
    )
    bench.settings = again
    with pytest.raises(ConfideError, match=r"run\.no-round"):
        bench.run()


def test_holders_that_are_gone_are_named_and_not_asked(make: Make) -> None:
    bench = make(round__count=1)
    bench.transport.nodes = lambda: [0, 2]  # type: ignore[method-assign]
    bench.run()
    assert bench.transport.asked == [[0, 2]]
    assert bench.left_out() == [[("node-1", "transport.gone")]]


def test_a_holder_that_comes_back_under_another_number_takes_part(make: Make) -> None:
    bench = make(round__count=1)
    bench.run(nodes=(0, 1, 77))
    assert bench.accepted() == [NAMES]
    assert bench.left_out() == [[("node-77", "transport.gone")]]


def test_with_too_few_connected_nobody_is_asked_and_nothing_is_charged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "_POLL_SECONDS", 0.01)
    bench = make(round__timeout=1.0)
    bench.transport.nodes = lambda: [1]  # type: ignore[method-assign]
    with pytest.raises(ConfideError, match=r"run\.too-few-holders"):
        bench.run()
    assert bench.transport.asked == []
    assert not (bench.folder.path / "metrics.jsonl").exists(), "no round, and no question either"
    assert not list(bench.transport._holders[1].site.ledger.parent.glob("*"))


def test_a_part_of_the_holders_takes_turns(make: Make) -> None:
    bench = make(round__count=6, round__holders=2)
    bench.folder.write(KEY, b"k" * 32)
    bench.run()
    assert all(len(asked) == 2 for asked in bench.transport.asked)
    assert [(event["asked"], event["connected"]) for event in bench.rounds()] == [(2, 3)] * 6
    assert len({tuple(asked) for asked in bench.transport.asked}) > 1
    charged = 0
    for holder in bench.transport._holders:
        with Ledger.open(holder.site.ledger) as ledger:
            charged += sum(s.steps for s in ledger.steps())
    assert charged == 12
