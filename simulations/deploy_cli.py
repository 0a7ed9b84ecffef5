"""The group ``confide server``: the coordinator's commands, and ``run``, which takes a scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..common.settings import Scalar
    from ..server.deploy.run import Event


def add_commands(app: typer.Typer) -> None:
    """Join ``server`` to the command line."""
    from ..server.deploy.cli import commands

    group = commands()
    group.command("run")(run)
    app.add_typer(group, name="server")


def run(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO",
            help="A scenario's name or a file of settings; or a run folder, to continue it.",
        ),
    ],
    *,
    federation: Annotated[
        Path, typer.Option(metavar="NAME", help="The federation's folder or name.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for holders that are not connected.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a scenario over the real holders, and show them live. Ctrl-C stops the run."""
    from ..common.settings import from_flat
    from ..server.deploy.federation import find_federation
    from ..server.deploy.run import run_over
    from ..server.report.terminal import outcome
    from .ready import check_model, check_start

    found, config = find_federation(federation), _config(what, changes or [])
    settings = from_flat(config)
    if not settings.run.resume:
        check_start(settings)
        check_model(settings)
    folder = run_over(found, config, _say, wait=wait)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        claim = {name: report["claim"][name] for name in ("sentence", "epsilon", "delta")}
        counted = {name: report["run"][name] for name in ("rounds", "rounds_planned")}
        typer.echo(json.dumps({"run": str(folder), **claim, **counted}))
        return
    typer.echo(f"{report['claim']['sentence']}")
    typer.echo(f"Adapter: {folder / 'adapter'}\nReport: {folder / 'report.html'}")
    typer.echo(outcome(report))


def _config(what: str, changes: list[str]) -> Mapping[str, Scalar]:
    from .scenario import load_scenario, run_config

    folder = Path(what)
    if (folder / "config.toml").is_file():
        changes = [f"run.resume={folder.resolve()}", *changes]
    return run_config(load_scenario(what, changes))


def _say(event: Event) -> None:
    """A line for what changed, on stderr; it is read in a log as often as in a terminal."""
    for warning in event.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    line = _line(event)
    if line:
        typer.echo(line, err=True)


def _line(event: Event) -> str:
    kind = event["event"]
    if kind == "holders":
        return "holders: " + ", ".join(f"{k} {v}" for k, v in sorted(event["states"].items()))
    if kind == "round":
        return _round(event)
    if kind == "evaluation":
        metric = event["metric"]
        return f"round {event['round']}: {metric} {event[metric]:.3f}, loss {event['loss']:.3f}"
    if kind == "away":
        return f"the coordinator does not answer, since {event['seconds']} s"
    if kind == "again":
        return f"the run died; it goes on after round {event['round']}"
    if kind == "ready":
        return _ready(event)
    if kind == "ledger":
        return f"round {event['round']}: {event['holder']} has another ledger, {event['code']}"
    return f"{kind} {event.get('status', '')} {event.get('code', '')}".strip()


def _ready(event: Mapping[str, Any]) -> str:
    refused = ", ".join(f"{row['holder']} {row['code']}" for row in event["refused"])
    return f"{event['ready']} holders can take part" + (f"; without {refused}" if refused else "")


def _round(event: Mapping[str, Any]) -> str:
    # None is an infinite one: of a run without noise, or after one.
    known = [row["receipt"]["epsilon"] for row in event["accepted"]]
    spent = max(known) if known and None not in known else None
    text = f"round {event['round']}: {len(event['accepted'])} updates in {event['seconds']:.0f} s"
    text += f", epsilon so far {spent:.2f}" if spent is not None else ""
    left = ", ".join(f"{row['holder']} {row['code']}" for row in event["left_out"])
    return text + (f"; without {left}" if left else "")
