"""The command ``confide tune``, thin: parse, call, print, and write the best trial as a file of
settings for ``confide simulate``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .tune import Outcome
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


def tune(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="SETTINGS", help="A scenario's name, a file of settings, or a run folder."
        ),
    ] = "nyt",
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="KEY=VALUES",
            help="low..high, 'low..high log' or a,b,c; may be repeated. By default train.lr,"
            " privacy.clip and lora.rank.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting in every trial; may be repeated."
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trials in all, earlier ones included. Default: 20, or the whole grid."
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="How to choose trials: tpe, random or grid.")
    ] = "tpe",
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder, or one to continue. Default: runs/tune-SCENARIO."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for good settings, and write the best as a settings file.

    The same command continues where it stopped.
    """
    from rich.console import Console

    from .scenario import load_scenario, run_config
    from .space import default_space, parse_space
    from .tune import Search
    from .tune import tune as search_for

    chosen = load_scenario(scenario, changes or [])
    wanted = space or default_space(run_config(chosen))
    search = Search(
        scenario=chosen,
        space=tuple(parse_space(wanted, chosen)),
        folder=out or Path("runs") / f"tune-{chosen.name}",
        sampler=sampler,
        trials=trials,
    )
    console = Console(stderr=True)
    with console.status("searching"):
        found = search_for(
            search,
            lambda t: console.print(f"trial {t.number}: {t.state}, {t.measure}", markup=False),
        )
    _show_search(found, as_json)


def _show_search(found: Outcome, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..common.machine.paths import replace_durably
    from .tune_page import cost_sentence, grid_sentence, models, render, table

    folder, name = found.search.folder, found.search.scenario.name
    best, page = folder / f"{name}-tuned.toml", folder / "search.html"
    for file, text in ((best, best_scenario(found)), (page, render(found))):
        replace_durably(file, text.encode())  # another process may be at the same search
    if as_json:
        values = {"measure": found.best.measure, "values": found.best.values}
        tried = {"trials": len(found.trials), "points": found.search.points}
        spent = {"epsilon_if_private": _finite(found.epsilon)}
        typer.echo(
            json.dumps({"scenario": str(best), "page": str(page), **values, **tried, **spent})
        )
        return
    for heads, rows in (table(found), models(found)):
        shown = Table(*heads)
        for row in rows:
            shown.add_row(*row)
        if rows:
            Console().print(shown)
    if untried := grid_sentence(found):
        typer.echo(untried)
    typer.echo(f"{cost_sentence(found)}\nPage: {page}\nBest: confide simulate {best}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
