"""Messages between coordinator and holder: a small JSON header and one flat array, as bytes.

    4 bytes    length of the header, big-endian, at most 64 KiB
    header     a JSON object with exactly the keys of its kind
    the rest   what of the adapter goes down (``parcel``), behind it what was added to the frozen
               weights, and the keys of a secure sum; on the way up the change of what was trained
               (``encoding``), behind it what openers need

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
_MOST_CARD = 4096  # bytes
_TASK_KEYS = {
    "run", "round", "schema", "settings", "sent", "rest", "dry", "merged", "roster", "openers",
}  # fmt: skip
_READY_KEYS = {"kind", "holder", "task_hash"}
_REFUSAL_KEYS = {*_READY_KEYS, "code"}
_UPDATE_KEYS = {
    "kind", "holder", "run", "round", "task_hash", "schema", "encoding", "receipt", "statement",
}  # fmt: skip
_OPEN_KEYS = {"kind", "run", "task_hash", "least", "colluding", "size", "roster", "openers"}
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
        roster: who may be in a secure sum, and ``openers`` who helps to open this one, as
            ``common.masking`` writes them; empty where there is none.
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
    roster: bytes = field(default=b"", repr=False)
    openers: bytes = field(default=b"", repr=False)
    dry: bool = False

    @property
    def hash(self) -> str:
        """sha256 over everything above but ``dry``: what the ledger is charged for."""
        facts = [self.run, self.round, dict(self.settings), self.schema, self.sent, self.rest]
        facts += [hashlib.sha256(self.merged).hexdigest()] if self.merged else []
        if self.roster or self.openers:
            facts += [hashlib.sha256(one).hexdigest() for one in (self.roster, self.openers)]
        head = json.dumps(facts, sort_keys=True).encode()
        return hashlib.sha256(hashlib.sha256(head).digest() + self.adapter).hexdigest()


# What a request without an adapter says of it.
NO_ADAPTER: Mapping[str, Any] = {"schema": "", "sent": "", "rest": "0" * 64, "adapter": b""}


@dataclass(frozen=True, kw_only=True)
class Update:
    """Holder -> coordinator: the private change of the trained tensors, and the receipt. In a
    secure sum the values are masked, and ``statement`` says so (``common.masking.openers``)."""

    holder: str
    run: str
    round: int
    task_hash: str
    schema: str
    encoding: str
    receipt: Mapping[str, Any]
    values: bytes = field(repr=False)
    statement: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Holder -> coordinator: no, with a code and nothing else."""

    holder: str
    task_hash: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Holder -> coordinator: a request that only asked would be worked on. In a run with a secure
    sum ``card`` has the holder's keys (``common.masking.openers``)."""

    holder: str
    task_hash: str
    card: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """Coordinator -> opener: answer once for a sum, with your keystreams over these contributions.

    Attributes:
        run: and ``task_hash``: of the request that was contributed to.
        least: and ``colluding``, ``size``, ``roster``, ``openers``: what was said of its sum.
        statements: of all who contributed, as ``common.masking.openers`` writes them.
    """

    run: str
    task_hash: str
    least: int
    colluding: int
    size: int
    roster: bytes = field(repr=False)
    openers: bytes = field(repr=False)
    statements: bytes = field(repr=False)

    @property
    def hash(self) -> str:
        """Of the request that was contributed to."""
        return self.task_hash


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Opener -> coordinator: the sum of its keystreams, 4 bytes a word."""

    holder: str
    task_hash: str
    values: bytes = field(repr=False)


Request = TrainRequest | OpenRequest
Reply = Update | Refusal | Ready | Opening

_KINDS = {Update: "update", Refusal: "refusal", Ready: "ready", Opening: "opening"}
# The arrays of a request, in their order behind the header.
_ARRAYS: Mapping[type, tuple[str, ...]] = {
    TrainRequest: ("adapter", "merged", "roster", "openers"),
    OpenRequest: ("statements", "roster", "openers"),
}


def request_to_bytes(request: Request) -> bytes:
    """A request as one byte string; of each array behind the first its header has the length."""
    first, *behind = _ARRAYS[type(request)]
    header = {k: v for k, v in vars(request).items() if k != first}
    header |= {name: len(header[name]) for name in behind}
    if isinstance(request, TrainRequest):
        header["settings"] = dict(request.settings)
    else:
        header["kind"] = "open"
    return _joined(header, b"".join(getattr(request, name) for name in (first, *behind)))


def request_from_bytes(data: bytes) -> Request:
    """Undo ``request_to_bytes``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _parted(data)
    if header.get("kind") == "open" and set(header) == _OPEN_KEYS:
        return OpenRequest(
            run=_run(header["run"]),
            task_hash=_matching(_HASH, header["task_hash"]),
            least=_count(header["least"]),
            colluding=_count(header["colluding"]),
            size=_count(header["size"]),
            **_arrays(OpenRequest, header, payload),
        )
    if set(header) != _TASK_KEYS:
        raise _malformed("exactly what it has to have")
    return TrainRequest(
        run=_run(header["run"]),
        round=_count(header["round"]),
        settings=_object(header["settings"]),
        schema=_text(header["schema"]),
        sent=_matching(_SENT, header["sent"]),
        rest=_matching(_HASH, header["rest"]),
        dry=_truth(header["dry"]),
        **_arrays(TrainRequest, header, payload),
    )


def _arrays(kind: type[Request], header: Mapping[str, Any], payload: bytes) -> dict[str, bytes]:
    """The arrays of a request; the first is what the others leave."""
    first, *behind = _ARRAYS[kind]
    lengths = [_count(header[name]) for name in behind]
    start = len(payload) - sum(lengths)
    if start < 0:
        raise _malformed("arrays of the lengths it claims")
    found = {first: payload[:start]}
    for name, length in zip(behind, lengths, strict=True):
        found[name], start = payload[start : start + length], start + length
    return found


def reply_to_bytes(reply: Reply) -> bytes:
    """A reply as one byte string; equal replies give equal bytes."""
    header = {"kind": _KINDS[type(reply)], **asdict(reply)}
    if isinstance(reply, Refusal):
        return _joined(header, b"")
    if isinstance(reply, Ready):
        return _joined(header, header.pop("card"))
    values = header.pop("values")
    if isinstance(reply, Opening):
        return _joined(header, values)
    return _joined(header | {"statement": len(reply.statement)}, values + reply.statement)


def reply_from_bytes(data: bytes) -> Reply:
    """Undo ``reply_to_bytes``.

    Raises:
        ConfideError: ``wire.malformed``.
    """
    header, payload = _parted(data)
    names = {"holder": _text(header.get("holder")), "task_hash": _text(header.get("task_hash"))}
    if header.get("kind") == "ready" and set(header) == _READY_KEYS and len(payload) <= _MOST_CARD:
        return Ready(**names, card=payload)
    if header.get("kind") == "opening" and set(header) == _READY_KEYS:
        return Opening(**names, values=payload)
    if header.get("kind") == "refusal" and set(header) == _REFUSAL_KEYS and not payload:
        return Refusal(**names, code=_text(header["code"])[:_CODE_LENGTH])
    if header.get("kind") != "update" or set(header) != _UPDATE_KEYS:
        raise _malformed("exactly what it has to have")
    values = len(payload) - _count(header["statement"])
    if values < 0:
        raise _malformed("arrays of the lengths it claims")
    return Update(
        **names,
        run=_run(header["run"]),
        round=_count(header["round"]),
        schema=_text(header["schema"]),
        encoding=_text(header["encoding"]),
        receipt=_object(header["receipt"]),
        values=payload[:values],
        statement=payload[values:],
    )


def request_to_records(request: Request) -> RecordDict:
    """A request as Flower carries it."""
    return _carried(request_to_bytes(request))


def request_from_records(records: RecordDict) -> Request:
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
