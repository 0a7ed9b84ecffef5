"""The commands of this room: ``confide assets fetch`` and ``confide assets list``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .assets import Asset
    from .scenario import Scenario

# What the demo needs.
_DEFAULT = "nyt"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Assets, or scenarios: all that they need. Without any: the demo's."),
]


def add_commands(app: typer.Typer) -> None:
    """Join this room's commands to the command line."""
    assets = typer.Typer(help="Public models and text for simulations.", no_args_is_help=True)
    assets.command("fetch")(fetch)
    assets.command("list")(show)
    app.add_typer(assets, name="assets")


def fetch(names: Names = None, as_json: Json = False) -> None:
    """Fetch models and text, check them, and prepare federations. What is there stays."""
    from .assets import fetch as fetch_asset
    from .scenario import prepare

    assets, scenarios = _wanted(names or [_DEFAULT])
    done: list[dict[str, Any]] = []
    for asset in assets:
        fetched = fetch_asset(asset)
        done.append({"name": asset.name, "path": str(asset.folder), "fetched": fetched})
        if not as_json:
            state = "fetched and checked" if fetched else "there already"
            typer.echo(f"{asset.name}: {state}, {asset.folder}")
    made = [{"name": item.federation, "path": str(prepare(item))} for item in scenarios]
    if as_json:
        typer.echo(json.dumps({"assets": done, "federations": made}))
        return
    for federation in made:
        typer.echo(f"{federation['name']}: prepared, {federation['path']}")


def show(as_json: Json = False) -> None:
    """List what can be fetched, with licence and source."""
    from .assets import ASSETS, is_present

    rows = [
        {
            "name": asset.name,
            "title": asset.title,
            "licence": asset.licence,
            "source": asset.source,
            "path": str(asset.folder),
            "fetched": is_present(asset),
        }
        for asset in ASSETS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        state = f"in {row['path']}" if row["fetched"] else "not fetched"
        typer.echo(f"{row['name']}  {row['title']}\n    licence: {row['licence']}")
        typer.echo(f"    source:  {row['source']}\n    cache:   {state}")


def _wanted(names: list[str]) -> tuple[list[Asset], list[Scenario]]:
    """Assets to fetch and scenarios to prepare, each once."""
    from ..common.errors import ConfideError, nearest
    from .assets import ASSETS
    from .scenario import load_scenario, scenario_names
    from .sources import source_named

    assets: dict[str, Asset] = {}
    scenarios: dict[str, Scenario] = {}
    for name in names:
        if name in ASSETS:
            assets[name] = ASSETS[name]
        elif name in scenario_names() or name.endswith(".toml"):
            scenario = scenarios.setdefault(name, load_scenario(name))
            text = ASSETS[source_named(scenario.source).asset]
            model = f"models/{scenario.config.get('model.name')}"
            needed = [asset for asset in ASSETS.values() if asset.target == model]
            assets |= {asset.name: asset for asset in (*needed, text)}
        else:
            known = [*ASSETS, *scenario_names()]
            raise ConfideError(
                "assets.unknown", f"No asset or scenario is called {name!r}.", nearest(name, known)
            )
    return list(assets.values()), list(scenarios.values())
