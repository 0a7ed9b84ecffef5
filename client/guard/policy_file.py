"""policy.toml: read strictly, and written with a comment above every limit.

What is written parses to exactly the defaults, with the contract (``[data]``) that it was given.
Nothing here looks at a task, or at a text.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from ...common.errors import ConfideError, nearest
from ...common.settings.rule import kind_of
from .contract import Contract, check_contract
from .policy import SIMULATION, Policy

FILE_NAME = "policy.toml"
_DEFAULT = Policy()
_DATA = "data"  # the table of the contract
_ROSTER = re.compile(r"(sha256:[0-9a-f]{64})?")
_MODEL_ENTRY = re.compile(r"[^@\s](?:[^@]*[^@\s])?(?:@sha256:[0-9a-f]{64})?")

_HEAD = """\
# What this holder takes part in. A run that asks for more than these limits allow is refused
# before any text is read; nothing is ever adjusted to fit. A limit that is not listed here has
# the value that is shown. Changes count from the next task on.
"""
_DATA_HEAD = """\
# What your text is, said once by you, and never read off the text when a run asks: a run that does
# not fit is refused by what stands here; a record that does not fit is not used, and nobody but you
# is told (`confide client check-data FILE --policy policy.toml` counts them).
# `confide client init DIR --data FILE` proposes the values; check them, and take out what runs
# shall not learn. What stands here can be told to a coordinator by its own requests.
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
                "policy.unknown-key", f"{path}: {key!r} is not a limit.", nearest(key, known)
            )
        if key == _DATA:
            values[key] = _contract(path, value)
        else:
            values[known[key].name] = _checked(path, key, value, known[key])
    return replace(otherwise, **values)


def _contract(path: Path, table: Any) -> Contract:
    """``[data]``, read as strictly as the limits."""
    known = {key_of(f): f for f in fields(Contract)}
    if not isinstance(table, dict):
        _refuse(
            f"{path}: data = {table!r:.100} is not a table.", "Write [data], and its keys below."
        )
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfideError(
                "policy.unknown-key",
                f"{path}: {key!r} is not a key of [data].",
                nearest(key, known),
            )
        values[key] = _checked(path, f"data.{key}", value, known[key])
    contract = Contract(**values)
    check_contract(contract)
    return contract


def simulated_policy(data: Path) -> Policy:
    """Of a simulated holder, which may do everything but what ``holder-00.policy.toml`` beside its
    ``holder-00.jsonl`` limits.

    Raises:
        ConfideError: as ``load_policy``.
    """
    path = data.with_suffix(".policy.toml")
    return load_policy(path, SIMULATION) if path.is_file() else SIMULATION


def policy_text(contract: Contract | None = None) -> str:
    """The defaults as a TOML file for an administrator to edit, with what the text is; without it
    the table stands there to be filled in."""
    limits = [_commented(f, f.default) for f in fields(Policy) if f.name != _DATA]
    table = (
        _DATA_HEAD
        + "[data]\n"
        + "\n".join(
            _commented(f, getattr(contract or Contract(), f.name)) for f in fields(Contract)
        )
    )
    if contract is None:  # a table that says nothing yet would be a contract that refuses all
        table = "".join(f"# {line}\n" if line else "#\n" for line in table.splitlines())
    return "\n".join([_HEAD, *limits, table])


def _commented(limit: Field[Any], value: Any) -> str:
    comment = "".join(f"# {line}\n" for line in limit.metadata["says"].splitlines())
    return comment + tomli_w.dumps({key_of(limit): value})


def policy_table(policy: Policy) -> dict[str, Any]:
    """Every limit by its name in the file, and the contract's keys behind ``data.``."""
    table = {key_of(f): getattr(policy, f.name) for f in fields(Policy) if f.name != _DATA}
    said = asdict(policy.data) if policy.data else {}
    return table | {f"{_DATA}.{key}": value for key, value in said.items()}


def write_policy(folder: Path, contract: Contract | None = None) -> Path:
    """Write ``policy.toml`` into a folder, which is made if it is not there.

    Raises:
        ConfideError: ``policy.exists`` when there is one already: it is never overwritten;
            ``policy.write`` when the disk refuses.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(policy_text(contract))
    except FileExistsError as error:
        if not path.exists():
            raise _unwritable(path, error) from None  # the folder is a file
        raise ConfideError(
            "policy.exists",
            f"{path} exists already, and is never overwritten.",
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
            f"Write for example {_line(key, default)}.",
        )
    if rule.get("known") and value not in rule["known"]:
        _refuse(f"{path}: {key} = {value!r:.100}.", nearest(str(value), rule["known"]))
    if key == "roster" and not _ROSTER.fullmatch(str(value)):
        _refuse(
            f"{path}: {key} = {value!r:.100} is no digest of a roster.",
            "Write the line that `confide client roster FILE` shows: sha256: and 64 lower-case"
            " digits.",
        )
    # Not a number, and an infinite one, are in no range.
    if "low" in rule and not rule["low"] <= value <= rule["high"]:
        _refuse(
            f"{path}: {key} = {value!r:.100} is outside [{rule['low']:g}, {rule['high']:g}].",
            f"The default is {_line(key, default)}.",
        )
    return value


def _checked_words(path: Path, key: str, value: Any, limit: Field[Any]) -> tuple[str, ...]:
    known = limit.metadata["known"]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        _refuse(
            f"{path}: {key} = {value!r:.100} is not a list of texts.",
            f"Write for example {_line(key, limit.default or ('a', 'b'))}.",
        )
    for word in value:
        if known and word not in known:
            _refuse(f"{path}: {key} contains {word!r:.100}.", nearest(word, known))
        if key == "base-models" and not _MODEL_ENTRY.fullmatch(word):
            _refuse(
                f"{path}: {key} contains {word!r:.100}, which is neither a name nor a folder.",
                "Write name, or name@sha256: followed by 64 hexadecimal digits.",
            )
    return tuple(value)


def _line(key: str, default: Any) -> str:
    """A default of ours as one line of the file."""
    line = " ".join(tomli_w.dumps({key.rpartition(".")[2]: default}).split())
    return line.replace("[ ", "[").replace(", ]", "]")


def _refuse(message: str, hint: str) -> NoReturn:
    raise ConfideError("policy.format", message, hint)
