"""Two holders whose texts differ in one record, and all that anybody could tell them apart by."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from confide.client.guard.policy import Policy
from confide.client.guard.sum_keys import IDENTITY_FILE
from confide.client.holder import Holder, Site
from confide.client.training import sums as sums_module
from confide.client.training.private_step import PrivateOptimizer
from confide.common.privacy.ledger import Ledger
from confide.common.privacy.noise import SecureGenerator
from confide.common.wire.messages import Refusal, Reply, TrainRequest, Update, reply_to_bytes
from tests import tiny

SEED = 20261130
OF_ONE_LEDGER = ("ledger_id", "head")  # random, and a hash of what is random

# What stands in the place of the last record, as bytes of its line. A line of one byte more or
# less, or of a megabyte, must not show either.
BAD_LINES: Mapping[str, bytes] = {
    "another label": b'{"text": "a day", "label": "unheard of", "person": "1"}',
    "a null": b'{"text": "a day", "label": null, "person": "1"}',
    "a null text": b'{"text": null, "label": "positive", "person": "1"}',
    "no person": b'{"text": "a day", "label": "positive", "person": null}',
    "a missing column": b'{"text": "a day", "person": "1"}',
    "other columns": b'{"a": 1}',
    "a column twice": b'{"text": "a", "text": "b", "label": "positive", "person": "1"}',
    "a broken line": b'{"text": "a day", "label": ',
    "no JSON": b"a day, positive",
    "another type": b'{"text": 3, "label": {"positive": 1}, "person": "1"}',
    "a list": b'{"text": ["a", "day"], "label": "positive", "person": "1"}',
    "messages": b'{"text": [{"role": "user", "content": "a"}], "label": "positive"}',
    "answered messages": b'{"text": [{"role": "user", "content": "a"},'
    b' {"role": "assistant", "content": "b"}], "label": "positive", "person": "1"}',
    "a bare array": b"[1, 2, 3]",
    "not a number": b'{"text": "a day", "label": NaN, "person": "1"}',
    "infinite": b'{"text": "a day", "label": -Infinity, "person": "1"}',
    "a number beyond all": b'{"text": "a day", "label": 1e999, "person": "1"}',
    "an exponent beyond all": b'{"text": "a day", "label": 1e99999999999999999999, "person": "1"}',
    "a thousand digits": b'{"text": "a day", "person": "1", "label": ' + b"9" * 1000 + b"}",
    "an empty text": b'{"text": "", "label": "positive", "person": "1"}',
    "blanks": b'{"text": " \\t ", "label": "positive", "person": "1"}',
    "bytes that are no text": b'{"text": "\xff\xfe", "label": "positive", "person": "1"}',
    "zero bytes": b"\x00" * 30,
    "half a character": b'{"text": "\\ud800", "label": "positive", "person": "1"}',
    "brackets": b"[" * 5000,
    "a megabyte": b'{"label": "positive", "person": "1", "text": "' + b"warm " * 200_000 + b'"}',
    "one long word": b'{"label": "positive", "person": "1", "text": "' + b"w" * 1_000_000 + b'"}',
    "a long label": b'{"text": "a", "person": "1", "label": "' + b"warm " * 200_000 + b'"}',
    "a person of others": b'{"text": "a day", "label": "positive", "person": "0"}',
}


@dataclass
class Seen:
    """All that left, was written or was said over some tasks, and the sums before their noise.

    ``told`` is compared letter by letter, four things of each task: reply, log, ledger, and how
    many sums there were; ``sums`` has the first sum of each task that makes some.
    """

    told: list[Any] = field(default_factory=list)
    sums: list[NDArray[np.float64]] = field(default_factory=list)
    replies: list[Update] = field(default_factory=list)


class Witness:
    """A holder of some lines of text, with noise that repeats itself, watched from all sides."""

    def __init__(
        self, folder: Path, lines: Sequence[bytes], policy: Policy, secret: bytes = b""
    ) -> None:
        """``secret`` is its signing key, where it takes part in secure sums."""
        folder.mkdir(parents=True)
        data = folder / "text.jsonl"
        data.write_bytes(b"\n".join(lines) + b"\n")
        ledger = folder / "ledger.sqlite"
        self.site = Site(name="holder-00", data=data, ledger=ledger, policy=policy, new_ledger=True)
        self._folder = folder
        if secret:
            self.site.keys.mkdir()
            (self.site.keys / IDENTITY_FILE).write_bytes(secret)

    def answers(
        self, tasks: Sequence[TrainRequest], seed: int | None = SEED, *, keep: bool = False
    ) -> Seen:
        """What is seen of the tasks, one after the other, by one holder; without a seed its noise
        is the secure one. ``keep`` keeps the updates, too."""
        seen, holder = Seen(), Holder(self.site)
        for number, task in enumerate(tasks):
            sums: list[NDArray[np.float64]] = []
            # Anew for each, since how much of it is used may depend on the text.
            if seed is not None:
                holder._generator = SecureGenerator.insecure_seeded(seed + number)
            with _listening(self._folder) as lines, _before_the_noise(sums):
                reply = holder.handle(task)
            if keep and isinstance(reply, Update):
                seen.replies.append(reply)
            seen.told += [_told(reply), lines, self._ledger(), len(sums)]
            seen.sums += sums[:1]  # those of later steps follow from noise that came before
        return seen

    def _ledger(self) -> Any:
        if not self.site.ledger.exists():
            return "no ledger", self._files()
        with Ledger.open(self.site.ledger, create=False) as ledger:
            entries = [
                {k: len(str(v)) if k in _OWN else v for k, v in e.payload.items()}
                for e in ledger.entries()
            ]
        return entries, self._files()

    def _files(self) -> list[tuple[str, int]]:
        """Names and sizes of everything beside the text."""
        files = sorted(p for p in self._folder.rglob("*") if p != self.site.data)
        return [(str(p.relative_to(self._folder)), p.stat().st_size) for p in files]


# Of an entry: random, a time, or a hash of what has noise in it. How long it is must be the same.
_OWN = {"ledger", "key", "previous", "time", "reply", "text"}


def _told(reply: Reply) -> Any:
    """A reply without its values and what is random in it."""
    size = len(reply_to_bytes(reply))
    fields = dataclasses.asdict(reply)
    if not isinstance(reply, Update):
        card = len(fields.pop("card", b""))  # of a key that is drawn anew
        return "refusal" if isinstance(reply, Refusal) else "ready", size, card, fields
    values, statement = fields.pop("values"), fields.pop("statement")
    fields["statement"] = len(statement)  # of seeds that are drawn anew
    receipt = {k: v for k, v in fields.pop("receipt").items() if k not in OF_ONE_LEDGER}
    return "update", size, len(values), fields, receipt


@contextmanager
def _listening(folder: Path) -> Iterator[list[str]]:
    """Every line of the log, without the folder that the witness lies in."""
    lines: list[str] = []

    class Ears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().replace(str(folder), "")
            lines.append(f"{record.name} {record.levelname} {text}")

    ears = Ears(level=0)
    logging.getLogger().addHandler(ears)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(ears)


@contextmanager
def _before_the_noise(sums: list[NDArray[np.float64]]) -> Iterator[None]:
    """Note each clipped sum in the moment before noise is added to it."""
    add_noise, clipped_sum = PrivateOptimizer.add_noise, sums_module.clipped_sum

    def adding(self: PrivateOptimizer) -> None:
        parts = [p.summed_grad.double().flatten().numpy() for p in self.params]
        sums.append(np.concatenate(parts))
        add_noise(self)

    def counting(*args: Any) -> Any:
        total = clipped_sum(*args)
        sums.append(np.array(total, dtype=np.float64))
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateOptimizer, "add_noise", adding)
        patch.setattr(sums_module, "clipped_sum", counting)
        yield


def lines_of(task: str, count: int) -> list[bytes]:
    """Honest records of a kind of task, persons of three records each."""
    rows = [tiny.for_task(task, row) for row in tiny.rows(count, seed=3)]
    return [json.dumps(row).encode() for row in rows]
