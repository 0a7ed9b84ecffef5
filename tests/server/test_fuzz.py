"""Messages made at random, mutated, and made to claim too much: our own error, or nothing."""

from __future__ import annotations

import json
import math
import pickle
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Sent

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Receipt
from confide.common.wire.messages import (
    Update,
    reply_from_records,
    reply_to_records,
    request_from_records,
)
from confide.server.gate import check, refusal_code
from tests.messages import altered, data_of, framed, opened, record
from tests.server.test_gate import SCHEMA, SETTINGS, TASK, receipt, update, values

FEW, MANY = 400, 10_000
MOST_SECONDS, MOST_MIB = 1.0, 1  # of 256 that are promised: nothing of a message is copied


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would run code in a message fails the test, also where its error is swallowed."""
    used: list[str] = []

    def caught(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: used.append(name)

    for module, name in ((pickle, "loads"), (pickle, "load"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(module, name, caught(name))
    yield
    assert not used


def taken(records: RecordDict) -> bool:
    """Whether an update in it passes; anything but a ConfideError gets out."""
    try:
        reply = reply_from_records(records)
        if not isinstance(reply, Update):
            refusal_code(reply)
            return False
        check(reply, TASK, SETTINGS, SCHEMA, Receipt.from_json(receipt(1)))
    except ConfideError:
        return False
    return True


def _random(rng: random.Random) -> Any:
    texts = [
        "",
        "x",
        "update",
        "refusal",
        TASK.hash,
        "x" * 70_000,
        "\u0000",
        "{",
        "[[[[",
        "1" * 5000,
    ]
    numbers = [0, -1, 2, 2**31, 2**62, -(2**62), True, 0.5, math.nan, math.inf]
    lists = [[1, 2], ["a"], [1.0], [b"x"], []]
    return rng.choice([*texts, *numbers, *lists, b"", b"\xff" * 9])


def _json(rng: random.Random) -> str:
    odd = ["NaN", "Infinity", "-1", "1e999", "[" * 5000, "null", "{}", '"\\ud800"', "9" * 400]
    text = json.dumps(receipt())
    return text.replace(rng.choice(['"head"', "2.0", "1.5", "0.001", "2", ":"]), rng.choice(odd))


def _key(records: RecordDict, rng: random.Random) -> str:
    return rng.choice(list(opened(records)[0]))


def _with_receipt(records: RecordDict, text: str) -> RecordDict:
    header, payload = opened(records)
    head = json.dumps(header | {"receipt": 0}).replace('"receipt": 0', f'"receipt": {text}')
    return record(framed(head, payload))


def _array(rng: random.Random) -> Array:
    return Array(
        dtype=rng.choice(["uint8", "float32", "object"]),
        shape=rng.choice([(24,), (-1,), (2**40,), ()]),
        stype=rng.choice(["confide.raw", "numpy.ndarray", ""]),
        data=rng.choice([b"", values(1.0), values(math.nan), b"x" * 23, b"x" * 10_000]),
    )


def _mutated(rng: random.Random) -> RecordDict:
    records = reply_to_records(update())
    mutations: list[Callable[[], Any]] = [
        lambda: records.update(altered(records, **{_key(records, rng): _random(rng)})),
        lambda: records.update(altered(records, without=[_key(records, rng)])),
        lambda: records.update(_with_receipt(records, _json(rng))),
        lambda: records.update(record(opened(records)[1])),
        lambda: records.update(record(data_of(records)[: rng.randint(0, 400)])),
        lambda: records.update({"message": ArrayRecord({"values": _array(rng)})}),
        lambda: records.update({"message": ArrayRecord({"other": _array(rng)})}),
        lambda: records.pop(rng.choice(list(records))),
        lambda: records.update({f"extra-{rng.random()}": ConfigRecord({"a": _random(rng)})}),
    ]
    for _ in range(rng.randint(1, 3)):
        try:
            rng.choice(mutations)()
        except (AssertionError, KeyError, IndexError, RecursionError, TypeError, ValueError):
            continue  # Flower itself does not carry this, or what would be changed is gone
    return records


def _made_up(rng: random.Random) -> RecordDict:
    """Records of any kind under names that are looked for, or not."""
    records = RecordDict()
    for _ in range(rng.randint(0, 4)):
        name = rng.choice(["message", "message", "reply", "x"])
        kinds: list[Callable[[], Any]] = [
            lambda: ConfigRecord({rng.choice(["kind", "holder", "run"]): _random(rng)}),
            lambda: ArrayRecord({rng.choice(["values", "x"]): _array(rng)}),
            lambda: MetricRecord({"kind": rng.choice([1, 0.5, math.nan])}),
        ]
        try:
            records[name] = rng.choice(kinds)()
        except (TypeError, ValueError):
            continue  # Flower itself does not carry this
    return records


def _flipped(rng: random.Random) -> RecordDict:
    """An update on the wire with some bytes changed, cut or added, if Flower can still read it."""
    sent = bytearray(recorddict_to_proto(reply_to_records(update())).SerializeToString())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(sent))
        if rng.random() < 0.8:
            sent[place] = rng.randrange(256)
        elif rng.random() < 0.5:
            del sent[place : place + rng.randint(1, 30)]
        else:
            sent[place:place] = rng.randbytes(rng.randint(1, 30))
    try:
        return recorddict_from_proto(Sent.FromString(bytes(sent)))
    except Exception:  # noqa: BLE001 - transport catches whatever Flower raises
        return RecordDict()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [_mutated, _made_up, _flipped], ids=lambda make: make.__name__)
def test_no_message_raises_anything_but_our_own_error_or_takes_long(
    make: Callable[[random.Random], RecordDict], count: int
) -> None:
    rng, passed, longest = random.Random(5), 0, 0.0
    for _ in range(count):
        records = make(rng)
        started = time.process_time()
        passed += taken(records)
        try:
            request_from_records(records)
        except ConfideError:
            pass
        longest = max(longest, time.process_time() - started)
    assert longest <= MOST_SECONDS
    assert passed < count // 2


def test_what_was_not_changed_passes() -> None:
    assert taken(reply_to_records(update()))
    sent = recorddict_to_proto(reply_to_records(update())).SerializeToString()
    assert taken(recorddict_from_proto(Sent.FromString(sent)))


def _claims_a_gigabyte() -> RecordDict:
    records = reply_to_records(update())
    claimed = Array(dtype="uint8", shape=(2**30,), stype="confide.raw", data=b"1234")
    records["message"] = ArrayRecord({"values": claimed})
    return records


def _claims_a_gigabyte_of_numpy() -> RecordDict:
    records = reply_to_records(update())
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1073741824,)}"
    claimed = Array(dtype="object", shape=(2**30,), stype="numpy.ndarray", data=head)
    records["message"] = ArrayRecord({"values": claimed})
    return records


def _many_keys(count: int = 30_000) -> RecordDict:
    return RecordDict({"message": ConfigRecord({f"key-{i}": i for i in range(count)})})


def _many_keys_in_the_header() -> RecordDict:
    return altered(reply_to_records(update()), **{f"key-{i}": i for i in range(30_000)})


def _claims_a_header_of_four_gigabytes() -> RecordDict:
    return record(b"\xff" * 4 + data_of(reply_to_records(update()))[4:])


def _a_million_keys() -> RecordDict:
    return _many_keys(10**6)  # which Flower takes 20 seconds to make


def _many_records() -> RecordDict:
    records, empty = reply_to_records(update()), ConfigRecord()
    for i in range(10**5):
        records[f"record-{i}"] = empty
    return records


def _a_receipt_of_a_million_steps() -> RecordDict:
    large = receipt() | {"steps_run": [{}] * 10**6}
    return altered(reply_to_records(update()), receipt=large)


@pytest.mark.parametrize(
    "make",
    [
        _claims_a_gigabyte,
        _claims_a_gigabyte_of_numpy,
        _claims_a_header_of_four_gigabytes,
        _many_keys,
        _many_keys_in_the_header,
        pytest.param(_a_million_keys, marks=pytest.mark.slow),
        _many_records,
        _a_receipt_of_a_million_steps,
    ],
    ids=lambda make: make.__name__,
)
def test_a_message_that_claims_too_much_costs_neither_memory_nor_time(
    make: Callable[[], RecordDict],
) -> None:
    records = make()
    tracemalloc.start()
    try:
        started = time.process_time()
        assert not taken(records)
        with pytest.raises(ConfideError, match=r"wire\."):
            request_from_records(records)
        seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds <= MOST_SECONDS
    assert peak / 2**20 <= MOST_MIB
