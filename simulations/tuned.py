"""The outcome of a search as a scenario file, for ``confide simulate``."""

from __future__ import annotations

import json

from ..common.settings import COORDINATORS_OWN, Scalar
from .scenario import Scenario
from .tune import Outcome


def best_scenario(outcome: Outcome) -> str:
    """The best trial as a scenario that ``confide simulate`` takes."""
    search = outcome.search
    scenario, base = search.scenario, search.config()
    own = set(scenario.config) | {change.partition("=")[0].strip() for change in search.changes}
    config = {key: base[key] for key in base if key in own and key not in COORDINATORS_OWN}
    config |= outcome.best.values
    lines = [
        f"# The best of {len(outcome.trials)} trials of `confide tune {scenario.name}`: its"
        f" {search.measure} of {outcome.best.measure:.3f} is the best of many on the text",
        "# that chose it, and therefore flatters.",
        *(f"{key} = {_toml(value)}" for key, value in _table(scenario).items()),
        "",
        "[config]",
        *(f"{_toml(key)} = {_toml(value)}" for key, value in config.items()),
    ]
    return "\n".join(lines) + "\n"


def _table(scenario: Scenario) -> dict[str, Scalar]:
    names = ("source", "holders", "partition", "alpha", "seed", "limit", "public_limit")
    return {name: value for name in names if (value := getattr(scenario, name)) is not None}


def _toml(value: Scalar) -> str:
    """JSON's text, numbers and truth values are TOML's, too."""
    return json.dumps(value, ensure_ascii=False)
