"""``receipts.json`` in a federation's folder: the newest receipt of each holder, over runs.

Durable, and part of the coordinator's backup: without it a holder whose ledger went back between
two runs could not be told from one that is new. It holds what receipts hold: epsilons and hashes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.errors import ConfideError
from ...common.machine.paths import write_public
from ...common.privacy.ledger import Receipt
from ..ledgers import Faults, Memory
from . import flower
from .federation import Federation, load_federation

FILE = "receipts.json"


@dataclass(frozen=True, kw_only=True)
class Known:
    """A holder's newest receipt, and the newest fault of its ledger with the run that found it."""

    receipt: Receipt | None = None
    fault: str = ""
    run: str = ""


def memory_here() -> Memory | None:
    """For a ServerApp: the memory of the federation whose server started it; None where none did,
    as in a simulation. No setting of a run can name another."""
    folder = os.environ.get(flower.FEDERATION)
    return None if folder is None else memory_of(load_federation(Path(folder)))


def memory_of(federation: Federation) -> Memory:
    """The federation's own."""

    def load() -> Mapping[str, Receipt]:
        known = read_known(federation)
        return {name: one.receipt for name, one in known.items() if one.receipt is not None}

    def keep(run: str, receipts: Mapping[str, Receipt], faults: Faults) -> None:
        with _alone(federation):
            known = read_known(federation)
            for name, receipt in receipts.items():
                known[name] = _newer(known.get(name, Known()), receipt)
            for name, code in faults.items():
                before = known.get(name, Known())
                known[name] = Known(receipt=before.receipt, fault=code, run=run)
            _write(federation, known)

    return Memory(load=load, keep=keep)


def read_known(federation: Federation) -> dict[str, Known]:
    """What is remembered of each holder, by name.

    Raises:
        ConfideError: ``federation.receipts`` for a file that is not as it was written.
    """
    path = federation.folder / FILE
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_bytes())
        return {str(name): _known(row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfideError):
        raise ConfideError(
            "federation.receipts",
            f"{path} is damaged: what the holders' ledgers had spent before is not known.",
            "Restore it from a backup; without it nobody can tell a ledger that went back.",
        ) from None


def _newer(known: Known, receipt: Receipt) -> Known:
    """Of two receipts of one ledger the longer counts, whichever of two runs at a time is first."""
    before = known.receipt
    older = before and before.ledger_id == receipt.ledger_id and receipt.entries < before.entries
    return Known(receipt=before if older else receipt, fault=known.fault, run=known.run)


def _known(row: Mapping[str, object]) -> Known:
    told, fault, run = row["receipt"], row["fault"], row["run"]
    if not isinstance(fault, str) or not isinstance(run, str):
        raise TypeError("fault")
    receipt = None if told is None else Receipt.from_json(told)  # type: ignore[arg-type]
    return Known(receipt=receipt, fault=fault, run=run)


def _write(federation: Federation, known: Mapping[str, Known]) -> None:
    rows = {
        name: {**asdict(one), "receipt": one.receipt.to_json() if one.receipt else None}
        for name, one in sorted(known.items())
    }
    write_public(federation.folder / FILE, json.dumps(rows, indent=1).encode())


@contextmanager
def _alone(federation: Federation) -> Iterator[None]:
    """Two runs of a federation do not lose each other's receipts."""
    with (federation.folder / f".{FILE}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
