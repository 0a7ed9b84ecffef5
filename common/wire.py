"""Messages between coordinator and holder: one flat array and a small record of scalars.

The array is what of the adapter goes down (``parcel``) and the change of its trained part on its
way up, as bytes (``encoding``): NumPy's own format would let a message claim any shape. Nothing is
unpickled, and every length is checked against the schema that both sides know before anything is
allocated. Only this module of ``common`` knows Flower, and it looks into no array: a gateway hands
messages on (``task_to_bytes``) without torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from .errors import ConfideError

_MAX_HEADER = 64 * 1024
_CODE_LENGTH = 64
_TASK_KEYS = {"run", "round", "schema", "settings", "sent", "rest", "dry"}
_READY_KEYS = {"kind", "holder", "task_hash"}
_REFUSAL_KEYS = {*_READY_KEYS, "code"}
_UPDATE_KEYS = {"kind", "holder", "run", "round", "task_hash", "schema", "encoding", "receipt"}
_MOST_KEYS = 16
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SENT, _HASH = re.compile(r"[01]*"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Coordinator -> holder: train on this adapter under these settings.

    Attributes:
        run: the run's own id; it survives a restart of the coordinator.
        settings: the flat settings, to be parsed again by the holder.
        schema: digest of the adapter's schema.
        sent: which of its tensors come along, a 0 or 1 for each.
        rest: digest of those that do not: what every place makes of the seed.
        adapter: the tensors that come along, float32 bytes.
        merged: what was added to the frozen weights, float32 bytes; empty for nothing.
        dry: only ask whether the task would be worked on: nothing is charged, read or trained.
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


# What a task without an adapter says of it.
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

    def to_bytes(self) -> bytes:
        """One byte string; equal updates give equal bytes (the ledger keeps them for repeats)."""
        fields = asdict(self)
        values: bytes = fields.pop("values")
        head = json.dumps(fields, sort_keys=True).encode()
        return len(head).to_bytes(4, "big") + head + values

    @classmethod
    def from_bytes(cls, data: bytes) -> Update:
        size = int.from_bytes(data[:4], "big")
        return cls(**json.loads(data[4 : 4 + size]), values=data[4 + size :])


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Holder -> coordinator: no, with a code and nothing else."""

    holder: str
    task_hash: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Holder -> coordinator: a task that only asked would be worked on."""

    holder: str
    task_hash: str


Reply = Update | Refusal | Ready


def task_to_records(task: Task) -> RecordDict:
    """A task as Flower's records."""
    arrays = ("adapter", "merged")
    header = {k: v for k, v in vars(task).items() if k not in (*arrays, "settings")}
    records = RecordDict(
        {
            "task": ConfigRecord({**header, "settings": json.dumps(dict(task.settings))}),
            "adapter": _array(task.adapter),
        }
    )
    if task.merged:
        records["merged"] = _array(task.merged)
    return records


def task_from_records(records: RecordDict) -> Task:
    """Parse what came from the coordinator.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _header(records, "task"), _body(records, "adapter")
    added = {"merged"} if "merged" in records else set()
    _exactly(records, {"task", "adapter", *added}, header, _TASK_KEYS)
    header = {**header, "settings": _json_object(header.get("settings"))}
    return _task(header, payload, _body(records, "merged") if added else b"")


def _task(header: Mapping[str, Any], adapter: bytes, merged: bytes) -> Task:
    return Task(
        run=_run(header.get("run")),
        round=_count(header.get("round")),
        settings=header["settings"],
        schema=_text(header.get("schema")),
        sent=_matching(_SENT, header.get("sent")),
        rest=_matching(_HASH, header.get("rest")),
        adapter=adapter,
        merged=merged,
        dry=_truth(header.get("dry")),
    )


def reply_to_records(reply: Reply) -> RecordDict:
    """A reply as Flower's records."""
    if not isinstance(reply, Update):
        return RecordDict({"reply": ConfigRecord({"kind": _kind(reply), **asdict(reply)})})
    header = {k: v for k, v in asdict(reply).items() if k not in ("values", "receipt")}
    receipt = json.dumps(dict(reply.receipt), sort_keys=True)
    return RecordDict(
        {
            "reply": ConfigRecord({"kind": "update", **header, "receipt": receipt}),
            "delta": _array(reply.values),
        }
    )


def reply_from_records(records: RecordDict) -> Reply:
    """Parse what came from a holder.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header = _header(records, "reply")
    names = {"holder": _text(header.get("holder")), "task_hash": _text(header.get("task_hash"))}
    if header.get("kind") == "ready":
        _exactly(records, {"reply"}, header, _READY_KEYS)
        return Ready(**names)
    if header.get("kind") == "refusal":
        _exactly(records, {"reply"}, header, _REFUSAL_KEYS)
        return Refusal(**names, code=_text(header.get("code"))[:_CODE_LENGTH])
    payload = _body(records, "delta")
    _exactly(records, {"reply", "delta"}, header, _UPDATE_KEYS)
    return Update(
        **names,
        run=_run(header.get("run")),
        round=_count(header.get("round")),
        schema=_text(header.get("schema")),
        encoding=_text(header.get("encoding")),
        receipt=_json_object(header.get("receipt")),
        values=payload,
    )


def task_to_bytes(task: Task) -> bytes:
    """A task as one byte string: a header of JSON behind its length, the adapter, and what was
    added to the frozen weights."""
    header = {k: v for k, v in vars(task).items() if k != "adapter"}
    header |= {"settings": dict(task.settings), "merged": len(task.merged)}
    return _joined(header, task.adapter + task.merged)


def task_from_bytes(data: bytes) -> Task:
    """Undo ``task_to_bytes``, as strictly as a message of the coordinator is parsed.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _parted(data)
    if set(header) != _TASK_KEYS | {"merged"} or not isinstance(header["settings"], dict):
        raise _malformed("exactly what it has to have")
    adapter = len(payload) - _count(header["merged"])
    if adapter < 0:
        raise _malformed("arrays of the lengths it claims")
    return _task(header, payload[:adapter], payload[adapter:])


def reply_to_bytes(reply: Reply) -> bytes:
    """A reply as one byte string, in the same form."""
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
    if not isinstance(header["receipt"], dict):
        raise _malformed("an object of scalars")
    return Update(
        **names,
        run=_run(header["run"]),
        round=_count(header["round"]),
        schema=_text(header["schema"]),
        encoding=_text(header["encoding"]),
        receipt=header["receipt"],
        values=payload,
    )


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
        head = data[4 : 4 + size].decode()
    except UnicodeDecodeError:
        raise _malformed("an object of scalars") from None
    return _json_object(head), data[4 + size :]


def _array(payload: bytes) -> ArrayRecord:
    array = Array(dtype="uint8", shape=(len(payload),), stype="confide.raw", data=payload)
    return ArrayRecord({"values": array})


def _header(records: RecordDict, name: str) -> dict[str, Any]:
    """A record of scalars, copied only if it is a small one: a message may claim a million keys."""
    record = records.get(name)
    if not isinstance(record, ConfigRecord) or len(record) > _MOST_KEYS:
        raise _malformed(f"the record {name!r}")
    return dict(record)


def _body(records: RecordDict, name: str) -> bytes:
    """The bytes of the one array of a record. What it says of their shape is not read."""
    record = records.get(name)
    if not isinstance(record, ArrayRecord) or set(list(record)[:2]) != {"values"}:
        raise _malformed(f"the record {name!r} with its one array")
    array = record["values"]
    if array.stype != "confide.raw" or not isinstance(array.data, bytes):
        raise _malformed("raw bytes")
    return array.data


def _exactly(
    records: RecordDict, wanted: set[str], header: Mapping[str, Any], keys: set[str]
) -> None:
    """Nothing beside what a message has: a weight that a holder claims is no update."""
    if len(records) != len(wanted) or set(records) != wanted or set(header) != keys:
        raise _malformed("exactly what it has to have")


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


def _json_object(value: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(_text(value))
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of 5,000 digits
        parsed = None
    if not isinstance(parsed, dict):
        raise _malformed("an object of scalars")
    return parsed


def _malformed(wanted: str) -> ConfideError:
    return ConfideError("wire.malformed", f"The message lacks {wanted}.")
