"""policy.toml: read strictly, and written with a comment above every limit.

What is written parses to exactly the defaults. Nothing here looks at a task.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.settings import kind_of
from .policy import SIMULATION, Policy

FILE_NAME = "policy.toml"
_DEFAULT = Policy()
_MODEL_ENTRY = re.compile(r"[^@\s](?:[^@]*[^@\s])?(?:@sha256:[0-9a-f]{64})?")

_HEAD = """\
# What this holder takes part in. A run that asks for more than these limits allow is refused
# before any text is read; nothing is ever adjusted to fit. A limit that is not listed here has
# the value that is shown. Changes count from the next task on.
"""


def load_policy(path: Path, otherwise: Policy = _DEFAULT) -> Policy:
    """Read a policy.

    Args:
        otherwise: the limits that the file does not name.

    Raises:
        ConfideError: ``policy.missing``, ``policy.format`` or ``policy.unknown-key``.
    """
    known = {key_of(f): f for f in fields(Policy)}
    values: dict[str, Any] = {}
    for key, value in _table(path).items():
        if key not in known:
            raise ConfideError(
                "policy.unknown-key", f"{path}: {key!r} is no limit.", nearest(key, known)
            )
        values[known[key].name] = _checked(path, key, value, known[key])
    return replace(otherwise, **values)


def simulated_policy(data: Path) -> Policy:
    """Of a simulated holder, which may do everything but what ``holder-00.policy.toml`` beside its
    ``holder-00.jsonl`` limits.

    Raises:
        ConfideError: as ``load_policy``.
    """
    path = data.with_suffix(".policy.toml")
    return load_policy(path, SIMULATION) if path.is_file() else SIMULATION


def policy_text() -> str:
    """The defaults as a TOML file for an administrator to edit."""
    parts = [_HEAD]
    for f in fields(Policy):
        comment = "".join(f"# {line}\n" for line in f.metadata["says"].splitlines())
        parts.append(f"{comment}{key_of(f)} = {_toml(f.default)}\n")
    return "\n".join(parts)


def policy_table(policy: Policy) -> dict[str, Any]:
    """Every limit by its name in the file."""
    return {key_of(f): getattr(policy, f.name) for f in fields(Policy)}


def write_policy(folder: Path) -> Path:
    """Write ``policy.toml`` into a folder, which is made if it is not there.

    Raises:
        ConfideError: ``policy.exists`` when there is one already: it is never overwritten;
            ``policy.write`` when the disk refuses.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(policy_text())
    except FileExistsError as error:
        if not path.exists():
            raise _unwritable(path, error) from None  # the folder is a file
        raise ConfideError(
            "policy.exists",
            f"{path} is there already, and is never overwritten.",
            "Edit it, or name another folder.",
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


def key_of(limit: Field[Any]) -> str:
    """The name of a limit in the file."""
    return limit.name.replace("_", "-")


def _unwritable(path: Path, error: OSError) -> ConfideError:
    return ConfideError(
        "policy.write",
        f"{path} cannot be written: {error.strerror}.",
        "Name a folder that can be written.",
    )


def _table(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfideError(
            "policy.missing",
            f"The policy {path} cannot be read: {error.strerror}.",
            "Check the path; `confide client init` writes a policy with comments.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfideError(
            "policy.format",
            f"{path} is not TOML: {error}.",
            "Write one `limit = value` a line; `confide client init` shows how.",
        ) from None


def _checked(path: Path, key: str, value: Any, limit: Field[Any]) -> Any:
    default, rule = limit.default, limit.metadata
    if isinstance(default, tuple):
        return _checked_words(path, key, value, limit)
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not type(default):
        _refuse(
            f"{path}: {key} = {value!r:.100} is {kind_of(value)}, but must be {kind_of(default)}.",
            f"Write for example {key} = {_toml(default)}.",
        )
    # Not a number, and an infinite one, are in no range.
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        _refuse(
            f"{path}: {key} = {value!r:.100} is outside [{rule['low']:g}, {rule['high']:g}].",
            f"The default is {_toml(default)}.",
        )
    return value


def _checked_words(path: Path, key: str, value: Any, limit: Field[Any]) -> tuple[str, ...]:
    known = limit.metadata["known"]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        _refuse(
            f"{path}: {key} = {value!r:.100} is not a list of texts.",
            f"Write for example {key} = {_toml(limit.default or ('a', 'b'))}.",
        )
    for word in value:
        if known and word not in known:
            _refuse(f"{path}: {key} contains {word!r:.100}.", nearest(word, known))
        if key == "base-models" and not _MODEL_ENTRY.fullmatch(word):
            _refuse(
                f"{path}: {key} contains {word!r:.100}, which is no name or folder.",
                "Write name, or name@sha256: followed by 64 hexadecimal digits.",
            )
    return tuple(value)


def _toml(value: Any) -> str:
    """A default as TOML writes it; texts and lists of texts look as in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _refuse(message: str, hint: str) -> NoReturn:
    raise ConfideError("policy.format", message, hint)
