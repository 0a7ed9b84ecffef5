"""The copies that simulations make of the user's own text: split among holders, in the cache.

Only its owner can read a copy (a folder of mode 0700, files of mode 0600). Its name follows from
the contents of the text, so that two descriptions of one name never use each other's copy. It stays
until somebody removes it (``confide assets list`` and ``remove``). Federations of public text lie
beside the copies, and are listed and removed in the same way. Only for simulations: a real holder's
text is not copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError, nearest
from ..common.machine.paths import cache_dir
from ..common.text.readers import Record, group_units, read_records
from ..common.text.rows import content_of, in_form
from .description import Files
from .staging import sha256_of, staged

_MANIFEST = "federation.json"
_DIGITS = 12  # of the digest in a name: 48 bits tell any number of copies apart


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared federation in the cache; ``own``: whether it is a copy of the user's own files."""

    name: str
    folder: Path
    own: bool


def on_screen(line: str) -> None:
    """Print a line for the user: the default way to tell about a copy."""
    print(line, file=sys.stderr)


def copy_name(name: str, files: Files, holders: int, seed: int) -> str:
    """The name of the copy: the description's name, and a digest of everything that decides the
    files.

    Raises:
        ConfideError: ``data.missing-file``.
    """
    recipe = json.dumps(_recipe(files, holders, seed)).encode()
    return f"{name}-{holders}-{hashlib.sha256(recipe).hexdigest()[:_DIGITS]}"


def prepare_files(
    name: str, files: Files, holders: int, seed: int, say: Callable[[str], None] = on_screen
) -> Path:
    """Make the copy of that name, or find the earlier one of the same text, and tell the user.

    Raises:
        ConfideError: the codes of the readers, ``data.held-out`` where the held-out text is
            training text, or ``data.partition``.
    """
    folder = cache_dir() / "federations" / name
    recipe = _recipe(files, holders, seed)
    train, val = (_read(path, files) for path in (files.train, files.val))
    for line in check_held_out(files, train, val):
        say(line)
    if _manifest(folder).get("recipe") != recipe:
        _write_all(folder, files, _shares(files, train, holders, seed), val, recipe)
    say(
        f"A copy of your text lies in {folder}, for you alone to read."
        f" `confide assets remove {name}` removes it."
    )
    return folder


def check_held_out(files: Files, train: Sequence[Record], val: Sequence[Record]) -> list[str]:
    """Warnings about held-out text that is training text in part, a line each.

    Raises:
        ConfideError: ``data.held-out`` if all of it is training text.
    """
    known = {in_form(r.text) for r in train}
    same = sum(in_form(r.text) in known for r in val)
    if same == len(val):
        raise ConfideError(
            "data.held-out",
            f"Every text of {files.val} stands in {files.train}, too: nothing is held out, and what"
            " is measured on it would say how well the text was learnt by heart.",
            "Name another file for val, or take its records out of train.",
        )
    lines = []
    if same:
        lines.append(
            f"{same} of {len(val)} held-out records are training text, too: what is measured on"
            " them flatters. Take them out of one of the two files."
        )
    people = {r.person for r in train if r.person is not None}
    if both := {r.person for r in val if r.person is not None} & people:
        lines.append(
            f"{len(both)} persons have records in the training and in the held-out text: what is"
            " measured says less of persons who are new."
        )
    return lines


def check_public(public: Path, holders: Sequence[Path], text: str) -> None:
    """Refuse a prepared federation whose public text is nothing but training text.

    Raises:
        ConfideError: ``data.held-out``, and the codes of the readers.
    """
    held = {in_form(r.text) for r in read_records(public, text=text, target=None)}
    for file in holders:
        held -= {in_form(r.text) for r in read_records(file, text=text, target=None)}
        if not held:
            raise ConfideError(
                "data.held-out",
                f"Every text of {public} is training text of a holder: nothing is held out.",
                "Prepare the federation from text whose held-out part is another.",
            )


def prepared() -> list[Prepared]:
    """The prepared federations in the cache, by name."""
    place = cache_dir() / "federations"
    folders = sorted(path for path in place.glob("*") if path.is_dir())
    return [
        Prepared(name=path.name, folder=path, own=_is_own(_manifest(path)))
        for path in folders
        if not path.name.startswith(".")
    ]


def _is_own(manifest: Mapping[str, Any]) -> bool:
    """Whether the folder is a copy, also one that an earlier version made."""
    recipe = manifest.get("recipe", manifest)
    return isinstance(recipe, dict) and "files" in recipe


def remove(name: str, fetched: Mapping[str, Path]) -> Path:
    """Remove a prepared federation or a fetched asset from the cache; return the removed folder.

    Args:
        fetched: the folder of each asset by its name.

    Raises:
        ConfideError: ``assets.unknown`` or ``cache.write``.
    """
    there = {name: folder for name, folder in fetched.items() if folder.is_dir()}
    there |= {one.name: one.folder for one in prepared()}
    if name not in there:
        raise ConfideError(
            "assets.unknown",
            f"Nothing in the cache is called {name!r:.100}.",
            nearest(name, there) if there else "There is nothing to remove.",
        )
    folder = there[name]
    try:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    except OSError as error:
        raise ConfideError(
            "cache.write",
            f"{folder} cannot be removed: {error.strerror or type(error).__name__}.",
            "Check who owns it.",
        ) from None
    return folder


def _recipe(files: Files, holders: int, seed: int) -> dict[str, Any]:
    return {
        "holders": holders,
        "seed": seed,
        "files": [_digest(files.train), _digest(files.val)],
        "columns": [files.text, files.target, files.person],
    }


def _digest(path: Path) -> str:
    try:
        state = path.stat()
        return _digest_of(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return hashlib.sha256(content_of(path)).hexdigest()  # which says why it cannot be read


@lru_cache(maxsize=8)
def _digest_of(path: Path, _changed: int, _size: int) -> str:
    """Read once while the file stays as it is."""
    return sha256_of(path)


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path, files: Files) -> list[Record]:
    target, person = files.target or None, files.person or None
    return read_records(
        path, text=files.text, target=target, person=person, lists=True, own_screen=True
    )


def _shares(files: Files, train: list[Record], holders: int, seed: int) -> list[list[Record]]:
    """The records of each holder; whole persons if the text has a column of persons."""
    units = group_units(train, "person" if files.person else "record")
    if holders > len(units):
        raise ConfideError(
            "data.partition",
            f"holders = {holders}, but {files.train} holds {len(units)} units only.",
            "Use fewer holders, or more text.",
        )
    units.sort(key=lambda unit: hashlib.sha256(f"split:{seed}:{unit[0]}".encode()).digest())
    dealt = [sorted(i for unit in units[n::holders] for i in unit) for n in range(holders)]
    return [[train[i] for i in mine] for mine in dealt]


def _write_all(
    folder: Path,
    files: Files,
    shares: Sequence[Sequence[Record]],
    val: Sequence[Record],
    recipe: Mapping[str, Any],
) -> None:
    told = {
        "holders": len(shares),
        "of": [str(path.resolve()) for path in (files.train, files.val)],
        "recipe": recipe,
    }
    with staged(folder, private=True) as new:
        _write(new / "public.jsonl", val)
        for number, mine in enumerate(shares):
            _write(new / f"holder-{number:02d}.jsonl", mine)
        _write_text(new / _MANIFEST, json.dumps(told, indent=1) + "\n")


def _write(path: Path, records: Sequence[Record]) -> None:
    rows = []
    for r in records:
        talk = [message._asdict() for message in r.messages]
        row = {"text": talk or r.text, "label": r.cell, "person": r.person}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    _write_text(path, "".join(rows))


def _write_text(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
