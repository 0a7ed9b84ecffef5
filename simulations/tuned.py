"""The outcome of a search as a scenario file, for ``confide simulate``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..common.settings import COORDINATORS_OWN, Scalar
from .description import TASKS, Files, task_of
from .scenario import Scenario
from .tune import Outcome


def best_scenario(outcome: Outcome) -> str:
    """The best trial as a scenario that ``confide simulate`` takes."""
    search = outcome.search
    scenario, base = search.scenario, search.config()
    own = set(scenario.config) | {change.partition("=")[0].strip() for change in search.changes}
    top = _top(scenario, str(base["task.kind"]))
    # The kind's one name may settle more than the description's own did: all of it is written out.
    own |= set(TASKS.get(str(top.get("task")), ()))
    config = {key: base[key] for key in base if key in own and key not in COORDINATORS_OWN}
    config |= outcome.best.values
    lines = [
        f"# The best of {len(outcome.trials)} trials of `confide tune {scenario.name}`: its"
        f" {search.measure} of {outcome.best.measure:.3f} is the best of many on the text",
        "# that chose it, and therefore flatters.",
        *_rows(top),
        *(["", "[data]", *_rows(_data(scenario.files))] if scenario.files else []),
        "",
        "[config]",
        *_rows(config),
    ]
    return "\n".join(lines) + "\n"


def _top(scenario: Scenario, kind: str) -> Mapping[str, Scalar]:
    if scenario.files:  # of a task description
        return {"task": task_of(kind), "holders": scenario.holders, "seed": scenario.seed}
    names = ("source", "holders", "partition", "alpha", "seed", "limit", "public_limit")
    found = {name: value for name in names if (value := getattr(scenario, name)) is not None}
    return found | ({"folder": str(scenario.folder.resolve())} if scenario.folder else {})


def _data(files: Files) -> Mapping[str, Scalar]:
    """From any folder: the tuned file lies elsewhere than the description."""
    places = {"train": str(files.train.resolve()), "val": str(files.val.resolve())}
    return places | {"text": files.text, "target": files.target, "person": files.person}


def _rows(table: Mapping[str, Scalar]) -> list[str]:
    return [f"{_toml(key)} = {_toml(value)}" for key, value in table.items()]


def _toml(value: Scalar) -> str:
    """JSON's text, numbers and truth values are TOML's, too."""
    return json.dumps(value, ensure_ascii=False)
