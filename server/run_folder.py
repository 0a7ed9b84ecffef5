"""The run folder: the one place where a run leaves everything that it leaves.

Created before anything can go wrong, so that a run that fails leaves its reason. A line of
``metrics.jsonl`` is there whole or not at all, files are replaced atomically, and a full disk is
an error that a person can act on.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from ..common.errors import ConfideError
from ..common.paths import replace_durably
from ..common.settings import Settings, from_flat

METRICS = "metrics.jsonl"
CONFIG = "config.toml"
PUBLIC_FILE = "public.jsonl"  # the coordinator's own text, in the folder of data.path
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
# What is looked at while a run is watched or resumed; the report reads more, and looks itself.
_TOLD: Mapping[str, Mapping[str, type]] = {
    "round": {"round": int},
    "end": {"status": str, "code": str},
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunFolder:
    """``<out>/<time>-<name>/``; its name is the run's id, and survives a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    @classmethod
    def create(cls, out: str, name: str) -> RunFolder:
        """A new folder.

        Raises:
            ConfideError: ``run.folder`` or ``disk.full`` when it cannot be made.
        """
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        base = Path(out).expanduser().resolve()
        safe = _NAME.sub("-", name).strip("-.")[:60] or "run"
        for attempt in range(100):
            path = base / (f"{stamp}-{safe}" + (f"-{attempt}" if attempt else ""))
            with translated(path):
                base.mkdir(parents=True, exist_ok=True)
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
            return cls(path)
        raise ConfideError("run.folder", f"{base} holds 100 runs of this second.", "Try again.")

    @classmethod
    def reopen(cls, folder: str) -> RunFolder:
        """The folder of a run to be resumed; what a crash left half written is cut off."""
        path = Path(folder).expanduser().resolve()
        if not (path / "checkpoint").is_dir():
            raise ConfideError(
                "run.resume", f"{path} has no checkpoint.", "Name the folder of a run that trained."
            )
        metrics = path / METRICS
        if metrics.is_file():
            with translated(metrics):
                os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
        return cls(path)

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to metrics.jsonl, whole or not at all."""
        line = json.dumps({"event": event, **fields}) + "\n"
        path = self.path / METRICS
        with translated(path):
            _append(path, line.encode())

    def write(self, name: str, data: bytes) -> None:
        """Replace a file durably: written beside it, synced, renamed."""
        path = self.path / name
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, data)

    def write_config(self, flat: Mapping[str, Any]) -> None:
        """config.toml: the settings as nested tables."""
        self.write(CONFIG, tomli_w.dumps(by_room(flat)).encode())


def by_room(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flat settings as TOML has them: a table for each room."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far.

    Raises:
        ConfideError: ``run.metrics`` for a file that no run wrote.
    """
    path = folder / METRICS
    try:
        return [_event(line) for line in _lines_of(path) if line.endswith(b"\n")]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfideError(
            "run.metrics", f"{path} is damaged.", "Restore it, or start a new run."
        ) from None


def _event(line: bytes) -> dict[str, Any]:
    """A line that a run wrote, as far as it is looked at while one is watched or resumed."""
    event: dict[str, Any] = json.loads(line)
    for name, kind in {"event": str, **_TOLD.get(event["event"], {})}.items():
        if type(event[name]) is not kind:
            raise TypeError(name)
    return event


def _lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def folders_in(out: Path) -> set[Path]:
    """The run folders in ``out``; none when it is not there."""
    return {path.resolve() for path in out.iterdir() if path.is_dir()} if out.is_dir() else set()


def run_settings(folder: Path) -> Settings:
    """The settings of a run, from its config.toml.

    Raises:
        ConfideError: ``run.missing`` or ``run.config``.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfideError("run.missing", f"{folder} is no run folder.", "Name a folder in runs/.")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        flat = {f"{t}.{k}": v for t, values in tables.items() for k, v in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfideError(
            "run.config", f"{path} cannot be read ({type(error).__name__}).", "Restore the file."
        ) from None
    return from_flat(flat)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Failures of the disk as what a person can act on.

    Raises:
        ConfideError: ``disk.full`` or ``run.folder``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ConfideError(
                "disk.full",
                f"The disk is full; {path} was not written.",
                "Make room and go on with run.resume = <the run's folder>, or set run.out.",
            ) from None
        raise ConfideError(
            "run.folder",
            f"{path} cannot be written ({error.strerror}).",
            "Set run.out to a folder that can be written.",
        ) from None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size, rest = os.fstat(handle).st_size, memoryview(data)
        try:
            while rest:  # a disk that fills up takes a part and says nothing
                rest = rest[os.write(handle, rest) :]
        except BaseException:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
