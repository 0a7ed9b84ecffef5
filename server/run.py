"""A run from settings to outcome: folder, model, rounds, adapter, card, report.

The same function serves the ServerApp, tests and yardsticks; they differ in the transport.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from .. import __version__
from ..common.adapter.schema import set_adapter, size_of, unflatten
from ..common.errors import ConfideError
from ..common.machine.installed import code_hash
from ..common.machine.paths import local_or_cached, public_name
from ..common.masking.keys import Roster
from ..common.methods import method_of
from ..common.models.hub import write_adapter
from ..common.models.loading import LoadedModel, load_model, model_folder
from ..common.settings import Settings, from_flat
from .card import terms_of
from .checkpoint import load_checkpoint
from .deploy.members import check_roster
from .doctor import Facts
from .doctor.federation import booked
from .doctor.noise import both_factors, head_alone
from .evaluation import public_evaluator
from .ledgers import Memory
from .report import rounds_text, value_text
from .report.build import write_report
from .rounds import Rounds
from .run_folder import RunFolder, now, translated
from .seal import seal
from .senders import Known
from .transport import Transport, wait_for_nodes

logger = logging.getLogger("confide.server")

Check = Callable[[Path, Settings], object]
Progress = Callable[[dict[str, Any]], None]

_SOFTWARE = ("flwr", "torch", "transformers", "opacus", "peft", "dp-accounting")


def run(
    config: Mapping[str, Any],
    transport: Transport,
    known: Known | None = None,
    memory: Memory | None = None,
    check: Check | None = None,
    progress: Progress | None = None,
    holders: int | None = None,
    roster: Roster | None = None,
) -> RunFolder:
    """Do the run that ``config`` (flat keys) describes.

    Args:
        known: the holder's name for each node, where the coordinator knows it.
        memory: of the holders' ledgers over runs, where they are the same ones.
        check: of the folder ``data.path`` under the run's settings, before anything is trained.
        progress: hears of every event that the run's metrics.jsonl gets.
        holders: how many there are, where the caller knows it better than the text's folder.
        roster: who takes part in secure sums, where administrators compared it; None in a
            simulation.

    Raises:
        ConfideError: whatever makes the run impossible; the folder then says so, too.
    """
    folder = RunFolder.of(config)
    folder.listener = progress or folder.listener
    with folder.held():
        work = partial(_train, transport, folder, known, memory, check, holders, roster)
        _held_run(config, folder, work)
    return folder


def _held_run(
    config: Mapping[str, Any], folder: RunFolder, train: Callable[[Settings], None]
) -> None:
    started, command = time.monotonic(), str(config.get("run.id", ""))
    try:
        train(from_flat(config))
    except ConfideError as error:
        _end(folder, command, "failed", error.code, started, message=str(error))
        raise
    except BaseException as error:
        code = "run.stopped" if isinstance(error, KeyboardInterrupt) else "run.failed"
        _end(folder, command, "stopped" if code == "run.stopped" else "failed", code, started)
        raise
    _end(folder, command, "finished", "", started)
    with translated(folder.path):
        report = write_report(folder.path)
    _say_goodbye(folder, report)


def _train(
    transport: Transport,
    folder: RunFolder,
    known: Known | None,
    memory: Memory | None,
    check: Check | None,
    holders: int | None,
    roster: Roster | None,
    settings: Settings,
) -> None:
    if roster is not None:
        check_roster(settings, roster)
    data = local_or_cached(settings.data.path, "federations") if settings.data.path else None
    if data is None:
        raise ConfideError(
            "data.missing-file",
            f"data.path = {settings.data.path!r} is neither a folder nor a prepared federation.",
            "Run `confide assets fetch`, or name a folder with public.jsonl.",
        )
    if check is not None:
        check(data, settings)
    loaded = load_model(settings)
    method_of(settings.aggregate.method).check_model(loaded.schema)
    wanted = _wanted(settings, data, holders)
    evaluator = public_evaluator(loaded, settings, data)
    nodes = wait_for_nodes(transport, wanted, settings.round.timeout)
    if settings.run.resume:
        folder.event("resume", time=now(), command=settings.run.id)
    else:
        folder.write_config({**settings.to_flat(), "run.id": ""})  # of the command, not the run
        found = [*both_factors(settings, Facts()), *head_alone(settings)]
        warnings = [f"{one.what} {one.why} {one.fix}" for one in found]
        for warning in warnings:
            logger.warning("%s", warning)
        if loaded.head:
            logger.info("%s", loaded.head)
        about = _start(settings, loaded, folder, len(nodes))
        folder.event("start", **about, warnings=warnings)
    parts = (settings, loaded, transport, folder, evaluator, known, memory, roster)
    Rounds(*parts).run(nodes)
    other = _final_adapter(settings, loaded, folder)
    _save_adapter(settings, loaded, other, folder.path / "adapter")


def _final_adapter(
    settings: Settings, loaded: LoadedModel, folder: RunFolder
) -> dict[str, Tensor] | None:
    """Put the adapter that the run leaves into the model, ready to be saved. For a run that has
    added to the frozen weights: the adapter of the weights as they were, to be saved instead."""
    method, schema = method_of(settings.aggregate.method), loaded.schema
    added = method.added(schema)
    state = load_checkpoint(folder, schema, size_of(added), method.moved(schema).trained_size)
    adapter = unflatten(state.outcome, schema.shapes)
    set_adapter(loaded.model, adapter)
    config: Any = loaded.model.peft_config["default"]
    return method.outcome(adapter, unflatten(state.merged, added), config.lora_alpha / config.r)


def _save_adapter(
    settings: Settings, loaded: LoadedModel, other: Mapping[str, Tensor] | None, path: Path
) -> None:
    with translated(path):
        try:
            write_adapter(settings, loaded, path, other)
        except SafetensorError as error:  # how safetensors tells of a full disk
            number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
            raise OSError(number, os.strerror(number)) from None


def _wanted(settings: Settings, data: Path, holders: int | None) -> int:
    """How many holders must be there: those asked for, else all of a prepared federation."""
    manifest = data / "federation.json"
    least = max(settings.round.holders, settings.round.min_holders)
    if settings.round.holders or (holders is None and not manifest.is_file()):
        return least
    if holders is not None:
        return max(least, holders)
    try:
        return max(least, int(json.loads(manifest.read_text(encoding="utf-8"))["holders"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfideError(
            "data.format",
            f"{manifest} does not say how many holders there are ({type(error).__name__}).",
            "Prepare the federation again: `confide assets fetch`.",
        ) from None


def _start(
    settings: Settings, loaded: LoadedModel, folder: RunFolder, holders: int
) -> dict[str, Any]:
    return {
        "time": now(),
        "run": folder.id,
        "command": settings.run.id,
        "model": {
            "name": public_name(settings.model.name),
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "trained": loaded.schema.trained_size,
            "sent": _sent(settings, loaded),
            "sha256": loaded.sha256,
            **({"head": loaded.head} if loaded.head else {}),
            **terms_of(model_folder(settings.model.name)),
        },
        "federation": {"holders": holders},
        "code": code_hash(),
        "facts": booked(settings),
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE}
        | {"confide": __version__},
    }


def _sent(settings: Settings, loaded: LoadedModel) -> list[int]:
    """How many values an update of a holder that trains the run's rank has: one number, or several
    for a method whose rounds differ."""
    method, rounds = method_of(settings.aggregate.method), range(1, settings.round.count + 1)
    return sorted({method.sent(loaded.schema, number).trained_size for number in rounds})


def _end(
    folder: RunFolder, command: str, status: str, code: str, started: float, *, message: str = ""
) -> None:
    """The last event; ``message`` is the coordinator's own, and stays in its own folder."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    try:
        folder.event(
            "end",
            time=now(),
            command=command,
            status=status,
            code=code,
            message=message,
            seconds=round(time.monotonic() - started, 2),
            peak_memory_mb=round(peak, 1),
            seal=seal(folder.path),
        )
    except ConfideError as error:
        if status == "finished":
            raise
        logger.error("%s", error)  # what ended the run is what the caller must hear


def _say_goodbye(folder: RunFolder, report: Mapping[str, Any]) -> None:
    claim, utility = report["claim"], report["utility"]
    name = utility["metric"]
    logger.info(
        "%s %s before, %s after, on %d public records",
        name,
        value_text(name, utility["before"][name]),
        value_text(name, utility["after"][name]),
        utility["examples"],
    )
    logger.info("%s", claim["sentence"])
    logger.info("run folder: %s%s", folder.path, rounds_text(report))
