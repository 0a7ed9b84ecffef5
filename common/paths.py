"""Where things lie on this machine: one cache folder, filled by ``confide assets fetch``.

``CONFIDE_CACHE`` moves it. Models lie under ``models/<name>``, prepared federations (one file
per holder and a public held-out file) under ``federations/<name>``.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder; it need not exist yet."""
    chosen = os.environ.get("CONFIDE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "confide"


def local_or_cached(name: str, kind: str) -> Path | None:
    """A folder called ``name``: as a path, else in the cache under ``kind``, else None."""
    for candidate in (Path(name).expanduser(), cache_dir() / kind / name):
        if candidate.is_dir():
            return candidate.resolve()
    return None
