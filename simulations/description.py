"""A task description as a scenario: what to learn, and the files to learn it from.

``{"task": "text-generation", "data": {"train": "train.txt", "val": "val.txt"}}`` is a whole
configuration. The names of tasks are those of the Hub; paths are relative to the description. The
training file is shared out to simulated holders, whole persons to one of them where a column tells
them apart, and ``val`` is the coordinator's public text. In place of the two files ``data`` may
name a ``benchmark`` (``glue/sst2``), and the ``folder`` of its suite in the Hub's format. Only for
a simulation: a real holder's text is never shared out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.settings import Scalar
from ..common.tasks import TASKS as KINDS
from ..common.text.readers import read_records
from ..common.text.settled import KEY as BENCHMARK
from ..common.text.words import in_form

HOLDERS = 4  # where nobody says how many
# The Hub's name of a task, where it has one -> what the settings are then, unless the description
# says otherwise.
TASKS: Mapping[str, Mapping[str, Scalar]] = {
    name: {"task.kind": kind, "model.name": task.small_model, **settled}
    for kind, task in KINDS.items()
    for name, settled in task.described.items()
}
_TOP = ("task", "data", "model", "labels", "holders", "seed", "config")
_FILES = ("train", "val", "text", "target", "person")
_DATA = (*_FILES, "benchmark", "folder")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The text of a description: files, and the columns in them; no target is an empty name."""

    train: Path
    val: Path
    text: str
    target: str
    person: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a description says: files or the folder of a benchmark, settings, holders, seed."""

    files: Files | None
    folder: Path | None
    settings: dict[str, Scalar]
    holders: int
    seed: int


def small_model(kind: str) -> str:
    """A small model for the kind of task of a benchmark."""
    return KINDS[kind].small_model


def is_description(content: Mapping[str, Any]) -> bool:
    """Whether a file is a task description rather than a scenario, or settings with a table of
    that name."""
    table = isinstance(content.get("task"), dict)
    return "task" in content and "source" not in content and not table


def task_of(kind: str) -> str:
    """The first name of a task of that kind; what else that name settles, ``config`` must say."""
    return next(name for name, settings in TASKS.items() if settings["task.kind"] == kind)


def read_description(
    path: Path, content: Mapping[str, Any], config: Mapping[str, Scalar]
) -> Described:
    """What a description says. ``config`` are its flat settings, whose kind of task goes first.

    Raises:
        ConfideError: ``scenario.format``, ``data.missing-target`` where the task needs targets and
            a file cannot have them, and what the readers raise for the public text that the labels
            are taken from.
    """
    _check_keys(path, content, _TOP, "")
    task, data = content["task"], content.get("data")
    if not isinstance(task, str) or task not in TASKS:
        _refuse(path, f"has the unknown task {task!r:.100}", nearest(str(task)[:100], TASKS))
    if not isinstance(data, dict):
        _refuse(path, "has no data", 'Add "data": {"train": ..., "val": ...}.')
    _check_keys(path, data, _DATA, "data.")
    for name, value in data.items():
        if not isinstance(value, str) or not (value or name in ("target", "person")):
            _refuse(path, f"has data.{name} = {value!r:.100}, which is no text")
    settings: dict[str, Scalar] = dict(TASKS[task])
    kind = str(config.get("task.kind", settings["task.kind"]))
    has_labels = kind in KINDS and KINDS[kind].fewest_labels > 0
    if "labels" in content and not has_labels:
        _refuse(path, f"has labels, which the task {task!r} does not have", "Leave them out.")
    settings |= {"model.name": _text(path, content, "model")} if "model" in content else {}
    holders, seed = (_count(path, content, *each) for each in (("holders", HOLDERS), ("seed", 0)))
    if "benchmark" in data:
        files, folder = None, _check_benchmark(path, data)
        settings[BENCHMARK] = data["benchmark"]
    else:
        files, folder = _files(path, data, kind), None
        _check_targets(path, files, task, kind)
        settings["data.target"] = "label" if files.target else ""
        settings["data.person"] = "person" if files.person else ""
    if has_labels and (files or "labels" in content):
        settings["task.labels"] = _labels(path, content, files, kind)
    return Described(files=files, folder=folder, settings=settings, holders=holders, seed=seed)


def _check_benchmark(path: Path, data: Mapping[str, Any]) -> Path | None:
    """The folder of its suite, if one is named."""
    for name in _FILES:
        if name in data:
            _refuse(
                path,
                f"has data.{name} beside data.benchmark, which has rows and columns of its own",
                "Leave one of them out.",
            )
    return _file(path, data["folder"]) if "folder" in data else None


def _files(path: Path, data: Mapping[str, Any], kind: str) -> Files:
    for name in ("train", "val"):
        if name not in data:
            _refuse(path, f"has no data.{name}", "Name a .txt, .jsonl, .csv or .parquet file.")
    if "folder" in data:
        _refuse(path, "has data.folder, which is for data.benchmark", "Leave it out.")
    return Files(
        train=_file(path, data["train"]),
        val=_file(path, data["val"]),
        text=data.get("text", "text"),
        target=data.get("target", "label" if _learns_targets(kind) else ""),
        person=data.get("person", ""),
    )


def _learns_targets(kind: str) -> bool:
    """False for a kind that there is none of, which the settings refuse later."""
    return kind in KINDS and KINDS[kind].target == "needed"


def _check_targets(path: Path, files: Files, task: str, kind: str) -> None:
    """Before the files are shared out: what is made of them has names that nobody knows."""
    if _learns_targets(kind) and not files.target:
        raise ConfideError(
            "data.missing-target",
            f"{path} has data.target = '', but the task {task} needs targets.",
            "Name their column.",
        )
    for file in (files.train, files.val):
        if files.target and file.suffix.lower() == ".txt":
            raise ConfideError(
                "data.missing-target",
                f"{file}: a .txt file has no targets, which the task {task} needs.",
                "Give a .jsonl, .csv or .parquet file with a column of them (data.target), or take"
                " a task of text alone: text-generation, fill-mask or span-corruption.",
            )


def _count(path: Path, content: Mapping[str, Any], key: str, default: int) -> int:
    value = content.get(key, default)
    if type(value) is not int or value < (key == "holders"):
        _refuse(path, f"has {key} = {value!r:.100}, which is no whole number")
    return value


def _text(path: Path, content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        _refuse(path, f"has {key} = {value!r:.100}, which is no text")
    return value


def _labels(path: Path, content: Mapping[str, Any], files: Files | None, kind: str) -> str:
    """As declared, or as the public file has them: never from the training text."""
    declared = content.get("labels")
    if isinstance(declared, list) and all(isinstance(label, str) for label in declared):
        return _listed(path, declared)
    if declared is not None or files is None:
        _refuse(path, "has labels that are no list of texts", 'Write "labels": ["no", "yes"].')
    found = read_records(
        files.val,
        text=files.text,
        target=files.target,
        lists=KINDS[kind].lists,
        own_screen=True,
    )
    named = [KINDS[kind].labels_in(r.target) for r in found if r.target is not None]
    return _listed(files.val, sorted({in_form(label) for some in named for label in some}))


def _listed(path: Path, labels: Sequence[str]) -> str:
    """As the settings list them: a comma would make two classes of one, which no text has."""
    for label in labels:
        if "," in label or not label.strip():
            what = "a comma" if "," in label else "nothing in it"
            hint = "Rename it, in the files as well: a setting lists labels with commas between."
            _refuse(path, f"has the label {label!r:.100} with {what}", hint)
    return ",".join(labels)


def _file(path: Path, named: str) -> Path:
    return path.parent / Path(named).expanduser()


def _check_keys(path: Path, found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            _refuse(path, f"has the unknown key {where + str(key)!r:.100}", nearest(key, known))


def _refuse(path: Path, what: str, hint: str = "Correct the file.") -> NoReturn:
    raise ConfideError("scenario.format", f"{path} {what}.", hint)
