"""A holder's text: file -> records -> token ids, read once and kept in memory only.

``identity`` tells the ledger which data set a charge belongs to without saying anything about the
text to somebody who sees the ledger alone: it is keyed with the ledger's own secret id.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from ..common.batches import EncodedText
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.settings import DataSpec, TaskSpec
from ..common.tasks import task_for
from ..common.text.readers import Record, read_records


class Corpus:
    """The text of one holder.

    Args:
        path: a jsonl, csv, parquet or txt file on this machine, named by the holder alone.
        spec: which columns to read.
    """

    def __init__(self, path: Path, spec: DataSpec) -> None:
        self.path, self.spec = path, spec
        self._records: list[Record] | None = None
        self._encoded: dict[tuple[TaskSpec, int], EncodedText] = {}

    def identity(self, key: str) -> str:
        """Keyed hash of the file's bytes (HMAC-SHA-256), hex."""
        if not self.path.is_file():
            raise ConfideError(
                "data.missing-file",
                f"There is no file {self.path}.",
                "Set `data` in the holder's node configuration.",
            )
        digest = hmac.new(key.encode(), digestmod=hashlib.sha256)
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def records(self) -> list[Record]:
        """All records, in the order of the file."""
        if self._records is None:
            self._records = read_records(
                self.path,
                text=self.spec.text,
                target=self.spec.target,
                person=self.spec.person or None,
            )
        return self._records

    def encoded(self, task: TaskSpec, loaded: LoadedModel) -> EncodedText:
        """The records as the model reads them; the same object at every call for one model."""
        key = (task, id(loaded))
        if key not in self._encoded:
            examples = task_for(task).encode(self.records(), loaded.tokenizer, loaded.max_length)
            self._encoded[key] = EncodedText(examples, loaded)
        return self._encoded[key]
