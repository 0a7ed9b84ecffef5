"""``confide server provision``, ``roster``, ``start`` and ``status``, thin: parse, call, print.

``confide server run`` takes a scenario and is therefore added by the room that knows scenarios.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ...common.masking.keys import Roster
    from .federation import Federation
    from .status import Status

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder or name.")]
Name = Annotated[str | None, typer.Option(metavar="NAME")]


def commands() -> typer.Typer:
    """The group ``confide server``."""
    group = typer.Typer(help="Run a federation of real data holders.", no_args_is_help=True)
    group.command("provision")(provision)
    group.command("roster")(roster)
    group.command("start")(start)
    group.command("status")(status)
    return group


def provision(
    folder: Folder,
    *,
    holders: Annotated[
        int | None,
        typer.Option(
            help="For a trial on one machine: so many holders, whose keys are made here. Default:"
            " none, until --add."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The host name at which holders reach you.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port at which holders reach you. Default: 8443.")
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add a holder, with --request; without it, its key is made here, for a trial.",
        ),
    ] = None,
    renew: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Renew a holder's kit and keys, likewise; or 'server', or 'bundle'.",
        ),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(help="With --add or --renew: what the holder's `client enrol` wrote."),
    ] = None,
    revoke: Annotated[str | None, typer.Option(metavar="NAME", help="Shut a holder out.")] = None,
    as_json: Json = False,
) -> None:
    """Make a federation (a CA, certificates), or change who is in it.

    Holders make their own keys, and send a request with the public halves.
    """
    from . import provision as work
    from .federation import find_federation

    changes = [name for name in (add, renew, revoke) if name is not None]
    new = [value for value in (holders, host, port) if value is not None]
    _check_usage(len(changes), bool(new), host is not None, request is not None, revoke is not None)
    if host is not None:
        made = work.provision(
            folder, holders=holders or 0, host=host, port=work.PORT if port is None else port
        )
        _tell_new(made, as_json)
        return
    federation = find_federation(folder)
    if revoke is not None:
        changed = work.revoke(federation, revoke)
        said = f"{revoke} is shut out; a running server follows within seconds"
    else:
        changed, said = _let_in(federation, add, renew, request)
    lines = [said, *_of_new_roster(federation.roster, changed.roster)]
    typer.echo(json.dumps(_summary(changed)) if as_json else "\n".join(lines))


def _check_usage(changes: int, new: bool, host: bool, request: bool, revoke: bool) -> None:
    from ...common.errors import ConfideError

    right = changes == 1 and not new and not (request and revoke)
    if not right and not (changes == 0 and host and not request):
        raise ConfideError(
            "provision.usage",
            "Give --host for a new federation, or one of --add, --renew, --revoke; --request goes"
            " with --add and --renew.",
            "confide server provision DIR --host fleet.example.org",
        )


def _let_in(
    federation: Federation, add: str | None, renew: str | None, request: Path | None
) -> tuple[Federation, str]:
    from ...common.masking.enrolment import read_request
    from . import provision as work

    told = read_request(request) if request else None
    if add is not None:
        changed = work.add(federation, add, told)
        return changed, f"{add}: a kit in {changed.kit(add)}{_made_here(changed, add)}"
    name = str(renew)
    changed = work.renew(federation, name, told)
    if name == "server":
        return changed, "The door has a new certificate; start the server again."
    if name == "bundle":
        return changed, f"Every holder adds this to `bundles` in its kit.toml:\n{changed.bundle}"
    same = changed.holders[name].key == federation.holders[name].key
    of_old = "its key counts for another year" if same else "the old key no longer counts"
    said = f"{name}: a new kit in {changed.kit(name)}; {of_old}{_made_here(changed, name)}"
    return changed, said


def _made_here(federation: Federation, name: str) -> str:
    if not federation.holders[name].made_here:
        return ""
    return (
        ". Its key was made HERE, for a trial on one machine: of real text's holder take the"
        " --request that its `confide client enrol` wrote"
    )


def _of_new_roster(before: Roster, now: Roster) -> list[str]:
    """What everybody has to do where the members of secure sums are others than before."""
    from ...common.masking.enrolment import in_words

    if before == now:
        return []
    if not len(now):
        return ["The roster is empty now: no run has a secure sum."]
    return [
        "The roster is another one now:",
        *in_words(now),
        "Send roster.toml to every holder. Before the next run with a secure sum all administrators"
        " compare these words anew, by telephone, and change `roster` in their policies.",
    ]


def roster(folder: Folder, as_json: Json = False) -> None:
    """Show who takes part in secure sums, and the words that all administrators compare."""
    from ...common.masking.enrolment import in_words, roster_table
    from .federation import find_federation

    found = find_federation(folder)
    if as_json:
        typer.echo(json.dumps(roster_table(found.roster)))
        return
    for line in in_words(found.roster) if len(found.roster) else ["Nobody is in the roster."]:
        typer.echo(line)
    without = _named(h.name for h in found.holders.values() if not h.signing and not h.revoked)
    if without:
        typer.echo(f"In no secure sum, since they sent no signing key: {without}")


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
    if made.holders:
        typer.echo(f"{made.folder}: {len(made.holders)} kits, in {made.folder / 'kits'}")
        typer.echo("Their keys were made HERE: that is for a trial on one machine.")
        typer.echo("Hand each to its holder over a safe channel, then delete it here.")
    else:
        typer.echo(f"{made.folder}: nobody is in it yet. Each holder runs `confide client enrol`.")
        typer.echo(f"Add each: `confide server provision {made.folder} --add NAME --request FILE`")
    typer.echo(f"Next: `confide server start {made.folder}`")


def _summary(federation: Federation) -> dict[str, Any]:
    return {
        "folder": str(federation.folder),
        "fleet": f"{federation.host}:{federation.port}",
        "bundle": federation.bundle,
        "roster": f"sha256:{federation.roster.digest}" if len(federation.roster) else "",
        "holders": [
            {
                "name": holder.name,
                "key": holder.key,
                "expires": holder.expires.isoformat(),
                "revoked": holder.revoked,
                "made_here": holder.made_here,
                "signing": holder.signing,
                "kit": str(federation.kit(holder.name)),
            }
            for holder in federation.holders.values()
        ],
    }


def _named(names: Iterable[str]) -> str:
    return ", ".join(names)


def _show(found: Status) -> None:
    for holder in found.holders:
        told = f"  ! {holder.ledger}" if holder.ledger else ""
        key = f"key: {holder.days_left} days left"
        typer.echo(f"{holder.name:<32}  {holder.state:<10}  {key}{told}")
    here = _named(h.name for h in found.holders if h.made_here and h.state != "revoked")
    if here:
        typer.echo(f"Keys made HERE, for a trial on one machine: {here}")
    for run in found.runs:
        typer.echo(f"run {run.id}  {run.status}")
    typer.echo(f"{found.connected} connected; certificate: {found.certificate_days_left} days left")
    for code in found.trouble:
        typer.echo(f"! {code}")
