"""The outcome of a search as a scenario file, for ``confide simulate``."""

from __future__ import annotations

from collections.abc import Mapping

import tomli_w

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
    tables = {
        **top,
        **({"data": _data(scenario.files)} if scenario.files else {}),
        "config": config,
    }
    lines = [
        f"# The best of {len(outcome.trials)} trials of `confide tune {scenario.name}`: its"
        f" {search.measure} of {outcome.best.measure:.3f} is the best of many on the text",
        "# that chose it, and therefore flatters.",
        tomli_w.dumps(tables),
    ]
    return "\n".join(lines)


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
