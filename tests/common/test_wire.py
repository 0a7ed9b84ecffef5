"""Messages: exact, bounded, and refused when malformed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from confide.common.adapter.encoding import decode_vector, encode_vector, encoded_size, rounding_of
from confide.common.errors import ConfideError
from confide.common.wire.messages import (
    Ready,
    Refusal,
    TrainRequest,
    Update,
    reply_from_bytes,
    reply_from_records,
    reply_to_bytes,
    reply_to_records,
    request_from_bytes,
    request_from_records,
    request_to_bytes,
    request_to_records,
)
from tests.messages import altered, framed, opened, record

TASK = TrainRequest(
    run="r",
    round=3,
    settings={"a.b": 1, "c.d": "x"},
    schema="s",
    sent="01",
    rest="0" * 64,
    adapter=b"1234",
)
UPDATE = Update(
    holder="holder-00",
    run="r",
    round=3,
    task_hash=TASK.hash,
    schema="s",
    encoding="fp32",
    receipt={"head": "h", "steps_run": [{"steps": 1}]},
    values=b"\x00\x00\x80\x3f",
)


def test_tasks_and_replies_come_back_as_they_went() -> None:
    assert request_from_records(request_to_records(TASK)) == TASK
    assert reply_from_records(reply_to_records(UPDATE)) == UPDATE
    refusal = Refusal(holder="h", task_hash="t", code="policy.max-delta")
    ready = Ready(holder="h", task_hash="t")
    for reply in (refusal, ready):
        assert reply_from_records(reply_to_records(reply)) == reply
    asks = dataclasses.replace(TASK, dry=True)
    assert request_from_records(request_to_records(asks)) == asks


def test_they_come_back_from_bytes_as_well() -> None:
    asks = dataclasses.replace(TASK, dry=True)
    for task in (TASK, asks, dataclasses.replace(TASK, merged=b"12345678")):
        assert request_from_bytes(request_to_bytes(task)) == task
    assert request_from_bytes(request_to_bytes(TASK)).hash == TASK.hash
    refusal = Refusal(holder="h", task_hash="t", code="policy.max-delta")
    for reply in (UPDATE, refusal, Ready(holder="h", task_hash="t")):
        assert reply_from_bytes(reply_to_bytes(reply)) == reply


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00",
        b"\xff\xff\xff\xff{}",
        b"\x00\x00\x00\x09{}",
        framed("[]"),
        framed("[" * 5000),
        b"\x00\x00\x00\x02\xff\xff",
        framed('{"run": "r", "round": 1, "schema": "s"}'),
        framed('{"run": "r", "round": 1, "schema": "s", "settings": []}'),
        framed('{"run": "r", "round": 1, "schema": "s", "settings": {}, "more": 1}'),
        framed('{"run": "../r", "round": 1, "schema": "s", "settings": {}}'),
        framed('{"run": "r", "round": true, "schema": "s", "settings": {}}'),
        framed('{"kind": "update", "holder": "h", "task_hash": "t"}'),
        framed('{"kind": "refusal", "holder": "h", "task_hash": "t", "code": "a.b"}', b"more"),
        framed('{"kind": "refusal", "holder": "h", "task_hash": "t", "code": 7}'),
        framed('{"kind": "ready", "holder": "h", "task_hash": "t", "code": "a.b"}'),
        framed('{"kind": "ready", "holder": "h", "task_hash": "t"}', b"c" * 4097),
        framed('{"kind": "opening", "holder": "h", "task_hash": "t", "code": "a.b"}'),
        framed('{"kind": "open", "run": "r", "task_hash": "t"}'),
        framed('{"kind": "note", "holder": "h", "task_hash": "t", "code": "a.b"}'),
        framed(" " * 70_000 + "{}"),
        framed("1" * 5000),
        framed('{"run": ' + "9" * 5000 + "}"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    for parse in (request_from_bytes, reply_from_bytes):
        with pytest.raises(ConfideError) as caught:
            parse(data)
        assert caught.value.code == "wire.malformed"


def test_every_part_of_a_task_is_in_its_hash() -> None:
    changes = {"run": "q", "round": 4, "settings": {"a.b": 2}, "schema": "z", "adapter": b"1235"}
    changes |= {"sent": "10", "rest": "1" * 64, "merged": b"5", "roster": b"r", "openers": b"o"}
    # Whether a task only asks is no part of what a ledger is charged for: a dry one never is.
    assert {*changes, "dry"} == {f.name for f in dataclasses.fields(TrainRequest)}
    hashes = {dataclasses.replace(TASK, **{k: v}).hash for k, v in changes.items()}
    assert len(hashes | {TASK.hash}) == len(changes) + 1


def test_fp32_is_exact_and_bf16_is_within_its_rounding() -> None:
    vector = torch.randn(1000) * 10.0 ** torch.randint(-20, 20, (1000,))
    assert torch.equal(decode_vector(encode_vector(vector, "fp32"), "fp32", 1000), vector)
    half = decode_vector(encode_vector(vector, "bf16"), "bf16", 1000)
    assert ((half - vector).abs() <= vector.abs() * 2**-8).all()


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("size", [1, 63, 64, 1000])
def test_an_encoding_moves_a_vector_by_no_more_than_is_said(encoding: str, size: int) -> None:
    vector = torch.randn(size)
    payload = encode_vector(vector, encoding)
    assert len(payload) == encoded_size(size, encoding)
    moved = decode_vector(payload, encoding, size) - vector
    assert float(moved.norm()) <= rounding_of(encoding) * float(vector.norm()) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("encoding", "size"),
    [("fp32", 3), ("fp32", 1), ("bf16", 3), ("int8", 3), ("int8", 5), ("int4", 6), ("int4", 9)],
)
def test_a_payload_of_another_size_is_refused(encoding: str, size: int) -> None:
    with pytest.raises(ConfideError, match=r"wire\.size"):
        decode_vector(bytes(8), encoding, size)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ConfideError, match=r"wire\.encoding"):
        decode_vector(bytes(8), "pickle", 2)


def numpy_array() -> ArrayRecord:
    return ArrayRecord(
        {"values": Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"x")}
    )


RAW = Array(dtype="uint8", shape=(4,), stype="confide.raw", data=b"1234")
MALFORMED = [
    RecordDict(),
    RecordDict({"message": ConfigRecord({"kind": "update"})}),
    RecordDict({"message": ArrayRecord()}),
    RecordDict({"message": numpy_array()}),
    RecordDict({"other": reply_to_records(UPDATE)["message"]}),
    RecordDict({**reply_to_records(UPDATE), "metrics": ConfigRecord({"num-examples": 1e12})}),
    RecordDict({"message": ArrayRecord({**reply_to_records(UPDATE)["message"], "more": RAW})}),
    RecordDict({"message": ArrayRecord({"other": RAW})}),
    record(framed('{"kind": "update"}')),
    record(framed('{"kind": 3}')),
    record(framed('{"kind": "refusal", "holder": "h", "task_hash": "t"}')),
    altered(reply_to_records(UPDATE), **{"num-examples": 1e12}),
]


@pytest.mark.parametrize("records", MALFORMED)
def test_a_malformed_reply_is_refused(records: RecordDict) -> None:
    with pytest.raises(ConfideError, match=r"wire\.malformed"):
        reply_from_records(records)


@pytest.mark.parametrize(
    ("field", "value"),
    [("round", -1), ("round", True), ("receipt", []), ("receipt", "{}"), ("run", "x" * 10**6)],
)
def test_a_field_of_the_wrong_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfideError, match=r"wire\.malformed"):
        reply_from_records(altered(reply_to_records(UPDATE), **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("sent", "012"), ("sent", 1), ("sent", "1" * 10**6), ("rest", ""), ("rest", "0" * 63),
     ("rest", "G" * 64)],
)  # fmt: skip
def test_a_task_that_does_not_say_what_it_leaves_out_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfideError, match=r"wire\.malformed"):
        request_from_records(altered(request_to_records(TASK), **{field: value}))


def test_lengths_are_what_they_claim_and_the_header_is_small() -> None:
    for merged in (-1, 5, 2**31, True, "4"):  # of four bytes that are there
        with pytest.raises(ConfideError, match=r"wire\.malformed"):
            request_from_records(altered(request_to_records(TASK), merged=merged))
    for records in (request_to_records(TASK), reply_to_records(UPDATE)):
        header, payload = opened(records)
        assert payload in (TASK.adapter, UPDATE.values)
        large = altered(records, **{next(iter(header)): "x" * 70_000})
        for parse in (request_from_records, reply_from_records):
            with pytest.raises(ConfideError, match=r"wire\.malformed"):
                parse(large)
