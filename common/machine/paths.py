"""Where things lie on this machine: one cache folder, filled by ``confide assets fetch``.

``CONFIDE_CACHE`` moves it. Models lie under ``models/<name>``, prepared federations (one file
per holder and a public held-out file) under ``federations/<name>``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def cache_dir() -> Path:
    """The cache folder; it need not exist yet."""
    chosen = os.environ.get("CONFIDE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "confide"


def local_or_cached(name: str, kind: str) -> Path | None:
    """A folder called ``name``: as a path, else in the cache under ``kind``, else None."""
    if not name:
        return None
    # Not Path's own: a user whom nobody knows, or a name too long for a path, is no error here.
    here = Path(os.path.expanduser(name))  # noqa: PTH111
    for candidate in (here, cache_dir() / kind / name):
        if os.path.isdir(candidate):  # noqa: PTH112
            return candidate.resolve()
    return None


def resumed_run(config: Mapping[str, Any]) -> Path | None:
    """The folder of the run that ``run.resume`` of a flat config names, if it names one."""
    named = str(config.get("run.resume", ""))
    return Path(named).expanduser().resolve() if named else None


def runs_folder(config: Mapping[str, Any]) -> Path:
    """The folder in which the run's own lies: that of the resumed run, else ``run.out``."""
    resumed = resumed_run(config)
    return (
        resumed.parent
        if resumed
        else Path(str(config.get("run.out", "runs"))).expanduser().resolve()
    )


def keys_beside(ledger: Path) -> Path:
    """The folder of a holder's own keys for secure sums. Its name does not begin as the ledger's
    does: a backup of ``LEDGER*`` must not have it."""
    return ledger.with_name(f"keys-of-{ledger.name}")


def public_name(name: str) -> str:
    """The name of a base model as it may be published: its id on the Hub, or of a folder the last
    part alone, since the others are of this machine (MiniCPM#362). Whose folder that is nobody else
    can know: the card asks for its public name."""
    if HUB_ID.fullmatch(name) and not Path(name).is_dir():
        return name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file, for this user alone to read: written beside it, synced, renamed. A crash at
    any instant leaves the old one or the new one whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_secret(path: Path, data: bytes) -> None:
    """A new file that nobody but its owner may read; one that is there is replaced whole."""
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """A file that everybody may read, below a folder that not everybody may enter."""
    _write(path, data, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Written beside and renamed: never half there, never readable by others in between."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask is
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _sync_folder(path: Path) -> None:
    """Without this a power failure may bring the replaced file back."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
