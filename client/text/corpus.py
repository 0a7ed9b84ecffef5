"""A holder's text: file -> records -> examples, read after the charge and kept in memory only.

Nothing here fails over what the text holds. A row that is no record, a record that is not what the
contract says, one that the task, the tokenizer or a chat template cannot take, or whose tokens the
model does not have, is not used: it contributes zero, as a record whose gradient is not finite. A
file of which nothing can be used trains nothing, and pure noise leaves. How many are not used is
for the administrator alone.

``identity`` tells the ledger which text a release was of (``identity``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...common.errors import ConfideError
from ...common.models.batches import EncodedText
from ...common.models.loading import LoadedModel
from ...common.settings import DataSpec, Settings
from ...common.tasks import TASKS, Example
from ...common.tasks.example import IGNORED
from ...common.text.readers import Record, records_that_fit, usable_units
from ...common.text.rows import check_suffix
from ..guard.contract import Contract
from ..guard.scrub import tried
from .taken import identity_of

Examples = Sequence[Example | None]


def check_readable(path: Path) -> None:
    """Refuse a file that the system says is gone or closed to this process, or whose name ends in
    no format; it is not opened.

    Raises:
        ConfideError: ``data.missing-file`` or ``data.unknown-suffix``.
    """
    check_suffix(path)
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise ConfideError(
            "data.missing-file",
            f"{path} is not a file that this process may read.",
            "Check the path and the permissions.",
        )


class Corpus:
    """The text of one holder as its file was at one moment.

    Args:
        path: a jsonl, csv, parquet or txt file on this machine, named by the holder alone.
        settings: which columns to read, and for what.
        contract: what the holder says its text is; None in a simulation, where the scenario does.
        key: of the identity, ``Ledger.identity_key``; it is not kept.

    Attributes:
        records: one for each row, in order; None for one that is no record, or not as agreed.
        identity: of the file's bytes.
    """

    def __init__(
        self, path: Path, settings: Settings, contract: Contract | None, key: bytes
    ) -> None:
        content = tried(path.read_bytes) or b""
        self.identity = identity_of(content, key)
        self._read_for = _read_for(settings, contract)
        self.records = tried(lambda: _records(path, content, settings, contract)) or []
        self._encoded: tuple[LoadedModel, Examples, EncodedText] | None = None

    def is_that_of(
        self, path: Path, settings: Settings, contract: Contract | None, key: bytes
    ) -> bool:
        """Whether reading the file again would give the same."""
        same = self._read_for == _read_for(settings, contract)
        return same and self.identity == identity_of(tried(path.read_bytes) or b"", key)

    def units(self, unit: str, usable: Sequence[object | None]) -> list[list[int]]:
        """The units of privacy, each with the places of its records among those that are usable;
        empty for a unit of which nothing is. ``usable`` has None for each record that is not."""
        return usable_units(self.records, unit, [one is not None for one in usable])

    def examples(self, loaded: LoadedModel) -> Examples:
        """One for each row, as the model reads it; None where it can make nothing of it."""
        return self._with(loaded)[1]

    def text(self, loaded: LoadedModel) -> EncodedText:
        """The usable examples as the model trains on them; the same object until the model changes
        (only one is kept: a coordinator that asks for ever new models must not fill the memory)."""
        return self._with(loaded)[2]

    def _with(self, loaded: LoadedModel) -> tuple[LoadedModel, Examples, EncodedText]:
        if self._encoded is None or self._encoded[0] is not loaded:
            examples = _examples(self.records, loaded)
            used = [example for example in examples if example is not None]
            self._encoded = (loaded, examples, EncodedText(used, loaded))
        return self._encoded


def _read_for(settings: Settings, contract: Contract | None) -> tuple[DataSpec, object]:
    return settings.data, (contract, settings.task.kind) if contract else None


def _records(
    path: Path, content: bytes, settings: Settings, contract: Contract | None
) -> list[Record | None]:
    spec, kind = settings.data, settings.task.kind
    found = records_that_fit(
        path,
        content,
        text=spec.text,
        target=spec.target or None,
        person=spec.person or None,
        lists=TASKS[kind].lists,
    )
    if contract is None:
        return found
    return [r if r is not None and contract.fits(r, kind) else None for r in found]


def _examples(records: Sequence[Record | None], loaded: LoadedModel) -> Examples:
    """All at once where all can be encoded, which is quicker; otherwise each by itself."""
    task, known = loaded.task, [record for record in records if record is not None]

    def encoded(some: Sequence[Record]) -> Sequence[Example]:
        return task.encode(some, loaded.tokenizer, loaded.max_length)

    found: Sequence[Example | None] | None = tried(lambda: encoded(known))
    if found is None:
        alone = [tried(partial(encoded, [record])) for record in known]
        found = [one[0] if one else None for one in alone]
    size = loaded.model.get_input_embeddings().weight.shape[0]
    rest = iter(found)
    examples = [None if record is None else next(rest) for record in records]
    return [e if e is not None and _has_tokens(e, size) else None for e in examples]


def _has_tokens(example: Example, size: int) -> bool:
    """Whether the model has every token of it: a tokenizer may know more than the embedding."""
    targets = example.target if isinstance(example.target, tuple) else ()
    known = all(0 <= token < size for token in example.ids)
    return known and all(target == IGNORED or 0 <= target < size for target in targets)
