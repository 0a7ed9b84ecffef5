"""Rounds over a secure sum, in process: what comes of them, and of everything that goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confide.client.guard.sum_keys import SumKeys
from confide.client.holder import Holder
from confide.common.errors import ConfideError
from confide.common.machine.paths import keys_beside
from confide.common.models.loading import LoadedModel, load_model
from confide.common.plans import plan_of, step_of_round
from confide.common.privacy.ledger import Ledger
from confide.common.settings import Settings, from_flat
from confide.common.wire.messages import (
    Opening,
    OpenRequest,
    Refusal,
    Reply,
    Request,
    TrainRequest,
    Update,
)
from confide.server.checkpoint import load_checkpoint
from confide.server.evaluation import Score, public_evaluator
from confide.server.report import epsilon_text
from confide.server.report.build import build_report
from confide.server.report.terminal import outcome
from confide.server.rounds import Rounds
from confide.server.run_folder import RunFolder
from confide.simulations.inprocess import InProcessTransport, federation
from tests import tiny
from tests.no_noise import no_noise
from tests.server.federated import config, events

SHARED = {
    "privacy__trust": "distributed",
    "privacy__colluding": 1,
    "round__min_holders": 3,
    "aggregate__optimizer": "none",
}
HOLDERS = 4
Spoil = Callable[[Request, dict[int, Reply]], Mapping[int, Reply]]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_federation(tmp_path_factory.mktemp("four") / "federation", holders=HOLDERS)


class Transport(InProcessTransport):
    """Keeps what goes each way; ``spoil`` may change the replies."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        super().__init__(holders)
        self.seen: list[tuple[Request, dict[int, Reply]]] = []
        self.spoil: Spoil = lambda request, replies: replies
        self.gone: set[int] = set()

    def nodes(self) -> Sequence[int]:
        return [node for node in super().nodes() if node not in self.gone]

    def ask(self, nodes: Sequence[int], request: Request, timeout: float) -> Mapping[int, Reply]:
        replies = dict(super().ask(nodes, request, timeout))
        self.seen.append((request, replies))
        return self.spoil(request, replies)

    def of(self, kind: type) -> list[tuple[Any, dict[int, Any]]]:
        return [pair for pair in self.seen if isinstance(pair[0], kind)]


class Bench:
    """Rounds over the tiny federation, in a folder of their own."""

    def __init__(self, model: Path, data: Path, out: Path, **changes: Any) -> None:
        self.settings: Settings = from_flat(config(model, data, out, **(SHARED | changes)))
        self.loaded: LoadedModel = load_model(self.settings)
        self.folder = RunFolder.create(str(out), "sum")
        self.ledgers = self.folder.path / "holders"
        inner = federation(sorted(data.glob("holder-*.jsonl")), self.ledgers)
        self.transport = Transport(inner._holders)
        self.evaluator = public_evaluator(self.loaded, self.settings, data)

    def run(self, **more: Any) -> Score:
        parts = self.settings, self.loaded, self.transport, self.folder, self.evaluator
        return Rounds(*parts, **more).run(range(HOLDERS))

    def rounds(self) -> list[dict[str, Any]]:
        return events(self.folder, "round")

    def adapter(self) -> torch.Tensor:
        return load_checkpoint(self.folder, self.loaded.schema).adapter

    def ledger(self, number: int) -> list[dict[str, Any]]:
        path = self.ledgers / f"holder-{number:02d}" / "ledger.sqlite"
        with Ledger.open(path, create=False) as ledger:
            return [entry.payload for entry in ledger.entries()]


Make = Callable[..., Bench]


@pytest.fixture
def make(tiny_model: Path, four: Path, tmp_path: Path) -> Make:
    def bench(**changes: Any) -> Bench:
        made = len(list(tmp_path.iterdir()))
        return Bench(tiny_model, four, tmp_path / str(made), **changes)

    return bench


def test_every_round_counts_and_nobody_sees_a_part(make: Make) -> None:
    bench = make(round__count=3)
    bench.run()
    for line in bench.rounds():
        assert not line["abandoned"]
        assert [row["holder"] for row in line["accepted"]] == [f"holder-0{i}" for i in range(4)]
        assert (line["openers"], line["sum"]) == (["holder-00", "holder-01"], "")
    asked = bench.transport.of(OpenRequest)
    assert [sorted(replies) for _, replies in asked] == [[0, 1]] * 3, "T + 1 are asked, once"
    size = bench.loaded.schema.trained_size
    for request, replies in bench.transport.of(TrainRequest):
        for update in replies.values():
            assert update.encoding == "ring32"
            assert len(update.values) == 4 * (size + 4)
            assert len(update.statement) <= 2 * 1200 + 200
        assert len({update.values for update in replies.values()}) == HOLDERS
        assert request.roster
        assert request.openers


@pytest.fixture
def noiseless(monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)


def test_with_the_noise_off_the_sum_is_the_plain_sum_bit_for_bit_on_the_grid(
    make: Make, noiseless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.client import opening

    hidden: list[np.ndarray[Any, Any]] = []
    real = opening.to_words

    def keep(values: Any, step: float) -> Any:
        hidden.append(np.rint(values / step))
        return real(values, step)

    monkeypatch.setattr(opening, "to_words", keep)
    bench = make(round__count=1, train__lr=0.5)
    bench.run()
    step = step_of_round(bench.settings)
    mean = np.sum(hidden, axis=0) * step / (HOLDERS * bench.settings.train.batch)
    schema = bench.loaded.schema
    start = torch.cat([bench.loaded.initial[n].reshape(-1) for n, _ in schema.trained_shapes])
    from confide.common.adapter.schema import flatten, unflatten

    moved = flatten(unflatten(bench.adapter(), schema.shapes), schema.trained_shapes)
    expected = start.double() + 0.5 * torch.from_numpy(mean).float().double()
    assert torch.allclose(moved.double(), expected, rtol=0, atol=1e-7)
    assert float((moved - start).abs().max()) > 1e-4


def test_a_masked_run_is_the_plain_one_to_the_grain_of_the_grid(
    make: Make, noiseless: None
) -> None:
    masked, plain = make(round__count=2), make(round__count=2, privacy__trust="local")
    masked.run()
    plain.run()
    step = step_of_round(masked.settings) / masked.settings.train.batch
    assert float((masked.adapter() - plain.adapter()).abs().max()) <= 4 * step + 1e-6


def test_one_that_does_not_contribute_is_not_in_the_sum_and_the_round_counts(make: Make) -> None:
    bench = make(round__count=1)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if isinstance(request, TrainRequest):
            refusal = Refusal(holder="", task_hash=request.hash, code="transport.no-answer")
            return replies | {3: refusal}
        return replies

    bench.transport.spoil = spoil
    bench.run()
    (line,) = bench.rounds()
    assert not line["abandoned"]
    assert len(line["accepted"]) == 3


def test_fewer_than_the_least_are_never_opened(make: Make) -> None:
    bench = make(round__count=1)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        refusal = Refusal(holder="", task_hash=request.hash, code="transport.no-answer")
        return replies | {2: refusal, 3: refusal} if isinstance(request, TrainRequest) else replies

    bench.transport.spoil = spoil
    with pytest.raises(ConfideError, match=r"run\.no-round"):
        bench.run()
    assert bench.transport.of(OpenRequest) == []
    assert all(e["state"] != "opened" for i in range(4) for e in bench.ledger(i))


def begin(bench: Bench) -> None:
    """What a run writes before its rounds, which its report needs."""
    bench.folder.event("start", run=bench.folder.id, time="2026-01-01T00:00:00Z")
    bench.folder.write_config(bench.settings.to_flat())


def silent_at_first(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
    if isinstance(request, OpenRequest) and 0 in replies:
        refusal = Refusal(holder="", task_hash=request.hash, code="transport.no-answer")
        return replies | {0: refusal}
    return replies


def test_an_opener_that_is_silent_costs_one_round_and_others_open_the_next(make: Make) -> None:
    bench = make(round__count=3)
    bench.transport.spoil = silent_at_first
    begin(bench)
    bench.run()
    first, second, third = bench.rounds()
    assert first["abandoned"]
    assert {"holder": "holder-00", "code": "transport.no-answer"} in first["left_out"]
    assert not second["abandoned"]
    assert not third["abandoned"]
    assert "holder-00" not in second["openers"]
    report = build_report(bench.folder.path, prv=False)
    assert report["run"]["rounds"] == 2
    assert {row["name"] for row in report["holders"]} == {f"holder-0{i}" for i in range(4)}


@pytest.mark.parametrize("place", [0, 2])
def test_a_sum_that_somebody_breaks_is_abandoned_and_nobody_is_named(
    make: Make, place: int
) -> None:
    """By an opener's wrong keystream, or a contributor's words under a right statement."""
    bench = make(round__count=1)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        reply = replies.get(place)
        if isinstance(request, OpenRequest) and isinstance(reply, Opening):
            wrong = bytes(len(reply.values))
            return replies | {place: dataclasses.replace(reply, values=wrong)}
        return replies

    if place == 2:  # a member whose vector has other check words than every honest one
        holder = bench.transport._holders[2]
        member = holder._member.__class__
        real = member.hide

        def hide(self: Any, call: Any, values: Any, step: float, schema: str = "") -> Any:
            from confide.client import opening

            if self._name != "holder-02":
                return real(self, call, values, step, schema)
            honest = opening.to_words
            opening.to_words = lambda v, s: honest(v, s) + np.uint32(1)  # type: ignore[assignment]
            try:
                return real(self, call, values, step, schema)
            finally:
                opening.to_words = honest

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(member, "hide", hide)
            with pytest.raises(ConfideError, match=r"run\.no-round.*sum\.broken"):
                bench.run()
    else:
        bench.transport.spoil = spoil
        with pytest.raises(ConfideError, match=r"run\.no-round.*sum\.broken"):
            bench.run()
    (line,) = bench.rounds()
    assert line["abandoned"]
    assert line["sum"] == "sum.broken"
    assert line["left_out"] == []


def break_sums_of(name: str, patch: pytest.MonkeyPatch, code: str = "sum.broken") -> None:
    """Have a member contribute what no sum is right with, always."""
    from confide.client import opening

    real = opening.contribute

    def contribute(identity: Any, call: Any, words: Any) -> Any:
        if identity.member.name == name:
            words = words + np.uint32(1) if code == "sum.broken" else words ^ np.uint32(1 << 30)
            words[-4:] = words[-4:] if code == "sum.broken" else [1, 0, 0, 0]
        return real(identity, call, words)

    patch.setattr(opening, "contribute", contribute)


def test_one_whose_seeds_do_not_open_is_found_as_one_that_spoils_sums(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The openers refuse and are asked in turns; that they refused is not held against them."""
    from confide.client import opening

    real = opening.contribute

    def contribute(identity: Any, call: Any, words: Any) -> Any:
        statement, masked = real(identity, call, words)
        if identity.name != "holder-03":
            return statement, masked
        sealed = tuple(one[:-1] + bytes([one[-1] ^ 1]) for one in statement.sealed)
        bare = dataclasses.replace(statement, sealed=sealed)
        return dataclasses.replace(bare, signature=identity.sign(bare.body(call))), masked

    monkeypatch.setattr(opening, "contribute", contribute)
    bench = make(round__count=8)
    begin(bench)
    bench.run()
    codes = {row["code"] for line in bench.rounds() for row in line["left_out"]}
    assert codes == {"sum.sealed", "sum.suspect"}
    *lost, last = [line["abandoned"] for line in bench.rounds()]
    assert (lost, last) == ([True] * 6 + [False], False)
    assert bench.rounds()[-1]["left_out"] == [{"holder": "holder-03", "code": "sum.suspect"}]


@pytest.mark.parametrize("code", ["sum.broken", "gate.norm"])
def test_after_three_wrong_sums_the_one_who_spoils_them_is_found_by_leaving_others_out(
    make: Make, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    break_sums_of("holder-02", monkeypatch, code)
    bench = make(round__count=8)
    begin(bench)
    bench.run()
    suspect = [
        [row["holder"] for row in line["left_out"] if row["code"] == "sum.suspect"]
        for line in bench.rounds()
    ]
    assert suspect == [[], [], [], ["holder-00"], ["holder-01"], *([["holder-02"]] * 3)]
    assert [line["abandoned"] for line in bench.rounds()] == [True] * 5 + [False] * 3
    assert [line["sum"] for line in bench.rounds()] == [code] * 5 + [""] * 3
    assert build_report(bench.folder.path, prv=False)["run"]["rounds"] == 3


def test_a_resumed_run_goes_on_looking_where_it_was(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_sums_of("holder-02", monkeypatch)
    bench, asked = make(round__count=7), [0]

    def stop(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        asked[0] += isinstance(request, TrainRequest)
        if asked[0] == 6:  # who can take part, and five rounds
            raise KeyboardInterrupt
        return replies

    bench.transport.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.transport.spoil = lambda request, replies: replies
    resume(bench)
    left = [[row["holder"] for row in line["left_out"]] for line in bench.rounds()]
    assert left[3:] == [["holder-00"], ["holder-01"], ["holder-02"], ["holder-02"]]


def test_an_opener_that_answers_wrongly_is_found_too(make: Make) -> None:
    bench = make(round__count=5)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        reply = replies.get(0)
        if isinstance(reply, Opening):
            wrong = dataclasses.replace(reply, values=bytes(len(reply.values)))
            return replies | {0: wrong}
        return replies

    bench.transport.spoil = spoil
    bench.run()
    assert [line["abandoned"] for line in bench.rounds()] == [True] * 3 + [False] * 2


def test_who_spoils_a_sum_now_and_then_is_not_looked_for(make: Make) -> None:
    bench, asked = make(round__count=8), [0]

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        reply, asked[0] = replies.get(0), asked[0] + isinstance(request, OpenRequest)
        if isinstance(reply, Opening) and asked[0] % 2:
            return replies | {0: dataclasses.replace(reply, values=bytes(len(reply.values)))}
        return replies

    bench.transport.spoil = spoil
    bench.run()
    assert [line["abandoned"] for line in bench.rounds()] == [True, False] * 4
    assert all(line["left_out"] == [] for line in bench.rounds())


def test_where_nobody_can_be_spared_three_wrong_sums_end_the_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_sums_of("holder-02", monkeypatch)
    bench = make(round__count=8, round__min_holders=4)
    with pytest.raises(ConfideError, match=r"run\.no-round.*sum\.broken"):
        bench.run()
    assert len(bench.rounds()) == 3


def test_two_who_spoil_sums_are_not_found_and_the_run_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_sums_of("holder-01", monkeypatch)
        break_sums_of("holder-02", patch)
        bench = make(round__count=20)
        with pytest.raises(ConfideError, match=r"run\.no-round.*sum\.broken"):
            bench.run()
    assert len(bench.rounds()) == 3 + HOLDERS


WHOLE = {
    "privacy__unit": "holder",
    "privacy__delta": 1e-2,
    "privacy__clip_quantile": 0.5,
    "round__mode": "steps",
    "train__steps": 2,
    "train__lr": 0.5,
}


def test_a_clip_norm_that_follows_the_updates_ends_near_their_median(
    make: Make, noiseless: None
) -> None:
    """From above and from below; with the wrong sign it would run away."""
    fixed = make(round__count=1, **(WHOLE | {"privacy__clip": 1e-3}))
    norms = list[float]()
    from confide.client import holder as module

    real = module.with_bit

    def watched(change: Any, clip: float, bit: float) -> Any:
        norms.append(float(change.double().norm()))
        return real(change, clip, bit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "with_bit", watched)
        fixed.run()
    middle = float(np.median(norms))
    assert len(norms) == HOLDERS
    for start in (2.0, 0.5):
        bench = make(round__count=9, **(WHOLE | {"privacy__clip": start * middle}))
        bench.run()
        clips = [line["clip"] for line in bench.rounds()]
        assert clips[0] == pytest.approx(start * middle)
        distance = [abs(np.log(clip / middle)) for clip in clips]
        assert distance[-1] < 0.5 * distance[0]


def test_a_resumed_run_asks_with_the_clip_norm_that_it_had(make: Make, noiseless: None) -> None:
    whole, cut = (make(round__count=4, **WHOLE) for _ in range(2))
    whole.run()

    def stop(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if isinstance(request, TrainRequest) and request.round == 3 and not request.dry:
            raise KeyboardInterrupt
        return replies

    cut.transport.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    cut.transport.spoil = lambda request, replies: replies
    resume(cut)
    clips = [[line["clip"] for line in bench.rounds()] for bench in (whole, cut)]
    assert clips[0] == clips[1]
    assert len(set(clips[0])) == 4
    assert torch.equal(whole.adapter(), cut.adapter())


def test_a_sum_longer_than_any_honest_one_is_refused(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr("confide.server.rounds.largest_sum", lambda *_: 1e-9)
    bench = make(round__count=1)
    with pytest.raises(ConfideError, match=r"gate\.norm"):
        bench.run()
    (line,) = bench.rounds()
    assert (line["abandoned"], line["sum"]) == (True, "gate.norm")


def test_no_honest_sum_is_that_long(make: Make) -> None:
    from confide.server.gate import largest_sum

    bench = make()
    plan, size = plan_of(bench.settings), 100_000
    draws = np.random.default_rng(0).normal(size=(4, size)).sum(axis=0) * plan.share_std
    longest = np.linalg.norm(draws) + 4 * plan.clip_norm * bench.settings.train.batch
    assert longest < largest_sum(bench.settings, size, 4)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"statement": b""}, "sum.malformed"),
        ({"values": b""}, "wire.size"),
        ({"encoding": "fp32"}, "gate.encoding"),
        ({"holder": "holder-01"}, "gate.duplicate"),
    ],
)
def test_what_is_no_contribution_is_left_out_by_name(
    make: Make, change: dict[str, Any], code: str
) -> None:
    bench = make(round__count=1)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        reply = replies.get(3)
        if isinstance(request, TrainRequest) and isinstance(reply, Update):
            return replies | {3: dataclasses.replace(reply, **change)}
        return replies

    bench.transport.spoil = spoil
    bench.run()
    (line,) = bench.rounds()
    assert not line["abandoned"]
    codes = [row["code"] for row in line["left_out"]]
    assert codes in ([code], ["gate.statement"]) or code in codes


def test_values_under_anothers_statement_are_left_out(make: Make) -> None:
    bench = make(round__count=1)

    def spoil(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        one, other = replies.get(2), replies.get(3)
        if isinstance(request, TrainRequest) and isinstance(one, Update):
            assert isinstance(other, Update)
            return replies | {3: dataclasses.replace(other, values=one.values)}
        return replies

    bench.transport.spoil = spoil
    bench.run()
    (line,) = bench.rounds()
    assert line["left_out"] == [{"holder": "holder-03", "code": "gate.statement"}]


def test_noisy_sums_go_the_same_way_and_have_the_noise_of_the_shares(make: Make) -> None:
    bench = make(
        round__count=1,
        task__class_weights="counted",
        round__holder_metric="accuracy",
        privacy__sum_noise=2.0,
        train__batch=64,
    )
    bench.run()
    counted, measured = events(bench.folder, "sum")
    assert (counted["of"], measured["of"]) == ("classes", "accuracy")
    for line in (counted, measured):
        assert not line["abandoned"]
        assert line["noise_std"] == pytest.approx(2.0 * (4 / 2) ** 0.5, abs=1e-3)
        assert sum(line["totals"]) == pytest.approx(4 * 24, abs=8 * line["noise_std"])
    assert len(bench.transport.of(OpenRequest)) == 3


@pytest.mark.parametrize("killed_at", [TrainRequest, OpenRequest])
def test_a_run_that_was_killed_in_either_trip_goes_on_at_no_second_charge(
    make: Make, killed_at: type
) -> None:
    """Also where an opener failed before, so that others open."""
    bench, rounds = make(round__count=4), [0]

    def stop(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        rounds[0] += isinstance(request, TrainRequest)
        if rounds[0] == 3 and isinstance(request, killed_at):
            raise KeyboardInterrupt
        return silent_at_first(request, replies)

    bench.transport.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    before = bench.adapter()
    bench.transport.spoil = silent_at_first
    resume(bench)
    assert [line["abandoned"] for line in bench.rounds()] == [True, False, False, False]
    assert not torch.equal(before, bench.adapter())
    for number in range(HOLDERS):
        charged = [e["round"] for e in bench.ledger(number) if e["state"] == "reserved"]
        assert charged == [1, 2, 3, 4]


def resume(bench: Bench) -> None:
    run = dataclasses.replace(bench.settings.run, resume=str(bench.folder.path))
    bench.settings = dataclasses.replace(bench.settings, run=run)
    bench.run()


def test_where_the_keys_are_gone_a_resumed_run_asks_with_new_ones(make: Make) -> None:
    bench = make(round__count=3)

    def stop(request: Request, replies: dict[int, Reply]) -> Mapping[int, Reply]:
        if isinstance(request, TrainRequest) and request.round == 2:
            raise KeyboardInterrupt
        return replies

    bench.transport.spoil = stop
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    for number in range(HOLDERS):
        keys = keys_beside(bench.ledgers / f"holder-{number:02d}" / "ledger.sqlite")
        SumKeys(keys, f"holder-{number:02d}").destroy(bench.folder.id)
    bench.transport.spoil = lambda request, replies: replies
    resume(bench)
    # The second round was charged twice, since its first contributions stay closed for ever; so
    # the ledgers refuse the last one.
    assert [line["abandoned"] for line in bench.rounds()] == [False, False, True]


def test_the_report_says_whom_the_sum_protects_against_and_what_is_left_without(
    make: Make,
) -> None:
    bench = make(round__count=2, privacy__noise_multiplier="auto", privacy__epsilon=2.0)
    begin(bench)
    bench.run()
    report = build_report(bench.folder.path, prv=False)
    claim = report["claim"]
    bare = epsilon_text(claim["secure_sum"]["unmasked_epsilon"])
    assert f" per record, behind secure sums (without their masks {bare})." in outcome(report)
    assert (
        "the sums of at least 3 holders alone, the coordinator and one other" in claim["sentence"]
    )
    about = claim["secure_sum"]
    assert (about["least"], about["colluding"], about["shares"]) == (3, 1, 2)
    assert claim["epsilon"] < about["unmasked_epsilon"] < 2 * claim["epsilon"]
    assert "up to 1 of the other holders" in claim["adversary"]
