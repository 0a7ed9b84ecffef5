"""The gate: thirteen payloads of a hostile holder, receipts that cannot be, and names."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord

from confide.common.adapter.encoding import decode_vector, encode_vector
from confide.common.adapter.schema import AdapterSchema
from confide.common.errors import ConfideError
from confide.common.plans import plan_of
from confide.common.privacy.accountant import GaussianSteps, calibrate
from confide.common.privacy.ledger import Receipt
from confide.common.settings import Settings, from_flat
from confide.common.wire.messages import (
    Refusal,
    TrainRequest,
    Update,
    reply_from_records,
    reply_to_records,
)
from confide.server.gate import Accepted, check, largest_norm, named, refusal_code
from tests import tiny
from tests.messages import altered

NOISE = 2.0
BATCH = 32
SCHEMA = AdapterSchema(shapes=(("frozen", (4,)), ("head", (2, 3))), trained=frozenset({"head"}))
CHANGE = torch.tensor([0.5, -0.25, 0.0, 1.0, -1.0, 0.125])
MUTATED_MESSAGES = 300


def settings(**overrides: Any) -> Settings:
    given = {"privacy__noise_multiplier": NOISE, "round__count": 3, "train__rate": 0.5}
    wanted = given | overrides
    return from_flat(tiny.config(Path("m"), Path("d"), Path("o"), **wanted))


SETTINGS = settings()
TASK = TrainRequest(
    run="20260101-000000-t",
    round=2,
    settings={},
    schema=SCHEMA.digest,
    sent="1",
    rest="0" * 64,
    adapter=b"1234",
)


def receipt(rounds: int = 2, **changes: Any) -> dict[str, Any]:
    """What an honest holder says after ``rounds`` rounds."""
    steps = (GaussianSteps(noise_multiplier=NOISE, sampling_rate=0.5, steps=rounds),)
    honest = Receipt(
        ledger_id="ab" * 16,
        head=f"{rounds:064x}",
        entries=2 + 2 * rounds,
        delta=1e-3,
        epsilon=1.5,
        proven=8.0,
        unmasked=8.0,
        runs=1,
        limit=None,
        steps_run=steps,
    )
    return honest.to_json() | changes


def update(**changes: Any) -> Update:
    honest: dict[str, Any] = {
        "holder": "holder-00",
        "run": TASK.run,
        "round": TASK.round,
        "task_hash": TASK.hash,
        "schema": SCHEMA.digest,
        "encoding": "fp32",
        "receipt": receipt(),
        "values": encode_vector(CHANGE, "fp32"),
    }
    return Update(**{**honest, **changes})


def values(number: float) -> bytes:
    poisoned = CHANGE.clone()
    poisoned[3] = number
    return encode_vector(poisoned, "fp32")


def code_of(sent: Update, used: Settings = SETTINGS, last: Receipt | None = None) -> str:
    with pytest.raises(ConfideError) as caught:
        check(sent, TASK, used, SCHEMA, last)
    return caught.value.code


def test_an_honest_update_passes_unchanged() -> None:
    passed = check(update(), TASK, SETTINGS, SCHEMA, Receipt.from_json(receipt(1)))
    assert isinstance(passed, Accepted)
    assert torch.equal(passed.change, CHANGE)
    assert (passed.holder, passed.size) == ("holder-00", 4 * len(CHANGE))
    assert passed.receipt.to_json() == receipt()


@pytest.mark.parametrize("weight", [1e12, -50.0, math.nan])
def test_a_weight_that_a_holder_claims_is_no_update(weight: float) -> None:
    beside = reply_to_records(update())
    beside["metrics"] = ConfigRecord({"num-examples": weight})
    for claimed in (beside, altered(reply_to_records(update()), **{"num-examples": weight})):
        with pytest.raises(ConfideError, match=r"wire\.malformed"):
            reply_from_records(claimed)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"values": values(math.nan)}, "gate.not-finite"),
        ({"values": values(math.inf)}, "gate.not-finite"),
        ({"values": values(-math.inf)}, "gate.not-finite"),
        ({"values": values(1e30)}, "gate.norm"),
        ({"values": values(3e38)}, "gate.norm"),
        ({"values": encode_vector(CHANGE[:5], "fp32")}, "wire.size"),
        ({"values": encode_vector(CHANGE.repeat(2), "fp32")}, "wire.size"),
        ({"values": b""}, "wire.size"),
        ({"schema": "0" * 64}, "gate.schema"),
        ({"task_hash": "0" * 64}, "gate.task"),
        ({"run": "another"}, "gate.task"),
        ({"round": 1}, "gate.task"),
        ({"encoding": "bf16"}, "gate.encoding"),
        ({"encoding": "pickle"}, "gate.encoding"),
        ({"receipt": {}}, "gate.receipt"),
    ],
)
def test_a_hostile_payload_is_refused(changes: dict[str, Any], code: str) -> None:
    assert code_of(update(**changes)) == code


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8", "int4"])
def test_the_agreed_encoding_decides(encoding: str) -> None:
    used = settings(wire__encoding=encoding)
    sent = update(encoding=encoding, values=encode_vector(CHANGE, encoding))
    passed = check(sent, TASK, used, SCHEMA)
    assert torch.equal(passed.change, decode_vector(sent.values, encoding, len(CHANGE)))
    assert passed.size == len(sent.values)
    with pytest.raises(ConfideError, match=r"gate\.encoding"):
        check(sent, TASK, settings(wire__encoding="fp32" if encoding != "fp32" else "bf16"), SCHEMA)


@pytest.mark.parametrize("encoding", ["bf16", "int8", "int4"])
def test_what_an_encoding_adds_to_the_length_of_the_longest_honest_change_passes(
    encoding: str,
) -> None:
    """The worst block: one value that decides the scale, and all others just above half a step."""
    used, size = settings(wire__encoding=encoding), 64
    change = torch.full((size,), 1.02 / 14)
    change[0] = 1.0
    change *= 0.999 * largest_norm(settings(wire__encoding="fp32"), size) / change.norm()
    sent = decode_vector(encode_vector(change, encoding), encoding, size)
    assert float(sent.norm()) <= largest_norm(used, size)
    if encoding == "int4":
        assert float(sent.norm()) > largest_norm(settings(wire__encoding="fp32"), size)


def steps(noise: Any = NOISE, rate: Any = 0.5, count: Any = 2) -> dict[str, Any]:
    return {"noise_multiplier": noise, "sampling_rate": rate, "steps": count}


ABSURD: list[dict[str, Any]] = [
    {"steps_run": None},
    {"steps_run": []},
    {"steps_run": "steps"},
    {"steps_run": ["steps"]},
    {"steps_run": [{}]},
    {"steps_run": [steps(count=-2)]},
    {"steps_run": [steps(count=0)]},
    {"steps_run": [steps(count=2.5)]},
    {"steps_run": [steps(count=1)], "head": None},
    {"steps_run": [steps(count=10**6)]},
    {"steps_run": [steps(noise=math.nan)]},
    {"steps_run": [steps(noise=math.inf)]},
    {"steps_run": [steps(noise=-1.0)]},
    {"steps_run": [steps(noise=10**400)]},
    {"steps_run": [steps(rate=0.0)]},
    {"steps_run": [steps(rate=1.5)]},
    {"steps_run": [steps(noise=True)]},
    {"head": "<script>"},
    {"head": ""},
    {"head": 3},
    {"ledger_id": "../../etc"},
    {"entries": -1},
    {"entries": 10**400},
    {"delta": 1e-9},
    {"delta": math.nan},
    {"epsilon": math.nan},
    {"epsilon": -1.0},
    {"extra": "field"},
]


@pytest.mark.parametrize("changes", ABSURD, ids=lambda changes: json.dumps(changes)[:60])
def test_an_absurd_receipt_is_refused(changes: dict[str, Any]) -> None:
    assert code_of(update(receipt=receipt(**changes))) == "gate.receipt"


@pytest.mark.parametrize("missing", list(receipt()))
def test_a_receipt_without_one_of_its_fields_is_refused(missing: str) -> None:
    told = {name: value for name, value in receipt().items() if name != missing}
    assert code_of(update(receipt=told)) == "gate.receipt"


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.99 * NOISE])
def test_less_noise_than_the_plan_in_any_step_is_refused(noise: float) -> None:
    told = receipt(steps_run=[steps(count=1), steps(noise=noise, count=1)])
    assert code_of(update(receipt=told)) == "gate.noise"


def test_the_noise_and_the_rate_are_the_plans_at_every_holder() -> None:
    used = settings(privacy__noise_multiplier="auto", privacy__epsilon=2.0)
    honest = plan_of(used).noise_multiplier
    assert honest == calibrate(epsilon=2.0, delta=1e-3, sampling_rate=0.5, steps=3)

    def said(**changes: Any) -> Update:
        return update(receipt=receipt(steps_run=[steps(**{"noise": honest, **changes})]))

    assert check(said(), TASK, used, SCHEMA)
    for noise in (0.0, 0.95 * honest, 0.9995 * honest):
        assert code_of(said(noise=noise), used) == "gate.noise"
    for other in ({"rate": 1.0}, {"rate": 0.4999}, {"noise": 1.1 * honest}):
        assert code_of(said(**other), used) == "gate.receipt"


def test_a_last_digit_less_noise_passes_where_it_keeps_the_epsilon() -> None:
    used = settings(privacy__noise_multiplier="auto", privacy__epsilon=2.0)
    close = plan_of(used).noise_multiplier * (1 - 1e-9)
    assert check(update(receipt=receipt(steps_run=[steps(noise=close)])), TASK, used, SCHEMA)


def test_many_plans_in_one_receipt_cost_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    used = settings(privacy__noise_multiplier="auto", round__count=100)
    honest = plan_of(used).noise_multiplier
    monkeypatch.setattr("confide.server.gate.within", lambda *_: pytest.fail("it was computed"))
    for number in (2, 4, 20):
        many = [steps(noise=honest * (1 - i * 1e-5), count=1) for i in range(number)]
        assert code_of(update(receipt=receipt(steps_run=many)), used) == "gate.receipt"


def test_without_noise_by_agreement_a_receipt_states_none() -> None:
    used = settings(privacy__noise_multiplier="auto", privacy__trust="off")
    told = receipt(steps_run=[steps(noise=0.0)], epsilon=None, proven=None, unmasked=None)
    assert check(update(receipt=told), TASK, used, SCHEMA)
    assert code_of(update(receipt=told)) == "gate.noise"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ledger_id": "cd" * 16}, "gate.receipt"),
        ({"entries": 4}, "gate.ledger"),
        ({"entries": 3}, "gate.ledger"),
        ({"head": f"{1:064x}"}, "gate.ledger"),
        ({"steps_run": [steps(count=1)]}, "gate.ledger"),
        ({"ledger_id": "cd" * 16, "entries": 3}, "gate.receipt"),
    ],
)
def test_a_ledger_that_does_not_go_on_from_the_last_round_is_refused(
    changes: dict[str, Any], code: str
) -> None:
    """Only who knows the ledger's number can be said to have put it back."""
    last = Receipt.from_json(receipt(1))
    assert code_of(update(receipt=receipt(2, **changes)), last=last) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, ""),
        ({"entries": 4}, "gate.ledger"),
        ({"entries": 1}, "gate.ledger"),
        ({"head": f"{1:064x}"}, "gate.ledger"),
        ({"ledger_id": "cd" * 16}, ""),
        ({"ledger_id": "cd" * 16, "entries": 1}, ""),
        ({"steps_run": []}, "gate.receipt"),
        ({"ledger_id": "cd" * 16, "steps_run": []}, "gate.receipt"),
    ],
)
def test_a_ledger_goes_on_from_the_run_before_or_is_another_one(
    changes: dict[str, Any], code: str
) -> None:
    """The receipt of a run before is one without steps of this run. Another ledger is named for it
    (``server.ledgers``), since it may be that of another text."""
    before = Receipt.from_json(receipt(1) | {"steps_run": []})
    sent = update(receipt=receipt(2, **changes))
    if code:
        assert code_of(sent, last=before) == code
    else:
        assert check(sent, TASK, SETTINGS, SCHEMA, before)


def test_a_first_receipt_must_contain_this_tasks_steps() -> None:
    used = settings(round__mode="steps", train__steps=5)
    assert code_of(update(receipt=receipt(4)), used) == "gate.receipt"
    assert check(update(receipt=receipt(5)), TASK, used, SCHEMA)


@pytest.mark.parametrize(
    "name",
    ["", "a" * 65, "a b", "../x", "..", ".hidden", "<b>", "a\nb", "name\n", "ä", "node-3", "a/b"],
)
def test_a_name_that_cannot_be_written_anywhere_is_refused(name: str) -> None:
    assert code_of(update(holder=name)) == "gate.name"
    assert named(name, 7) == "node-7"


@pytest.mark.parametrize("name", ["a", "a" * 64, "holder-00", "St.Mary_2", "0"])
def test_a_plain_name_is_kept(name: str) -> None:
    assert check(update(holder=name), TASK, SETTINGS, SCHEMA).holder == name
    assert named(name, 7) == name


@pytest.mark.parametrize(
    "code", ["", "a" * 65, "x" * 10**5, "a b", "<b>", "a\nb", "ledger.x\n", "Ä", "..", "a..b"]
)
def test_a_code_that_is_none_is_replaced(code: str) -> None:
    assert refusal_code(Refusal(holder="h", task_hash="t", code=code)) == "holder.failed"


@pytest.mark.parametrize("code", ["ledger.budget-exhausted", "disk.full", "transport.error-3"])
def test_a_code_is_kept(code: str) -> None:
    assert refusal_code(Refusal(holder="h", task_hash="t", code=code)) == code


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"round__mode": "steps", "train__steps": 4, "train__lr": 0.1},
        {"privacy__noise_multiplier": "auto", "privacy__epsilon": 1.0},
        {"privacy__noise_multiplier": "auto", "privacy__trust": "off"},
    ],
)
def test_an_honest_change_is_never_too_long_and_ten_times_the_longest_is(
    overrides: dict[str, Any],
) -> None:
    used, size = settings(**overrides), 10_000
    most = largest_norm(used, size)
    generator = torch.Generator().manual_seed(3)
    noise = used.privacy.noise_multiplier
    if used.privacy.trust == "local" and not noise:
        noise = calibrate(epsilon=1.0, delta=1e-3, sampling_rate=0.5, steps=3)
    scale = used.train.steps * (used.train.lr if used.round.mode == "steps" else 1.0)
    for _ in range(20):
        drawn = noise * torch.randn(size, generator=generator)
        drawn[0] += BATCH  # every record of the batch clipped to the same direction
        norm = float((scale * drawn / BATCH).norm())
        assert norm <= most
    assert norm * 10 > most


def test_adam_at_the_holder_is_bounded_by_its_own_scale() -> None:
    overrides = {"round__mode": "steps", "train__optimizer": "adam", "train__steps": 5}
    used = settings(**overrides, train__lr=0.01)
    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    for scale in (1e-3, 1e-3, 1e-3, 1e-3, 1e6):
        parameter.grad = torch.full((100,), scale)
        optimizer.step()
    norm = float(parameter.detach().norm())
    assert norm <= largest_norm(used, 100) <= 100 * norm


def test_adam_at_the_holder_is_bounded_also_where_each_gradient_is_larger_than_the_last() -> None:
    """b2 / b1 times the last is the worst there is: each step is then 7.27 lr long at the end."""
    steps = 2500
    used = settings(
        round__mode="steps", train__optimizer="adam", train__steps=steps, train__lr=0.01
    )
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    for number in range(steps):
        parameter.grad = torch.full((1,), (0.999 / 0.9) ** number, dtype=torch.float64)
        before = parameter.detach().clone()
        optimizer.step()
    assert float((parameter.detach() - before).norm()) > 6.9 * 0.01
    norm = float(parameter.detach().norm())
    assert 4.0 * steps * 0.01 < norm <= largest_norm(used, 1)


def test_weight_decay_is_bounded_by_what_there_is_to_decay() -> None:
    overrides = {"round__mode": "steps", "train__optimizer": "adamw", "train__steps": 20}
    used = settings(**overrides, train__lr=0.01, train__weight_decay=0.9)
    parameter = torch.nn.Parameter(torch.full((100,), 50.0))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.9)
    start = float(parameter.detach().norm())
    before = parameter.detach().clone()
    for _ in range(20):
        parameter.grad = torch.ones(100)
        optimizer.step()
    norm = float((parameter.detach() - before).norm())
    assert largest_norm(used, 100) < norm <= largest_norm(used, 100, start) <= 2 * norm


def test_the_gate_allows_for_the_decay_of_what_the_round_began_with() -> None:
    overrides = {"round__mode": "steps", "train__optimizer": "adamw", "train__steps": 1}
    used = settings(**overrides, train__lr=0.01, train__weight_decay=0.9)
    start = 100 * largest_norm(used, SCHEMA.trained_size)
    change = CHANGE / CHANGE.norm() * largest_norm(used, SCHEMA.trained_size, start) * 0.99
    decayed = update(values=encode_vector(change, "fp32"))
    assert check(decayed, TASK, used, SCHEMA, None, start).holder == decayed.holder
    with pytest.raises(ConfideError, match=r"gate\.norm"):
        check(decayed, TASK, used, SCHEMA)


def test_an_answer_to_the_same_round_of_another_adapter_is_refused() -> None:
    other = dataclasses.replace(TASK, adapter=b"1235")
    with pytest.raises(ConfideError, match=r"gate\.task"):
        check(update(), other, SETTINGS, SCHEMA)
