"""``confide client join``, ``status``, and the two processes that ``join`` starts: ``resident`` and
``gateway``, which containers run one each.

Imports no torch; the resident does, after it has no network any more.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..site.users import GATEWAY, RESIDENT
from .terminal import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..site.join import Joining

KitFolder = Annotated[
    Path, typer.Argument(metavar="KIT", help="The kit from the coordinator, a folder.")
]
Data = Annotated[Path, typer.Option(help="Your text: a jsonl, csv, parquet or txt file.")]
Ledger = Annotated[Path | None, typer.Option(help="The privacy ledger. Default: beside the data.")]
Socket = Annotated[Path, typer.Option(help="The resident's Unix socket.")]
AnySocket = Annotated[Path | None, typer.Option(help="The resident's Unix socket.")]
Column = Annotated[
    str | None,
    typer.Option(help="The column with the text, to compare with your policy."),
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Run even if the network cannot be taken away.")
]


def add_commands(client: typer.Typer) -> None:
    """Join the commands to ``confide client``."""
    client.command("join")(join)
    client.command("status")(status)
    client.command("resident")(resident)
    client.command("gateway")(gateway)


def join(
    kit: KitFolder,
    *,
    data: Data,
    policy: Annotated[
        Path | None, typer.Option(help="Your policy.toml. Default: the one in the kit.")
    ] = None,
    ledger: Ledger = None,
    text: Column = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "--label", help="The column with the answers, likewise."),
    ] = None,
    person: Annotated[
        str | None, typer.Option(help="The column that tells persons apart, likewise.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    new_ledger: Annotated[
        bool,
        typer.Option("--new-ledger", help="Make a ledger, for text that has never taken part."),
    ] = False,
    socket: AnySocket = None,
    resident_user: Annotated[
        str, typer.Option(help="The user who reads the text; only for root.")
    ] = RESIDENT,
    gateway_user: Annotated[
        str, typer.Option(help="The user who uses the network; only for root.")
    ] = GATEWAY,
    allow_network: AllowNetwork = False,
) -> None:
    """Take part: check your text, show what will leave this machine, ask once, serve runs."""
    from ...common.errors import ConfideError
    from ...common.machine.kit import check_current, read_kit
    from ..site.budget import make_ledger
    from ..site.enrol import check_node_key
    from ..site.join import Joining, check_access, lacks_ledger, run, socket_of
    from ..site.journal import Journal
    from ..site.users import as_user, user_named

    read = read_kit(kit)
    check_current(read, date.today())  # noqa: DTZ011 - the day where the holder is
    check_node_key(read)
    if not read.bundles:
        raise ConfideError(
            "kit.no-bundle",
            f"The kit of {read.name} pins no bundle, so no run could start here.",
            "Ask the coordinator for the bundle's SHA-256 and add it to `bundles` in kit.toml.",
        )
    root = os.geteuid() == 0
    joining = Joining(
        kit=read,
        data=data,
        policy=policy or read.policy,
        ledger=ledger or ledger_of(data),
        socket=socket or socket_of(read),
        resident=user_named(resident_user) if root else None,
        gateway=user_named(gateway_user) if root else None,
        allow_network=allow_network,
    )
    check_access(joining)
    if lacks_ledger(joining):
        _agree_to_new_ledger(joining, unasked=yes, agreed=new_ledger)
        joining = replace(joining, new_ledger=True)
    named = {"text": text, "target": target, "person": person}
    # Root neither parses a file of somebody else's nor follows a link in its folder.
    for line in as_user(joining.resident, lambda: _consent(joining, named)):
        typer.echo(plain(line))
    if not yes:
        _confirm("Take part?")
    if joining.new_ledger:
        as_user(joining.resident, lambda: make_ledger(joining.ledger))
    as_user(joining.resident, lambda: _take_in(joining, looked=not yes))
    raise typer.Exit(run(joining, Journal("join")))


def _agree_to_new_ledger(joining: Joining, *, unasked: bool, agreed: bool) -> None:
    """A new ledger takes the administrator's word: a past that it does not know is spent again."""
    from ..site.join import new_ledger_unasked, on_new_ledger

    if unasked and not agreed:
        raise new_ledger_unasked(joining)
    for line in on_new_ledger(joining):
        typer.echo(plain(line))
    if not agreed:
        _confirm("Start a new ledger?")


def _take_in(joining: Joining, *, looked: bool) -> None:
    """A text is taken in as somebody just saw it, or where none was before. With ``--yes``, as a
    service starts again, nobody looks: one that was changed meanwhile stays refused."""
    from ..text.taken import take_in, was_taken_in

    if looked or not was_taken_in(joining.ledger):
        take_in(joining.data, joining.ledger)


def _confirm(question: str) -> None:
    if not typer.confirm(question):
        typer.echo("Nothing was started.")
        raise typer.Exit(1)


def _consent(joining: Joining, named: Mapping[str, str | None]) -> list[str]:
    """What the administrator says yes to, and what the text gives to think about; ``named`` are
    columns that the command names, which [data] of the policy has to say, too."""
    from ..guard.contract import check_columns, missing
    from ..guard.policy_file import load_policy
    from ..text.check_data import check_data
    from .consent import plain_words
    from .setup import of_broken

    limits = load_policy(joining.policy)
    if limits.data is None:
        raise missing(joining.data, named)
    check_columns(limits.data, named)
    found = check_data(joining.data, contract=limits.data, delta=limits.max_delta)
    words = [*plain_words(joining, found, limits, limits.data), *_of_keys(joining, limits.roster)]
    return [*words, *(f"! {line}" for line in (*found.warnings, *of_broken(found)))]


def _of_keys(joining: Joining, roster: str) -> list[str]:
    """Where the policy would take part in secure sums and this holder cannot."""
    from ..site.enrol import has_keys

    if not roster or has_keys(joining.ledger, None):
        return []
    return [
        "! The policy names a roster, but there is no signing key beside the ledger: runs with a"
        " secure sum are refused until `confide client enrol` has made one."
    ]


def status(
    where: Annotated[
        Path, typer.Argument(metavar="KIT|SOCKET", help="The kit, or the resident's socket.")
    ],
    *,
    resident: Annotated[
        bool,
        typer.Option("--resident", help="Look at the resident alone, not at the connection."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show whether the resident is well, whether the coordinator is connected, and what is left.

    Exit status 1: one of the two is not so.
    """
    from ..site.connection import in_words
    from ..site.join import socket_at
    from ..site.join import status as ask

    report = ask(socket_at(where))
    connected, said = in_words(report.get("connection"))
    if as_json:
        typer.echo(json.dumps(report))
    else:
        for key, value in report.items():
            for line in said if key == "connection" else value if key == "left" else [value]:
                shown = line if isinstance(line, str) else json.dumps(line)
                typer.echo(f"{'connected' if key == 'connection' else key:<16} {plain(shown)}")
    if report.get("alive") is not True or not (connected or resident):
        raise typer.Exit(1)


def resident(
    *,
    data: Data,
    policy: Annotated[Path, typer.Option(help="Your policy.toml.")],
    socket: Socket,
    name: Annotated[str, typer.Option(help="The holder's name.")] = "holder",
    ledger: Ledger = None,
    user: Annotated[str, typer.Option(help="The user to become; only for root.")] = "",
    for_: Annotated[
        str, typer.Option("--for", help="The gateway's user: its group may use the socket.")
    ] = "",
    allow_network: AllowNetwork = False,
) -> None:
    """Run the process that has the text and no network; `join` starts it for you."""
    from ..site.resident_main import Residence, run
    from ..site.users import user_named

    run(
        Residence(
            name=name,
            data=data,
            policy=policy,
            socket=socket,
            ledger=ledger or ledger_of(data),
            user=user_named(user) if user else None,
            group=user_named(for_).gid if for_ else -1,
            allow_network=allow_network,
        )
    )


def gateway(
    kit: KitFolder,
    *,
    socket: Socket,
    user: Annotated[str, typer.Option(help="The user to become; only for root.")] = "",
) -> None:
    """Run the process that has the network and no text; `join` starts it for you."""
    from ...common.machine.kit import read_kit
    from ..site.gateway import Gateway, run
    from ..site.users import user_named

    made = Gateway(kit=read_kit(kit), socket=socket, user=user_named(user) if user else None)
    raise typer.Exit(run(made))


def ledger_of(data: Path) -> Path:
    """Where the ledger of a data file lies unless named: beside it."""
    return Path(f"{data}.ledger.sqlite")
