"""Which file was taken in: the text as it was when its administrator last looked at what is in it.

A file is taken in once, by ``confide client join`` (or when its resident first starts), and what is
broken in it is told then, on the administrator's own screen. A file that the system says was
changed since is not used until the administrator has looked again (``confide client take-in``):
whether it was is told by its size and its time of change alone, which are the file's and the same
whatever a request asks. Beside the ledger lies a small file that says which one it was.

| the text | a request |
|---|---|
| as it was taken in | is worked on |
| another size or time of change | ``data.changed``, before the charge |
| taken in by nobody, as where no resident ever ran | is worked on |

The name of a text in a ledger is a hash of its file's bytes under the ledger's secret key, so that
two ledgers of one file cannot be linked, and an export of the ledger lets nobody test a guess of
the file; only who has the ledger file itself can. It never leaves in a reply. Imports no torch.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.paths import replace_durably


def identity_of(content: bytes, key: bytes) -> str:
    """Keyed hash of a file's bytes (HMAC-SHA-256), hex."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def take_in(data: Path, ledger: Path) -> None:
    """Note that the text as it is now may be used.

    Raises:
        ConfideError: ``data.missing-file`` where there is none; ``policy.write`` when the disk
            refuses.
    """
    note = {**_facts(data), "time": round(time.time())}
    try:
        replace_durably(_note(ledger), json.dumps(note).encode())
    except OSError as error:
        raise ConfideError(
            "policy.write",
            f"{_note(ledger)} cannot be written: {error.strerror}.",
            "Make room, or let this user write there.",
        ) from None


def was_taken_in(ledger: Path) -> bool:
    """Whether any text was."""
    return _note(ledger).is_file()


def check_taken(data: Path, ledger: Path) -> None:
    """Refuse a file that was changed since it was taken in; it is not opened.

    Raises:
        ConfideError: ``data.changed``, or ``data.missing-file``.
    """
    if not was_taken_in(ledger):
        return
    try:
        noted: Any = json.loads(_note(ledger).read_bytes())
        same = {key: noted[key] for key in ("file", "size", "changed")} == _facts(data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        same = False  # a spoilt note knows of no file
    if not same:
        raise ConfideError(
            "data.changed",
            f"{data} was changed since it was taken in.",
            "Look at what is in it now, and take it in: `confide client take-in KIT`.",
        )


def _facts(data: Path) -> dict[str, Any]:
    """What the system says of the file."""
    try:
        found = data.stat()
    except OSError as error:
        raise ConfideError(
            "data.missing-file",
            f"{data} is not a file that this process may read ({error.strerror}).",
            "Check the path and the permissions.",
        ) from None
    return {"file": data.name, "size": found.st_size, "changed": found.st_mtime_ns}


def _note(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.text.json")
