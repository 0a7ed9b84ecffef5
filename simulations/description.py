"""A task description as settings: what to learn, and the files to learn it from.

``{"task": "text-generation", "data": {"train": "train.txt", "val": "val.txt"}}`` is a whole
configuration. The names of tasks are those of the Hub; paths are relative to the description. The
training file is split among simulated holders; if a column names persons, each person goes to one
holder as a whole. ``val`` is the coordinator's public text. In place of the two files ``data`` may
name a ``benchmark`` (``glue/sst2``), and the ``folder`` of its suite in the Hub's format. Only for
a simulation: a real holder's text is never split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.settings import Scalar, TaskSpec
from ..common.tasks import TASKS as KINDS
from ..common.text.benchmarks import KEY as BENCHMARK
from ..common.text.readers import read_records
from ..common.text.rows import in_form

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
    """The text of a description: files, and their columns; the target's name is empty if there is
    none."""

    train: Path
    val: Path
    text: str
    target: str
    person: str


def small_model(kind: str) -> str:
    """A small model that fits the benchmark's kind of task."""
    return KINDS[kind].small_model


def is_description(content: Mapping[str, Any]) -> bool:
    """Whether a file is a task description: there ``task`` is a name, in settings it is a table."""
    return "task" in content and not isinstance(content["task"], dict)


def task_of(kind: str) -> str:
    """The first name of a task of that kind. A description must give the name's further settings in
    ``config``."""
    return next(name for name, settings in TASKS.items() if settings["task.kind"] == kind)


def read_description(
    path: Path, content: Mapping[str, Any], config: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """The flat settings that a description stands for. ``config`` has those of its own table; a
    kind of task there comes first.

    Raises:
        ConfideError: ``scenario.format``, and what ``of_files`` raises.
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
            _refuse(path, f"has data.{name} = {value!r:.100}, which is not text")
    settings: dict[str, Scalar] = dict(TASKS[task])
    kind = str(config.get("task.kind", settings["task.kind"]))
    if "labels" in content:
        if not _has_labels(kind):
            _refuse(path, f"has labels, which the task {task!r} does not have", "Leave them out.")
        settings["task.labels"] = _declared(path, content["labels"])
    settings |= {"model.name": _text(path, content, "model")} if "model" in content else {}
    for key, default in (("holders", HOLDERS), ("seed", 0)):
        settings[f"federation.{key}"] = _count(path, content, key, default)
    if "benchmark" in data:
        return {**settings, **_of_suite(path, data), **config}
    _check_files(path, data)
    named = {f"federation.{name}": data[name] for name in _FILES if name in data}
    return of_files(path, {**settings, **named, **config}, f"the task {task}", "data")


def of_files(
    path: Path,
    chosen: Mapping[str, Scalar],
    task: str = "",
    table: str = "federation",
) -> dict[str, Scalar]:
    """The flat settings ``chosen``, with those that the user's own files decide: the columns of
    their copies, and the classes of the held-out file.

    Args:
        task, table: names in messages of the kind of task, and of the table that names the files.

    Raises:
        ConfideError: ``scenario.format``, ``data.missing-target`` if the task needs targets and a
            file cannot have them, and what the readers raise for the held-out text.
    """
    kind = str(chosen.get("task.kind", TaskSpec().kind))
    if not chosen.get("federation.val"):
        _refuse(path, f"has no {table}.val", "Name a .txt, .jsonl, .csv or .parquet file.")
    given = {"federation.target": "label" if _learns_targets(kind) else "", **chosen}
    files = Files(
        train=_file(path, str(given["federation.train"])),
        val=_file(path, str(given["federation.val"])),
        text=str(given.get("federation.text", "text")),
        target=str(given["federation.target"]),
        person=str(given.get("federation.person", "")),
    )
    _check_targets(path, files, task or f"task.kind = {kind!r}", kind, table)
    made = {"data.text": "text", "data.target": "label", "data.person": "person"}
    settled = {
        "data.text": "text",
        "data.target": "label" if files.target else "",
        "data.person": "person" if files.person else "",
    }
    for key, value in settled.items():
        if given.get(key, value) not in (value, made[key], ""):
            _refuse(
                path,
                f"sets {key} = {given[key]!r:.100} beside files of its own, of which copies with"
                f" the columns {', '.join(made.values())} are made",
                f"Name the files' own columns by {key.replace('data', table)}.",
            )
    given |= {key: value for key, value in settled.items() if value or key not in given}
    if _has_labels(kind) and not given.get("task.labels"):
        given["task.labels"] = _labels(files, kind)
    return given


def _of_suite(path: Path, data: Mapping[str, Any]) -> dict[str, Scalar]:
    """The benchmark, and the folder of its suite, if one is named."""
    for name in _FILES:
        if name in data:
            _refuse(
                path,
                f"has data.{name} beside data.benchmark, which has rows and columns of its own",
                "Leave one of them out.",
            )
    folder = {"federation.folder": data["folder"]} if "folder" in data else {}
    return {BENCHMARK: data["benchmark"], **folder}


def _check_files(path: Path, data: Mapping[str, Any]) -> None:
    for name in ("train", "val"):
        if name not in data:
            _refuse(path, f"has no data.{name}", "Name a .txt, .jsonl, .csv or .parquet file.")
    if "folder" in data:
        _refuse(path, "has data.folder, which is for data.benchmark", "Leave it out.")


def _learns_targets(kind: str) -> bool:
    """Whether the kind of task learns targets; False for an unknown kind, which the settings refuse
    later."""
    return kind in KINDS and KINDS[kind].target == "needed"


def _check_targets(path: Path, files: Files, task: str, kind: str, table: str) -> None:
    """Check targets before the files are split: the user does not know the names of the copies."""
    if _learns_targets(kind) and not files.target:
        raise ConfideError(
            "data.missing-target",
            f"{path} has {table}.target = '', but {task} needs targets.",
            "Name their column.",
        )
    for file in (files.train, files.val):
        if files.target and file.suffix.lower() == ".txt":
            raise ConfideError(
                "data.missing-target",
                f"{file}: a .txt file has no targets, which {task} needs.",
                "Give a .jsonl, .csv or .parquet file with a column of them"
                f" ({table}.target), or take a task of text alone: text-generation, fill-mask or"
                " span-corruption.",
            )


def _count(path: Path, content: Mapping[str, Any], key: str, default: int) -> int:
    value = content.get(key, default)
    if type(value) is not int or value < (key == "holders"):
        _refuse(path, f"has {key} = {value!r:.100}, which is not a whole number")
    return value


def _text(path: Path, content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        _refuse(path, f"has {key} = {value!r:.100}, which is not text")
    return value


def _has_labels(kind: str) -> bool:
    return kind in KINDS and KINDS[kind].fewest_labels > 0


def _declared(path: Path, labels: Any) -> str:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        _refuse(path, "has labels that are not a list of texts", 'Write "labels": ["no", "yes"].')
    return _listed(path, labels)


def _labels(files: Files, kind: str) -> str:
    """The classes in the public file; never from the training text."""
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
    """The classes as the settings list them. A comma in a name is refused: it would split the class
    into two that no text has."""
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
