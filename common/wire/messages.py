"""Messages between coordinator and holder: a small JSON header and one flat array, as bytes.

    4 bytes    length of the header, big-endian, at most 64 KiB
    header     a JSON object with exactly the keys of its kind
    the rest   what of the adapter goes down (``parcel``), behind it what was added to the frozen
               weights; on the way up the change of what was trained (``encoding``)

One form for every way: Flower's record carries these bytes as its one array, the socket between
gateway and resident as they are, and the ledger keeps them. NumPy's own format would let a message
claim any shape. Nothing is unpickled, and every length is checked against the schema that both
sides know before anything is allocated. Only this module of ``common`` knows Flower, and it looks
into no array: a gateway hands messages on without torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict

from ..errors import ConfideError

_MAX_HEADER = 64 * 1024
_CODE_LENGTH = 64
_TASK_KEYS = {"run", "round", "schema", "settings", "sent", "rest", "dry", "merged"}
_READY_KEYS = {"kind", "holder", "task_hash"}
_REFUSAL_KEYS = {*_READY_KEYS, "code"}
_UPDATE_KEYS = {"kind", "holder", "run", "round", "task_hash", "schema", "encoding", "receipt"}
_RECORD, _ARRAY, _RAW = "message", "values", "confide.raw"  # names within Flower's record
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SENT, _HASH = re.compile(r"[01]*"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Coordinator -> holder: train on this adapter under these settings.

    Attributes:
        run: the run's own id; it survives a restart of the coordinator.
        settings: the flat settings, to be parsed again by the holder.
        schema: digest of the adapter's schema.
        sent: which of its tensors come along, a 0 or 1 for each.
        rest: digest of those that do not: what every place makes of the seed.
        adapter: the tensors that come along, float32 bytes.
        merged: what was added to the frozen weights, float32 bytes; empty for nothing.
        dry: only ask whether the request would be worked on: nothing is charged, read or trained.
    """

    run: str
    round: int
    settings: Mapping[str, Any]
    schema: str
    sent: str
    rest: str
    adapter: bytes = field(repr=False)
    merged: bytes = field(default=b"", repr=False)
    dry: bool = False

    @property
    def hash(self) -> str:
        """sha256 over everything above but ``dry``: what the ledger is charged for."""
        facts = [self.run, self.round, dict(self.settings), self.schema, self.sent, self.rest]
        facts += [hashlib.sha256(self.merged).hexdigest()] if self.merged else []
        head = json.dumps(facts, sort_keys=True).encode()
        return hashlib.sha256(hashlib.sha256(head).digest() + self.adapter).hexdigest()


# What a request without an adapter says of it.
NO_ADAPTER: Mapping[str, Any] = {"schema": "", "sent": "", "rest": "0" * 64, "adapter": b""}


@dataclass(frozen=True, kw_only=True)
class Update:
    """Holder -> coordinator: the private change of the trained tensors, and the receipt."""

    holder: str
    run: str
    round: int
    task_hash: str
    schema: str
    encoding: str
    receipt: Mapping[str, Any]
    values: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Holder -> coordinator: no, with a code and nothing else."""

    holder: str
    task_hash: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Holder -> coordinator: a request that only asked would be worked on."""

    holder: str
    task_hash: str


Reply = Update | Refusal | Ready


def request_to_bytes(request: TrainRequest) -> bytes:
    """A request as one byte string; in its header ``merged`` is how many bytes at the end are
    that."""
    header = {k: v for k, v in vars(request).items() if k != "adapter"}
    header |= {"settings": dict(request.settings), "merged": len(request.merged)}
    return _joined(header, request.adapter + request.merged)


def request_from_bytes(data: bytes) -> TrainRequest:
    """Undo ``request_to_bytes``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _parted(data)
    if set(header) != _TASK_KEYS:
        raise _malformed("exactly what it has to have")
    adapter = len(payload) - _count(header["merged"])
    if adapter < 0:
        raise _malformed("arrays of the lengths it claims")
    return TrainRequest(
        run=_run(header["run"]),
        round=_count(header["round"]),
        settings=_object(header["settings"]),
        schema=_text(header["schema"]),
        sent=_matching(_SENT, header["sent"]),
        rest=_matching(_HASH, header["rest"]),
        adapter=payload[:adapter],
        merged=payload[adapter:],
        dry=_truth(header["dry"]),
    )


def reply_to_bytes(reply: Reply) -> bytes:
    """A reply as one byte string; equal replies give equal bytes."""
    if not isinstance(reply, Update):
        return _joined({"kind": _kind(reply), **asdict(reply)}, b"")
    header = {k: v for k, v in asdict(reply).items() if k != "values"}
    return _joined({"kind": "update", **header}, reply.values)


def reply_from_bytes(data: bytes) -> Reply:
    """Undo ``reply_to_bytes``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _parted(data)
    names = {"holder": _text(header.get("holder")), "task_hash": _text(header.get("task_hash"))}
    if header.get("kind") == "ready" and set(header) == _READY_KEYS and not payload:
        return Ready(**names)
    if header.get("kind") == "refusal" and set(header) == _REFUSAL_KEYS and not payload:
        return Refusal(**names, code=_text(header["code"])[:_CODE_LENGTH])
    if header.get("kind") != "update" or set(header) != _UPDATE_KEYS:
        raise _malformed("exactly what it has to have")
    return Update(
        **names,
        run=_run(header["run"]),
        round=_count(header["round"]),
        schema=_text(header["schema"]),
        encoding=_text(header["encoding"]),
        receipt=_object(header["receipt"]),
        values=payload,
    )


def request_to_records(request: TrainRequest) -> RecordDict:
    """A request as Flower carries it."""
    return _carried(request_to_bytes(request))


def request_from_records(records: RecordDict) -> TrainRequest:
    """Undo ``request_to_records``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    return request_from_bytes(_bytes_in(records))


def reply_to_records(reply: Reply) -> RecordDict:
    """A reply as Flower carries it."""
    return _carried(reply_to_bytes(reply))


def reply_from_records(records: RecordDict) -> Reply:
    """Undo ``reply_to_records``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    return reply_from_bytes(_bytes_in(records))


def _carried(data: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype=_RAW, data=data)
    return RecordDict({_RECORD: ArrayRecord({_ARRAY: array})})


def _bytes_in(records: RecordDict) -> bytes:
    """The bytes of the one array of the one record, and nothing beside it: a weight that a holder
    claims is no update. What the array says of its shape is not read."""
    record = records.get(_RECORD)
    if len(records) != 1 or not isinstance(record, ArrayRecord):
        raise _malformed("its one record")
    array = record.get(_ARRAY)
    if len(record) != 1 or array is None:
        raise _malformed("its one array")
    if array.stype != _RAW or not isinstance(array.data, bytes):
        raise _malformed("raw bytes")
    return array.data


def _kind(reply: Refusal | Ready) -> str:
    return "refusal" if isinstance(reply, Refusal) else "ready"


def _joined(header: Mapping[str, Any], payload: bytes) -> bytes:
    head = json.dumps(header, sort_keys=True).encode()
    return len(head).to_bytes(4, "big") + head + payload


def _parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:4], "big")
    if size > _MAX_HEADER or len(data) < 4 + size:
        raise _malformed("a header of the length it claims")
    try:
        header = json.loads(data[4 : 4 + size].decode())
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, a number of 5,000 digits
        header = None
    return _object(header), data[4 + size :]


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_HEADER:
        raise _malformed("a short text")
    return value


def _matching(form: re.Pattern[str], value: Any) -> str:
    if not form.fullmatch(_text(value)):
        raise _malformed("what was sent and the hash of the rest")
    return str(value)


def _run(value: Any) -> str:
    """A run's id; it becomes a folder's name in a simulation and an entry of the ledger."""
    if not isinstance(value, str) or not _RUN.fullmatch(value):
        raise _malformed("a run's id: up to 128 letters, digits, dots, dashes")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise _malformed("a round number")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise _malformed("true or false")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("an object of scalars")
    return value


def _malformed(wanted: str) -> ConfideError:
    return ConfideError("wire.malformed", f"The message lacks {wanted}.")
