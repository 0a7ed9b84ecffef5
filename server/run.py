"""A run from settings to outcome: folder, model, rounds, adapter, card, report.

The same function serves the ServerApp, tests and yardsticks; they differ in the transport.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.adapter import save_adapter
from ..common.errors import ConfideError
from ..common.models import LoadedModel, load_model
from ..common.paths import local_or_cached
from ..common.settings import Settings, from_flat
from .card import write_card
from .evaluation import Evaluator
from .report.build import write_report
from .rounds import Rounds, final_adapter
from .run_folder import RunFolder, now
from .transport import Transport, wait_for_nodes

logger = logging.getLogger("confide.server")

_SOFTWARE = ("flwr", "torch", "transformers", "opacus", "peft", "dp-accounting")


def run(config: Mapping[str, Any], transport: Transport) -> RunFolder:
    """Do the run that ``config`` (flat keys) describes.

    Raises:
        ConfideError: whatever makes the run impossible; the folder then says so, too.
    """
    folder = _open_folder(config)
    started = time.monotonic()
    try:
        settings = from_flat(config)
        _train(settings, transport, folder)
    except ConfideError as error:
        _end(folder, "failed", error.code, started)
        raise
    except BaseException as error:
        code = "run.stopped" if isinstance(error, KeyboardInterrupt) else "run.failed"
        _end(folder, "stopped" if code == "run.stopped" else "failed", code, started)
        raise
    _end(folder, "finished", "", started)
    report = write_report(folder.path)
    write_card(folder.path)
    _say_goodbye(folder, report)
    return folder


def _open_folder(config: Mapping[str, Any]) -> RunFolder:
    """The folder comes first, so that even refused settings leave their reason there."""
    resume = config.get("run.resume", "")
    if resume:
        return RunFolder.reopen(str(resume))
    return RunFolder.create(str(config.get("run.out", "runs")), str(config.get("run.name", "run")))


def _train(settings: Settings, transport: Transport, folder: RunFolder) -> None:
    data = local_or_cached(settings.data.path, "federations") if settings.data.path else None
    if data is None:
        raise ConfideError(
            "data.missing-file",
            f"data.path = {settings.data.path!r} is neither a folder nor a prepared federation.",
            "Run `confide assets fetch`, or name a folder with public.jsonl.",
        )
    loaded = load_model(settings)
    evaluator = Evaluator(loaded, settings, data)
    nodes = wait_for_nodes(transport, _wanted(settings, data), settings.round.timeout)
    if settings.run.resume:
        folder.event("resume", time=now())
    else:
        folder.write_config(settings.to_flat())
        folder.event("start", **_start(settings, loaded, folder, len(nodes)))
    Rounds(settings, loaded, transport, folder, evaluator).run(nodes)
    final_adapter(folder, loaded)
    save_adapter(loaded.model, folder.path / "adapter", settings.model.name)
    loaded.tokenizer.save_pretrained(str(folder.path / "adapter"))


def _wanted(settings: Settings, data: Path) -> int:
    """How many holders must be there: those asked for, else all of a prepared federation."""
    manifest = data / "federation.json"
    least = max(settings.round.holders, settings.round.min_holders)
    if settings.round.holders or not manifest.is_file():
        return least
    return max(least, int(json.loads(manifest.read_text(encoding="utf-8"))["holders"]))


def _start(
    settings: Settings, loaded: LoadedModel, folder: RunFolder, holders: int
) -> dict[str, Any]:
    return {
        "time": now(),
        "run": folder.id,
        "model": {
            "name": settings.model.name,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "trained": loaded.schema.trained_size,
            "sha256": loaded.sha256,
        },
        "federation": {"holders": holders},
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE}
        | {"confide": _version()},
    }


def _version() -> str:
    from confide import __version__

    return __version__


def _end(folder: RunFolder, status: str, code: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    folder.event(
        "end",
        time=now(),
        status=status,
        code=code,
        seconds=round(time.monotonic() - started, 2),
        peak_memory_mb=round(peak, 1),
    )


def _say_goodbye(folder: RunFolder, report: Mapping[str, Any]) -> None:
    claim, utility = report["claim"], report["utility"]
    logger.info(
        "accuracy %.3f before, %.3f after, on %d public records",
        utility["before"]["accuracy"],
        utility["after"]["accuracy"],
        utility["examples"],
    )
    logger.info("%s", claim["sentence"])
    logger.info("run folder: %s", folder.path)
