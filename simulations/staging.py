"""Folders that appear whole or not at all.

Whatever this room writes into the cache is made beside its place under a temporary name and
then moved there by one rename, so that a kill, a full disk or Ctrl-C leaves what was there
before. What is made here, rather than fetched, is sealed: a file beside it says by which recipe,
and pins what came out. All of it is public but the copies of one's own text (``copies``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError


@contextmanager
def staged(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends without an error.

    A ``target`` that exists is replaced; with ``private`` it is for this user alone to enter. The
    parent of the yielded folder is temporary and vanishes with the block, so scratch files may lie
    there.

    Raises:
        ConfideError: ``cache.write`` when the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".partial-", dir=target.parent, ignore_cleanup_errors=True
        ) as scratch:
            folder = Path(scratch, "new")
            folder.mkdir(mode=0o700 if private else 0o777)
            yield folder
            _move(folder, target, Path(scratch, "old"))
    except OSError as error:
        raise ConfideError(
            "cache.write",
            f"{target} could not be written: {error.strerror or type(error).__name__}.",
            "Make room, or set CONFIDE_CACHE to a folder that can be written.",
        ) from error


def _move(folder: Path, target: Path, aside: Path) -> None:
    try:
        folder.replace(target)
    except OSError as error:
        # A folder that is not empty cannot be renamed over: first move it out of the way.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        target.replace(aside)
        folder.replace(target)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, file: str, recipe: Mapping[str, Any], **facts: Any) -> None:
    """Write the recipe, further facts and the SHA-256 of every file of ``folder`` to ``file``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    pins = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    text = json.dumps({**recipe, **facts, "sha256": pins}, indent=1) + "\n"
    (folder / file).write_text(text, encoding="utf-8", newline="\n")


def is_sealed(folder: Path, file: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the folder was made by this recipe and every file is as it was made."""
    try:
        manifest = json.loads((folder / file).read_text(encoding="utf-8"))
        pins = dict(manifest["sha256"])
        same = {key: manifest[key] for key in recipe} == dict(recipe)
        return same and all(sha256_of(folder / name) == pins[name] for name in pins)
    except (OSError, ValueError, KeyError, TypeError):
        return False
