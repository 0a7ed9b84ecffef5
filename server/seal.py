"""What a run's last event says of everything before it, so that a change is noticed.

The event of a run's end has the number and the SHA-256 of all earlier lines of metrics.jsonl, and
the SHA-256 of config.toml and of every file of the adapter but its card, which is written from the
report. A line that is cut off, left out or rewritten, another adapter or other settings then differ
from it. It is no signature: whoever rewrites the whole folder can seal it anew, and the holders'
ledgers are what he cannot rewrite.

| folder | what ``broken`` says |
|---|---|
| as the run left it | nothing |
| a run that was killed, or is still going on | None: there is no seal |
| lines behind the end | that they are there |
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from .run_folder import CONFIG, METRICS

CARD = "README.md"


def seal(folder: Path) -> dict[str, Any]:
    """What the next event may say of all that is there now."""
    return _seal(folder, _bytes(folder / METRICS))


def broken(folder: Path) -> list[str] | None:
    """Where the folder is not what its last event says; None where that one has no seal."""
    data = _bytes(folder / METRICS)
    before, last = _split(data)
    told = _event(last).get("seal")
    if not isinstance(told, dict):
        sealed = any("seal" in _event(line) for line in data.splitlines()[-3:])
        return ["metrics.jsonl goes on after the end of the run"] if sealed else None
    found = _seal(folder, before)
    problems = []
    if (told.get("lines"), told.get("metrics")) != (found["lines"], found["metrics"]):
        problems.append(
            f"metrics.jsonl has {found['lines']} lines before its end, of which the end says"
            f" otherwise ({told.get('lines')} lines, another digest)"
        )
    if told.get("config") != found["config"]:
        problems.append("config.toml is not that of the run")
    kept, now = told.get("adapter"), found["adapter"]
    names = sorted({*(kept if isinstance(kept, dict) else {}), *now})
    problems += [
        f"adapter/{name} is not what the run left"
        for name in names
        if not isinstance(kept, dict) or kept.get(name) != now.get(name)
    ]
    return problems


def _seal(folder: Path, metrics: bytes) -> dict[str, Any]:
    files = sorted(path for path in (folder / "adapter").rglob("*") if path.is_file())
    root = folder / "adapter"
    return {
        "lines": metrics.count(b"\n"),
        "metrics": sha256(metrics).hexdigest(),
        "config": sha256(_bytes(folder / CONFIG)).hexdigest(),
        "adapter": {
            path.relative_to(root).as_posix(): _digest(path)
            for path in files
            if path != root / CARD
        },
    }


def _digest(path: Path) -> str:
    whole = sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            whole.update(block)
    return whole.hexdigest()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _split(data: bytes) -> tuple[bytes, bytes]:
    """All lines but the last, and the last."""
    end = data.rstrip(b"\n").rfind(b"\n") + 1
    return data[:end], data[end:]


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
