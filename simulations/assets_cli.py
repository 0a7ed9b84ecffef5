"""``confide assets fetch|list|remove|unpack``: the contents of the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .assets import Asset
    from .made import Made
    from .scenario import Scenario

# What the demo needs.
_DEFAULT = "nyt"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Assets, or scenarios with all that they need. Default: the demo's."),
]


def add_commands(app: typer.Typer) -> None:
    """Join ``assets`` to the command line."""
    assets = typer.Typer(help="Models and text for simulations.", no_args_is_help=True)
    assets.command("fetch")(fetch)
    assets.command("list")(show)
    assets.command("remove")(remove)
    assets.command("unpack")(unpack)
    app.add_typer(assets, name="assets")


def fetch(names: Names = None, as_json: Json = False) -> None:
    """Fetch or make models and text, check them, and prepare federations. Existing ones stay."""
    from rich.console import Console

    from .assets import Asset
    from .assets import fetch as fetch_asset
    from .made import make
    from .scenario import prepare

    assets, scenarios = _wanted(names or [_DEFAULT])
    done: list[dict[str, Any]] = []
    for asset in assets:
        with Console(stderr=True).status(asset.name):
            fetched = fetch_asset(asset) if isinstance(asset, Asset) else make(asset)
        done.append({"name": asset.name, "path": str(asset.folder), "fetched": fetched})
        if not as_json:
            new = "fetched and checked" if isinstance(asset, Asset) else "made"
            typer.echo(f"{asset.name}: {new if fetched else 'there already'}, {asset.folder}")
    made = [{"name": item.federation, "path": str(prepare(item))} for item in scenarios]
    if as_json:
        typer.echo(json.dumps({"assets": done, "federations": made}))
        return
    for federation in made:
        typer.echo(f"{federation['name']}: prepared, {federation['path']}")


def show(as_json: Json = False) -> None:
    """List what can be fetched or made, with licence and source, and the text that simulations have
    prepared, copies of your own included."""
    from .assets import ASSETS, is_present
    from .copies import prepared
    from .made import MADE, is_made

    present: list[tuple[Asset | Made, bool]] = [
        *((asset, is_present(asset)) for asset in ASSETS.values()),
        *((made, is_made(made)) for made in MADE.values()),
    ]
    rows = [
        {
            "name": asset.name,
            "title": asset.title,
            "licence": asset.licence,
            "source": asset.source,
            "path": str(asset.folder),
            "fetched": there,
        }
        for asset, there in present
    ]
    rows += [
        {
            "name": one.name,
            "title": "A copy of your own text" if one.own else "Public text, shared out to holders",
            "licence": "your own" if one.own else "of its source",
            "source": "your own files" if one.own else "prepared here",
            "path": str(one.folder),
            "fetched": True,
        }
        for one in prepared()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        state = f"in {row['path']}" if row["fetched"] else "not fetched"
        typer.echo(f"{row['name']}  {row['title']}\n    licence: {row['licence']}")
        typer.echo(f"    source:  {row['source']}\n    cache:   {state}")


def remove(
    names: Annotated[list[str], typer.Argument(help="Names from `confide assets list`.")],
    as_json: Json = False,
) -> None:
    """Remove copies of your own text, prepared federations, models or text from the cache."""
    from .assets import ASSETS
    from .copies import remove as remove_one
    from .made import MADE

    every: dict[str, Asset | Made] = {**ASSETS, **MADE}
    fetched = {name: asset.folder for name, asset in every.items()}
    gone = [str(remove_one(name, fetched)) for name in names]
    if as_json:
        typer.echo(json.dumps({"removed": gone}))
        return
    for folder in gone:
        typer.echo(f"Removed: {folder}")


def unpack(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="A new folder; use it as model.name.")],
) -> None:
    """Convert a GGUF file to a model folder in float16."""
    from ..common.errors import ConfideError
    from .made import unpack as write_model
    from .staging import staged

    if folder.exists():
        raise ConfideError(
            "assets.gguf", f"{folder} exists, and is never overwritten.", "Name another folder."
        )
    with staged(folder) as new:
        write_model(file, new)
    typer.echo(f"Unpacked. Use it with --set model.name={folder}")


def _wanted(names: list[str]) -> tuple[list[Asset | Made], list[Scenario]]:
    """What to fetch or make and which scenarios to prepare, each once."""
    from ..common.errors import ConfideError, nearest
    from ..common.text.benchmarks import BENCHMARKS
    from .assets import ASSETS
    from .made import MADE
    from .scenario import load_scenario, scenario_names
    from .sources import source_named

    every: dict[str, Asset | Made] = {**ASSETS, **MADE}
    assets: dict[str, Asset | Made] = {}
    scenarios: dict[str, Scenario] = {}
    for name in names:
        if name in every:
            assets[name] = every[name]
        elif name in (*scenario_names(), *BENCHMARKS) or name.endswith((".toml", ".json")):
            scenario = scenarios.setdefault(name, load_scenario(name))
            source = scenario.text.source
            own = source_named(source).assets if source and not scenario.files else ()
            text = [ASSETS[asset] for asset in own]
            model = f"models/{scenario.config.get('model.name')}"
            needed = [asset for asset in every.values() if asset.target == model]
            assets |= {asset.name: asset for asset in (*needed, *text)}
        else:
            known = [*every, *scenario_names(), *BENCHMARKS]
            raise ConfideError(
                "assets.unknown", f"No asset or scenario is called {name!r}.", nearest(name, known)
            )
    return list(assets.values()), list(scenarios.values())
