"""A holder's text: file -> records -> token ids, read once and kept in memory only.

``identity`` tells the ledger which data set a charge belongs to. It is keyed with the ledger's
secret key, so that two ledgers of one file cannot be linked and an export of the ledger lets nobody
test a guess of the file; only who has the ledger file itself can. It never leaves in a reply.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from ..common.batches import EncodedText
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.settings import DataSpec
from ..common.text.readers import read_records
from ..common.text.units import group_units


def identity_of(path: Path, key: bytes) -> str:
    """Keyed hash of the file's bytes (HMAC-SHA-256), hex.

    Raises:
        ConfideError: ``data.missing-file``.
    """
    digest = hmac.new(key, digestmod=hashlib.sha256)
    reason = ""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        raise ConfideError(
            "data.missing-file",
            f"{path} cannot be read: {reason}.",
            "Set `data` in the holder's node configuration.",
        )
    return digest.hexdigest()


class Corpus:
    """The text of one holder as its file was at one moment.

    Args:
        path: a jsonl, csv, parquet or txt file on this machine, named by the holder alone.
        spec: which columns to read.
        key: of the identity, ``Ledger.identity_key``; it is not kept.

    Attributes:
        records: all records, in the order of the file.

    Raises:
        ConfideError: the codes of the readers, or ``data.changed`` when somebody wrote to the
            file meanwhile: the ledger must know exactly the text that is used.
    """

    def __init__(self, path: Path, spec: DataSpec, key: bytes) -> None:
        self.spec = spec
        self.identity = identity_of(path, key)
        self.records = read_records(
            path, text=spec.text, target=spec.target or None, person=spec.person or None
        )
        if identity_of(path, key) != self.identity:
            raise ConfideError(
                "data.changed",
                f"{path} changed while it was read.",
                "Write a new file beside it and rename that into its place.",
            )
        self._encoded: tuple[LoadedModel, EncodedText] | None = None
        self._units: dict[str, list[list[int]]] = {}

    def is_that_of(self, path: Path, spec: DataSpec, key: bytes) -> bool:
        """Whether reading the file again would give the same."""
        return self.spec == spec and self.identity == identity_of(path, key)

    def units(self, unit: str) -> list[list[int]]:
        """The records' indices, one list a unit of privacy, the same object each time.

        Raises:
            ConfideError: ``data.missing-person``.
        """
        if unit not in self._units:
            self._units[unit] = group_units(self.records, unit)
        return self._units[unit]

    def encoded(self, loaded: LoadedModel) -> EncodedText:
        """The records as the model reads them; the same object until the model changes (only
        one is kept: a coordinator that asks for ever new models must not fill the memory)."""
        if self._encoded is not None and self._encoded[0] is loaded:
            return self._encoded[1]
        examples = loaded.task.encode(self.records, loaded.tokenizer, loaded.max_length)
        self._encoded = (loaded, EncodedText(examples, loaded))
        return self._encoded[1]
