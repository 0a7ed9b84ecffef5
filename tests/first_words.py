"""How long until a mistake is told: ``python tests/first_words.py`` prints the table of
docs/benchmarks.md (``make first-words``).

Ten mistakes that ended a run only after everything had started (FAULTS F20 and M6), each in a
folder made on the spot. The clock runs from the start of the command to its error's first line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 150
LABELS = ["negative", "positive"]


@dataclass(frozen=True)
class Slip:
    """What is wrong, the code by which it is told, and what differs from the sound command."""

    what: str
    code: str
    changes: tuple[str, ...] = ()
    file: str = "sound.json"


SLIPS = (
    Slip("a model path that leads nowhere", "model.missing", ("model.name=/nowhere/base",)),
    Slip("a model that is not here", "model.missing", ("model.name=google-t5/t5-smal",)),
    Slip("a model folder without tokenizer", "model.tokenizer", ("model.name=mute",)),
    Slip("weights that a copy cut off", "model.missing", ("model.name=torn",)),
    Slip("targets that match nothing", "settings.range", ("lora.targets=quary",)),
    Slip("more layers than there are", "settings.range", ("lora.layers=9",)),
    Slip("a model of another kind than the task", "task.model", (), "kind.json"),
    Slip("an unknown label in a holder's text", "data.unfit", (), "label.json"),
    Slip("an unknown label in the public text", "data.unfit", (), "public.json"),
    Slip("a run folder that cannot be made", "run.folder", ("run.out=text.jsonl/runs",)),
)  # fmt: skip


def furnish(folder: Path) -> None:
    """A small model, good and broken, texts, and task descriptions of them."""
    for name in ("model", "mute", "torn"):
        tiny.save_model(folder / name)
    for file in (folder / "mute").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    rows = tiny.rows(60, seed=1)
    tiny.write_jsonl(folder / "text.jsonl", rows)
    tiny.write_jsonl(folder / "val.jsonl", tiny.rows(20, seed=2))
    tiny.write_jsonl(folder / "wrong.jsonl", [*tiny.rows(30, 3), rows[0] | {"label": "neutral"}])
    files = {"sound": ("text", "val"), "label": ("wrong", "val"), "public": ("text", "wrong")}
    for name, (train, val) in files.items():
        data = {"train": f"{train}.jsonl", "val": f"{val}.jsonl"}
        told = {"task": "text-classification", "model": "model", "labels": LABELS, "data": data}
        config = {"train.max-length": 32, "lora.rank": 2}
        described = {**told, "holders": 2, "config": config}
        (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")
    kind = {"task": "summarization", "model": "model", "data": described["data"], "holders": 2}
    (folder / "kind.json").write_text(json.dumps(kind), encoding="utf-8")


def arguments(command: str, slip: Slip) -> list[str]:
    """Of confide, for a slip."""
    return [command, slip.file, *(part for one in slip.changes for part in ("--set", one))]


def seconds(command: str, slip: Slip, folder: Path) -> tuple[float, str]:
    """Until the error is told, and its code; all that was started has ended."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "CONFIDE_CACHE": str(folder / "cache"),
        "COLUMNS": "80",
    }
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "confide", *arguments(command, slip)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        line = next((one for one in process.stderr if one.startswith("error [")), "")
        taken = time.monotonic() - started
        process.stderr.read()
        try:
            process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return taken, line.removeprefix("error [").partition("]")[0]


def main() -> None:
    """Print the table; commands may be named."""
    commands = sys.argv[1:] or ["simulate", "doctor"]
    print("| mistake | code |", " | ".join(f"`{one}`, s" for one in commands), "|")
    print("|---|---|" + "---|" * len(commands))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        furnish(folder)
        for slip in SLIPS:
            told = [seconds(command, slip, folder) for command in commands]
            codes = " ".join(dict.fromkeys(f"`{code}`" for _, code in told))
            taken = " | ".join(f"{one:.1f}" for one, _ in told)
            print(f"| {slip.what} | {codes} | {taken} |", flush=True)


if __name__ == "__main__":
    main()
