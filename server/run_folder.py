"""The run folder: the one place where a run leaves everything that it leaves.

Created before anything can go wrong, so that a run that fails leaves its reason. Lines of
``metrics.jsonl`` are appended and flushed, files are replaced atomically, and no other module of
the server writes to disk.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError

_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class RunFolder:
    """``<out>/<time>-<name>/``; its name is the run's id, and survives a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    @classmethod
    def create(cls, out: str, name: str) -> RunFolder:
        """A new folder.

        Raises:
            ConfideError: ``run.folder`` when it cannot be made.
        """
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        base = Path(out).expanduser().resolve()
        safe = _NAME.sub("-", name).strip("-.")[:60] or "run"
        for attempt in range(100):
            path = base / (f"{stamp}-{safe}" + (f"-{attempt}" if attempt else ""))
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfideError(
                    "run.folder", f"{path} cannot be made ({error.strerror}).", "Set run.out."
                ) from None
            return cls(path)
        raise ConfideError("run.folder", f"{base} holds 100 runs of this second.")

    @classmethod
    def reopen(cls, folder: str) -> RunFolder:
        """The folder of a run to be resumed."""
        path = Path(folder).expanduser().resolve()
        if not (path / "checkpoint").is_dir():
            raise ConfideError(
                "run.resume", f"{path} has no checkpoint.", "Name the folder of a run that trained."
            )
        return cls(path)

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to metrics.jsonl."""
        line = json.dumps({"event": event, **fields})
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write(self, name: str, data: bytes) -> None:
        """Replace a file durably: written beside it, synced, renamed."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def write_config(self, flat: Mapping[str, Any]) -> None:
        """config.toml: the settings as nested tables."""
        tables: dict[str, list[str]] = {}
        for key, value in flat.items():
            table, _, name = key.partition(".")
            # JSON's strings, numbers and truth values are TOML's too.
            tables.setdefault(table, []).append(f"{name} = {json.dumps(value)}")
        text = "\n\n".join(f"[{table}]\n" + "\n".join(rows) for table, rows in tables.items())
        self.write("config.toml", (text + "\n").encode())


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
