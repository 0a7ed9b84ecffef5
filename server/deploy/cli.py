"""``confide server provision``, ``start`` and ``status``, thin: parse, call, print.

``confide server run`` takes a scenario and is therefore added by the room that knows scenarios.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .federation import Federation
    from .status import Status

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder or name.")]
Name = Annotated[str | None, typer.Option(metavar="NAME")]


def commands() -> typer.Typer:
    """The group ``confide server``."""
    group = typer.Typer(help="Run a federation of real data holders.", no_args_is_help=True)
    group.command("provision")(provision)
    group.command("start")(start)
    group.command("status")(status)
    return group


def provision(
    folder: Folder,
    *,
    holders: Annotated[
        int | None, typer.Option(help="How many holders a new federation has.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The host name at which holders reach you.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port at which holders reach you. Default: 8443.")
    ] = None,
    add: Annotated[str | None, typer.Option(metavar="NAME", help="Add a holder.")] = None,
    renew: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Renew a holder's kit and key; or 'server', or 'bundle'."
        ),
    ] = None,
    revoke: Annotated[str | None, typer.Option(metavar="NAME", help="Shut a holder out.")] = None,
    as_json: Json = False,
) -> None:
    """Make a federation (keys, certificates, a kit for each holder), or change who is in it."""
    from ...common.errors import ConfideError
    from . import provision as work
    from .federation import find_federation

    changes = [name for name in (add, renew, revoke) if name is not None]
    new = [value for value in (holders, host, port) if value is not None]
    if len(changes) > 1 or (changes and new) or not (changes or (holders and host)):
        raise ConfideError(
            "provision.usage",
            "Give --holders and --host for a new federation, or one of --add, --renew, --revoke.",
            "confide server provision DIR --holders 3 --host fleet.example.org",
        )
    if holders is not None and host is not None:
        made = work.provision(
            folder, holders=holders, host=host, port=work.PORT if port is None else port
        )
        _tell_new(made, as_json)
        return
    federation = find_federation(folder)
    if add is not None:
        changed = work.add(federation, add)
        said = f"{add}: a kit in {changed.kit(add)}"
    elif renew is not None:
        changed = work.renew(federation, renew)
        said = _renewed(changed, renew)
    else:
        changed = work.revoke(federation, str(revoke))
        said = f"{revoke} is shut out; a running server follows within seconds"
    typer.echo(json.dumps(_summary(changed)) if as_json else said)


def start(folder: Folder, as_json: Json = False) -> None:
    """Run the coordinator's services until SIGTERM or Ctrl-C, restarting any that ends."""
    from .federation import find_federation
    from .supervisor import Supervisor

    def say(event: dict[str, Any]) -> None:
        rest = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("time", "event"))
        typer.echo(json.dumps(event) if as_json else f"{event['time']} {event['event']} {rest}")

    Supervisor(find_federation(folder), say).run()


def status(folder: Folder, as_json: Json = False) -> None:
    """Show who is connected and what runs.

    Exit status 1: something is wrong.
    """
    from .federation import find_federation
    from .status import collect

    found = collect(find_federation(folder))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _show(found)
    if found.trouble:
        raise typer.Exit(1)


def _tell_new(made: Federation, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_summary(made)))
        return
    typer.echo(f"{made.folder}: {len(made.holders)} kits, in {made.folder / 'kits'}")
    typer.echo("Hand each to its holder over a safe channel, then delete it here.")
    typer.echo(f"Next: `confide server start {made.folder}`")


def _renewed(changed: Federation, name: str) -> str:
    if name == "server":
        return "The door has a new certificate; start the server again."
    if name == "bundle":
        return f"Every holder adds this to `bundles` in its kit.toml:\n{changed.bundle}"
    return f"{name}: a new kit in {changed.kit(name)}; the old key no longer counts"


def _summary(federation: Federation) -> dict[str, Any]:
    return {
        "folder": str(federation.folder),
        "fleet": f"{federation.host}:{federation.port}",
        "bundle": federation.bundle,
        "holders": [
            {
                "name": holder.name,
                "key": holder.key,
                "expires": holder.expires.isoformat(),
                "revoked": holder.revoked,
                "kit": str(federation.kit(holder.name)),
            }
            for holder in federation.holders.values()
        ],
    }


def _show(found: Status) -> None:
    for holder in found.holders:
        told = f"  ! {holder.ledger}" if holder.ledger else ""
        key = f"key: {holder.days_left} days left"
        typer.echo(f"{holder.name:<32}  {holder.state:<10}  {key}{told}")
    for run in found.runs:
        typer.echo(f"run {run.id}  {run.status}")
    typer.echo(f"{found.connected} connected; certificate: {found.certificate_days_left} days left")
    for code in found.trouble:
        typer.echo(f"! {code}")
