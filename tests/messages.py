"""Flower's record of a message, opened and closed again with something else in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict


def framed(header: str | bytes, payload: bytes = b"") -> bytes:
    """A header of any text behind its length, and what follows it."""
    head = header.encode() if isinstance(header, str) else header
    return len(head).to_bytes(4, "big") + head + payload


def record(data: bytes) -> RecordDict:
    """Those bytes as Flower carries a message."""
    array = Array(dtype="uint8", shape=(len(data),), stype="confide.raw", data=data)
    return RecordDict({"message": ArrayRecord({"values": array})})


def data_of(records: RecordDict) -> bytes:
    """The bytes that a record carries, which is the one array of the one record in it."""
    assert set(records) == {"message"}
    assert set(records["message"]) == {"values"}
    return bytes(records["message"]["values"].data)


def opened(records: RecordDict) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a message."""
    data = data_of(records)
    size = int.from_bytes(data[:4], "big")
    return json.loads(data[4 : 4 + size]), data[4 + size :]


def altered(records: RecordDict, *, without: Iterable[str] = (), **changes: Any) -> RecordDict:
    """The message with other entries in its header."""
    header, payload = opened(records)
    header = {name: value for name, value in header.items() if name not in set(without)} | changes
    return record(framed(json.dumps(header), payload))
