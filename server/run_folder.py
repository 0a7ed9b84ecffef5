"""The run folder: the one place where a run writes its results.

Created before anything can go wrong, so that a run that fails leaves its reason. A line of
``metrics.jsonl`` is there whole or not at all, files are replaced atomically, and a full disk is
an error that a person can act on. One process at a time writes a run (``RunFolder.held``).

The name of a run is fixed before it begins, by whoever starts it (``run.id``). Its first and last
events say for which command they were written, so that a command that continues a run does not
take another command's event for its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from ..common.errors import ConfideError
from ..common.machine.paths import replace_durably, resumed_run, runs_folder
from ..common.settings import COORDINATORS_OWN, Settings, from_flat

if TYPE_CHECKING:
    from ..common.wire.messages import TrainRequest

METRICS = "metrics.jsonl"
CONFIG = "config.toml"
LIVE = "live.json"  # who of a round's holders has answered so far
PUBLIC_FILE = "public.jsonl"  # the coordinator's own text, in the folder of data.path
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
# What is looked at while a run is watched or resumed; the report reads more, and looks itself.
_TOLD: Mapping[str, Mapping[str, type]] = {
    "round": {"round": int},
    "end": {"status": str, "code": str},
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
TRAINING, DONE = "training", "done"  # anything else is a refusal's code

Live = Callable[["TrainRequest", Mapping[int, str]], None]


class RunFolder:
    """``<out>/<time>-<name>/``; its name is the run's id, and survives a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.listener: Callable[[dict[str, Any]], None] = lambda _: None  # hears of each event

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> RunFolder:
        """The folder of the run that a flat config describes: the resumed one's as it is, else a
        new one, by the name that ``run.id`` gives it or one of its own. It needs no settings that
        are valid, so that refused ones can leave their reason there.

        Raises:
            ConfideError: as ``reopen``, ``named`` and ``create``.
        """
        if config.get("run.resume"):
            return cls.reopen(from_flat(config))
        out, named = str(runs_folder(config)), str(config.get("run.id", ""))
        return (
            cls.named(out, named) if named else cls.create(out, str(config.get("run.name", "run")))
        )

    @classmethod
    def create(cls, out: str, name: str) -> RunFolder:
        """A new folder, named by the time in UTC.

        Raises:
            ConfideError: ``run.folder`` or ``disk.full`` when it cannot be made.
        """
        base = Path(out).expanduser().resolve()
        first = _stamped(name)
        for attempt in range(100):
            path = base / (f"{first}-{attempt}" if attempt else first)
            with translated(path):
                base.mkdir(parents=True, exist_ok=True)
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
            return cls(path)
        raise ConfideError("run.folder", f"{base} holds 100 runs of this second.", "Try again.")

    @classmethod
    def named(cls, out: str, run_id: str) -> RunFolder:
        """The folder of a run that was given its name before; it is made if it is not there.

        Raises:
            ConfideError: ``run.id`` for a name that is none, or of a run that began already;
                ``run.folder`` or ``disk.full``.
        """
        if not run_id or _NAME.search(run_id) or run_id.strip("-.") != run_id:
            raise ConfideError(
                "run.id",
                f"run.id = {run_id!r:.140} is not a folder's name.",
                "The commands set it; leave it empty.",
            )
        path = Path(out).expanduser().resolve() / run_id
        if (path / METRICS).exists():
            raise ConfideError(
                "run.id",
                f"{path} is a run already.",
                "Leave run.id empty, or continue that run with run.resume.",
            )
        with translated(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def reopen(cls, settings: Settings) -> RunFolder:
        """The folder of the run that ``run.resume`` names; nothing is written.

        Raises:
            ConfideError: ``run.resume`` for a folder without a checkpoint, or of a run with other
                settings.
        """
        path = resumed_run(settings.to_flat()) or Path()
        if not (path / "checkpoint").is_dir():
            raise ConfideError(
                "run.resume", f"{path} has no checkpoint.", "Name the folder of a run that trained."
            )
        asked, then = settings.to_flat(), run_settings(path).to_flat()
        changed = [key for key in then if key not in COORDINATORS_OWN and asked[key] != then[key]]
        if changed:
            raise ConfideError(
                "run.resume",
                f"{changed[0]} = {asked[changed[0]]!r}, but the run to be resumed has"
                f" {then[changed[0]]!r}; its noise and its report are made for that.",
                "Resume with the settings in the run's config.toml, or start a new run.",
            )
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one that writes this run. What a crash left half written is cut off.

        Raises:
            ConfideError: ``run.busy`` when another process is.
        """
        handle = os.open(self.path, os.O_RDONLY)  # the folder itself: a lock leaves no file behind
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfideError(
                    "run.busy",
                    f"Another process is working on the run in {self.path}.",
                    "Wait until it ends, or stop it.",
                ) from None
            metrics = self.path / METRICS
            if metrics.is_file():
                with translated(metrics):
                    os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)
            yield
        finally:
            os.close(handle)

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to metrics.jsonl, whole or not at all."""
        line = json.dumps({"event": event, **fields}) + "\n"
        path = self.path / METRICS
        with translated(path):
            _append(path, line.encode())
        self.listener(json.loads(line))

    def write(self, name: str, data: bytes) -> None:
        """Replace a file durably: written beside it, synced, renamed."""
        path = self.path / name
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, data)

    def write_config(self, flat: Mapping[str, Any]) -> None:
        """config.toml: the settings as nested tables."""
        self.write(CONFIG, tomli_w.dumps(by_room(flat)).encode())


class Tail:
    """The events that a run's folder gets for one command, handed on as they are written.

    Args:
        progress: hears each of them once.
        from_now: whether those that are there already were heard before.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        progress: Callable[[dict[str, Any]], None],
        *,
        from_now: bool = False,
    ) -> None:
        self.folder, self.command, self._progress = folder, command, progress
        self.events = self._read() if from_now else []

    def look(self) -> None:
        """Hand on what is new."""
        events = self._read()
        new, self.events = events[len(self.events) :], events
        for event in new:
            self._progress(event)

    @property
    def end(self) -> dict[str, Any]:
        """The last event, if that is the end; empty before."""
        last = self.events[-1] if self.events else {}
        return last if last.get("event") == "end" else {}

    def _read(self) -> list[dict[str, Any]]:
        return part_of(read_events(self.folder), self.command)


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
    """Check a line of a run, as far as watching or resuming a run reads it."""
    event: dict[str, Any] = json.loads(line)
    for name, kind in {"event": str, **_TOLD.get(event["event"], {})}.items():
        if type(event[name]) is not kind:
            raise TypeError(name)
    return event


def _lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def new_id(name: str) -> str:
    """A name for a run that begins elsewhere; no other caller gets it in the same second."""
    return f"{_stamped(name)}-{secrets.token_hex(3)}"


def _stamped(name: str) -> str:
    safe = _NAME.sub("-", name).strip("-.")[:60].strip("-.") or "run"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{safe}"


def part_of(events: Sequence[Mapping[str, Any]], command: str) -> list[dict[str, Any]]:
    """The events of the part of a run that one command started: from the first that was written
    for it (``run.id``) to the last before another command's."""
    part: list[dict[str, Any]] = []
    for event in events:
        named = event.get("command")
        if part and named not in (None, command):
            break
        if part or named == command:
            part.append(dict(event))
    return part


def run_settings(folder: Path) -> Settings:
    """The settings of a run, from its config.toml.

    Raises:
        ConfideError: ``run.missing`` or ``run.config``.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfideError(
            "run.missing", f"{folder} is not a run folder.", "Name a folder in runs/."
        )
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
    """Turn failures of the disk into errors that a person can act on.

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
                "Make room and continue with run.resume = <the run's folder>, or set run.out.",
            ) from None
        raise ConfideError(
            "run.folder",
            f"{path} cannot be written ({error.strerror}).",
            "Set run.out to a folder that can be written.",
        ) from None


def nowhere(request: TrainRequest, states: Mapping[int, str]) -> None:
    """Does nothing: for runs that nobody watches."""


def live_file(config: Mapping[str, Any]) -> Live:
    """Writes the states of a round's nodes beside the run's other files, for whoever watches it; no
    report and no resume reads it, and a disk that refuses it ends no round."""
    out = runs_folder(config)

    def write(request: TrainRequest, states: Mapping[int, str]) -> None:
        row = {
            "round": request.round,
            "nodes": {str(node): state for node, state in states.items()},
        }
        with suppress(ConfideError):
            RunFolder(out / request.run).write(LIVE, json.dumps(row).encode())

    return write


def read_live(folder: Path) -> tuple[int, dict[int, str]]:
    """The round and the states of its nodes; round 0 and none before the first."""
    try:
        row = json.loads((folder / LIVE).read_text(encoding="utf-8"))
        return int(row["round"]), {int(node): str(state) for node, state in row["nodes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, {}


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
