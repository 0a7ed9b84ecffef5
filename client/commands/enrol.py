"""``confide client enrol``, by which a holder makes its own keys, and ``roster``, by which its
administrator sees who else has some.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..site.users import GATEWAY, RESIDENT
from .join import ledger_of
from .terminal import plain

if TYPE_CHECKING:
    from ..site.enrol import Enrolled

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def add_commands(client: typer.Typer) -> None:
    """Join the commands to ``confide client``."""
    client.command("enrol")(enrol)
    client.command("roster")(roster)


def enrol(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the kit will be.")],
    *,
    name: Annotated[str, typer.Option(help="This holder's name, as agreed with the coordinator.")],
    data: Annotated[Path, typer.Option(help="Your text, where it lies for good.")],
    ledger: Annotated[
        Path | None, typer.Option(help="The privacy ledger. Default: beside the data.")
    ] = None,
    resident_user: Annotated[
        str, typer.Option(help="The user who will read the text; only for root.")
    ] = RESIDENT,
    gateway_user: Annotated[
        str, typer.Option(help="The user who will use the network; only for root.")
    ] = GATEWAY,
    as_json: AsJson = False,
) -> None:
    """Make this holder's own keys, and a request with their public halves for the coordinator.

    A key that is there is kept. No private half ever leaves this machine.
    """
    from ...common.errors import ConfideError
    from ..site.enrol import Enrolling
    from ..site.enrol import enrol as work
    from ..site.users import as_user, user_named

    root = os.geteuid() == 0
    resident = user_named(resident_user) if root else None
    if not as_user(resident, data.exists):
        raise ConfideError(
            "data.missing-file",
            f"There is no text {data}.",
            "Name it where it lies for good: the signing key goes beside its ledger.",
        )
    done = work(
        Enrolling(
            folder=folder,
            name=name,
            ledger=ledger or ledger_of(data),
            resident=resident,
            gateway=user_named(gateway_user) if root else None,
        )
    )
    if as_json:
        typer.echo(json.dumps({key: _plain(value) for key, value in asdict(done).items()}))
        return
    for line in _said(done, folder):
        typer.echo(plain(line))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _said(done: Enrolled, folder: Path) -> list[str]:
    made = {True: "kept, as it was there", False: "made"}
    return [
        f"node key      {made[done.kept_node_key]}: {folder / 'node.key'}",
        f"signing key   {made[done.kept_signing_key]}: {done.keys / 'identity'}",
        "Both are secret, and stay here: the coordinator never needs them. Keep them out of every"
        " kit, mail and backup that others can read.",
        f"Give the coordinator {done.request}. What you get for it, copy into {folder}.",
        "Then compare the roster's words with the other administrators: `confide client roster"
        f" {folder / 'roster.toml'}`.",
    ]


def roster(
    file: Annotated[Path, typer.Argument(help="The roster.toml that came with the kit.")],
    *,
    policy: Annotated[
        Path | None, typer.Option(help="Your policy.toml: whether it names this roster.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the members of secure sums, the words to compare by telephone, and the policy's line.

    Exit status 1: the policy named with --policy has another roster, or none.
    """
    from ...common.masking.enrolment import in_words, read_roster, roster_table
    from ..guard.policy_file import load_policy

    found = read_roster(file)
    wanted = f"sha256:{found.digest}"
    has = load_policy(policy).roster if policy else None
    if as_json:
        told = {} if has is None else {"policy": has, "policy_has_it": has == wanted}
        typer.echo(json.dumps(roster_table(found) | told))
    else:
        for line in in_words(found):
            typer.echo(line)
        typer.echo(_of_policy(has, wanted))
    if has not in (None, wanted):
        raise typer.Exit(1)


def _of_policy(has: str | None, wanted: str) -> str:
    if has is None:
        return "Write the last line into policy.toml once all administrators heard these words."
    if has == wanted:
        return "The policy has this roster."
    return f"The policy has {has or 'no roster'}: runs with secure sums are refused."
