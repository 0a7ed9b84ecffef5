"""Checks of a run before anything starts: its folder, its model, its text.

``check_start`` and ``check_text`` read only files, in less than a second and without torch.
``check_model`` checks, with the model in memory, what a holder would check in the first round: that
the model loads, fits the task, takes the adapter, fits into memory, and has a gradient for each
record. So a command that takes minutes fails in seconds if it must fail.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ..client.guard.contract import CHAT, Contract
from ..client.text.check_data import misfits
from ..common.errors import ConfideError, nearest
from ..common.machine.paths import cache_dir, local_or_cached
from ..common.methods import method_of
from ..common.settings import Settings
from ..server.run_folder import PUBLIC_FILE, translated
from .copies import check_public

# Of a run folder: adapter and checkpoint of the smallest model, ledgers, report.
_LEAST_DISK = 16 << 20
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_SECONDS = 3.0
# One of these is in every folder with a tokenizer.
_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model", "*.spm",
)  # fmt: skip


def check_start(settings: Settings) -> None:
    """Refuse a run whose folder cannot be written, or whose model files are missing or incomplete.

    Raises:
        ConfideError: ``run.folder``, ``disk.full``, ``model.missing`` or ``model.tokenizer``.
    """
    check_place(settings)
    check_files(settings.model.name)


def check_place(settings: Settings) -> None:
    """Refuse a run whose folder cannot be written. Nothing is made: the nearest existing folder
    above it is checked instead.

    Raises:
        ConfideError: ``run.folder`` or ``disk.full``.
    """
    out = Path(settings.run.resume or settings.run.out).expanduser()
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    with translated(out):
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"a run was here")
        free = shutil.disk_usage(there).free
    if free < _LEAST_DISK:
        raise ConfideError(
            "disk.full",
            f"{out} has {free >> 20} MiB left; the smallest run needs {_LEAST_DISK >> 20}.",
            "Make room, or set run.out to a folder on another disk.",
        )


# --- the model's files ---


def check_files(name: str) -> None:
    """Refuse a model whose files are missing or incomplete.

    Raises:
        ConfideError: ``model.missing`` or ``model.tokenizer``.
    """
    folder = local_or_cached(name, "models")
    if folder is None:
        _check_hub(name)
        return
    config = _json(folder / "config.json", name)
    if not isinstance(config, dict) or "model_type" not in config:
        _missing(name, "its config.json names no model_type")
    _check_weights(folder, name)
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise ConfideError(
            "model.tokenizer",
            f"The model folder {name!r} has no tokenizer.",
            "The folder needs tokenizer.json or the tokenizer files of its family.",
        )


def _check_weights(folder: Path, name: str) -> None:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = set(_json(index, name).get("weight_map", {}).values())
        lost = sorted(parts - {file.name for file in files})
        if lost:
            _missing(name, f"{lost[0]} is not in its folder")
    if not files:
        _missing(name, "its folder has no safetensors weights")
    for file in files:
        if file.stat().st_size != _size_told(file):
            _missing(name, f"{file.name} is cut off or damaged")


def _size_told(file: Path) -> int:
    """The size in bytes that the header of a safetensors file states; -1 without a header."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, 100 << 20)))
        ends = (one["data_offsets"][1] for key, one in header.items() if key != "__metadata__")
        return 8 + int(length) + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return -1


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        _missing(name, f"its {path.name} is not there, or is no JSON")


def _missing(name: str, why: str, hint: str = "") -> NoReturn:
    raise ConfideError(
        "model.missing",
        f"The model {name!r:.200} cannot be used: {why}.",
        hint or "Name a complete folder with config.json, safetensors weights and a tokenizer.",
    )


def asset_of(name: str) -> str:
    """The asset by which ``confide assets fetch`` puts a model into the cache; empty if there is
    none."""
    return next((asset for asset, target in _models().items() if target == name), "")


def _models() -> dict[str, str]:
    """The model of each asset, by the asset's name."""
    from .assets import ASSETS
    from .made import MADE

    every: Mapping[str, Any] = {**ASSETS, **MADE}
    kind = "models/"
    return {n: a.target.removeprefix(kind) for n, a in every.items() if a.target.startswith(kind)}


def _check_hub(name: str) -> None:
    """Check a name that is no folder here: it may be an asset, a Hub id that is available, or a
    mistake."""
    asset = asset_of(name)
    if asset:
        _missing(name, "it is not in the cache", f"Run: confide assets fetch {asset}")
    by_path = name.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(name)
    if by_path:
        _missing(name, "there is no such folder")
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    known = [*_models().values(), *(p.name for p in (cache_dir() / "models").glob("*"))]
    hint = nearest(name, known).replace("Known: ", "Models that assets give: ")
    if constants.HF_HUB_OFFLINE:
        _missing(name, "it is no folder, not in the cache, and the Hub is switched off", hint)
    reason = _hub_says(name)
    if reason:
        _missing(name, f"it is no folder, not in the cache, and {reason}", hint)


def _hub_says(name: str) -> str:
    """Why the Hub does not give the model; empty if it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return "the Hub has no such model, or does not show it"
    except Exception:  # noqa: BLE001 - whichever library speaks to the network raises its own
        return "the Hub does not answer"
    return ""


# --- the text ---


def check_text(folder: Path, settings: Settings, holders: Sequence[Path] | None = None) -> Path:
    """Refuse a prepared federation if a record does not fit the settings; return its folder. The
    settings are the contract of every simulated holder. In a run the holder would silently use only
    the other records.

    Args:
        holders: their files, if they are not the folder's.

    Raises:
        ConfideError: ``run.too-few-holders``; ``data.unfit``, by file; ``data.held-out`` where the
            public text is training text; and the codes of the readers for the first bad row.
    """
    agreed, public = agreed_by(settings), folder / PUBLIC_FILE
    files = sorted(folder.glob("holder-*.jsonl")) if holders is None else list(holders)
    _check_enough(len(files), settings)
    check_public(public, files, settings.data.text)
    for file in files:
        check_file(file, settings, agreed)
    if public.is_file():  # whose persons nobody protects
        check_file(public, settings, replace(agreed, person="", unit="record"))
    return folder


def _check_enough(holders: int, settings: Settings) -> None:
    """Refuse too few holders: nobody joins a simulation later."""
    wanted = max(settings.round.min_holders, settings.round.holders)
    if holders < wanted:
        name = "min-holders" if wanted == settings.round.min_holders else "holders"
        raise ConfideError(
            "run.too-few-holders",
            f"The federation has {holders} holders, and round.{name} = {wanted}.",
            f"Share the text out to {wanted} or more (federation.holders = {wanted}), or lower"
            f" round.{name}; a run needs two for its updates to be more than one holder's.",
        )


def agreed_by(settings: Settings) -> Contract:
    """The contract that a run's settings imply for its text."""
    data, task = settings.data, settings.task
    return Contract(
        text=data.text,
        target=data.target,
        person=data.person,
        unit=settings.privacy.unit,
        tasks=(task.kind,),
        labels=task.label_names,
        low=task.low,
        high=task.high,
    )


def check_file(file: Path, settings: Settings, agreed: Contract) -> None:
    """Refuse a file with a record that does not fit.

    Raises:
        ConfideError: as ``check_text``.
    """
    kind = settings.task.kind
    formats = (CHAT, "text") if settings.task.template == CHAT else ("text",)
    found = min((misfits(file, replace(agreed, format=f)) for f in formats), key=len)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ConfideError(
            "data.unfit",
            f"Record {found[0]}{more} of {file.name} is not what the run says of its text"
            f" ({agreed.in_words(kind)}).",
            "Correct the text, or task.labels, task.low and task.high, data.person.",
        )


# --- the model in memory ---


def check_model(settings: Settings) -> None:
    """Refuse what a holder would refuse in the first round; then remove the model from memory.

    Raises:
        ConfideError: what loading, the adapter, the memory or the self-check refuse.
    """
    from ..client.guard.scrub import quiet
    from ..common.models.loading import forget_models, load_model

    with quiet():
        try:
            loaded = load_model(settings)
            from ..client.training.trainer import Trainer  # and Opacus with it: a second

            method_of(settings.aggregate.method).check_model(loaded.schema)
            Trainer(loaded).prepare(settings)
        finally:
            forget_models()
