"""The outcome of a search as a file of settings, for ``confide simulate``."""

from __future__ import annotations

import tomli_w

from ..common.settings import OF_THE_COMMAND
from ..server.run_folder import by_room
from .tune import Outcome


def best_scenario(outcome: Outcome) -> str:
    """The best trial as settings that ``confide simulate`` takes, from any folder."""
    search = outcome.search
    scenario = search.scenario
    config = {k: v for k, v in scenario.config.items() if k not in OF_THE_COMMAND}
    config |= {"run.name": scenario.name, **outcome.best.values}
    lines = [
        f"# The best of {len(outcome.trials)} trials of `confide tune {scenario.name}`: its"
        f" {search.measure} of {outcome.best.measure:.3f} is the best of many on the text",
        "# that chose it, and therefore flatters.",
        tomli_w.dumps(by_room(config)),
    ]
    return "\n".join(lines)
