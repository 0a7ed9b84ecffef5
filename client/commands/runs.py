"""``confide client runs``, ``allow``, ``deny`` and ``take-in``: the administrator's word on single
runs, and on a text that was changed.

On the holder's own machine, beside the ledger, as the user whose the ledger is. Imports no torch,
and nothing of it goes through the gateway.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..guard.runs import Decision

Where = Annotated[
    Path, typer.Argument(metavar="KIT|SOCKET", help="The kit, or the resident's socket.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
LedgerFile = Annotated[
    Path | None, typer.Option(help="The ledger. Default: the running resident's.")
]


def add_commands(client: typer.Typer) -> None:
    """Join the commands to ``confide client``."""
    client.command("runs")(runs)
    client.command("allow")(allow)
    client.command("deny")(deny)
    client.command("take-in")(take_in)


def runs(
    where: Where,
    *,
    ledger: LedgerFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs that asked for this text: purpose, epsilon asked and spent, what is left."""
    from ..guard.policy_file import load_policy
    from ..guard.runs import asked, decisions
    from ..site.budget import left_of, read_spending
    from ..site.users import as_owner_of

    file, policy = _files(where, ledger)
    with as_owner_of(file.resolve().parent):
        waiting, said = asked(file), decisions(file)
        limits = load_policy(policy) if policy else None
    spending = read_spending(file)
    delta = spending.newest_delta
    spent = {run: spending.epsilon(delta, run) for run in spending.runs} if delta else {}
    rows = [
        {
            "run": run,
            "coordinator": waiting[run].coordinator if run in waiting else None,
            "task": waiting[run].task if run in waiting else None,
            "asked": _finite(waiting[run].epsilon) if run in waiting else None,
            "delta": waiting[run].delta if run in waiting else delta,
            "spent": _finite(spent.get(run, 0.0)),
            "said": said.get(run),
        }
        for run in dict.fromkeys([*spending.runs, *waiting, *said])
    ]
    left = [one.in_words() for one in left_of(spending, limits)] if limits else []
    if as_json:
        typer.echo(json.dumps({"runs": rows, "left": left}))
    else:
        _show(rows, left)


def allow(where: Where, run: Run, *, ledger: LedgerFile = None) -> None:
    """Allow a run, from its next request on."""
    from ..guard.runs import Decision

    _decide(where, run, Decision.ALLOWED, ledger)


def deny(where: Where, run: Run, *, ledger: LedgerFile = None) -> None:
    """Deny a run, at any time: no further request of it is answered.

    What it got before, it keeps.
    """
    from ..guard.runs import Decision

    _decide(where, run, Decision.DENIED, ledger)


def take_in(
    where: Where,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Check a text that has changed, and let runs use it as it is now."""
    from ..guard.contract import missing
    from ..guard.policy_file import load_policy
    from ..site.users import as_owner_of
    from ..text.check_data import check_data
    from ..text.taken import take_in as take
    from .setup import show_findings

    report = _own_report(where)
    data, ledger = Path(report["data_file"]), Path(report["ledger_file"])
    with as_owner_of(ledger.resolve().parent):
        limits = load_policy(Path(report["policy_file"]))
        if limits.data is None:
            raise missing()
        found = check_data(data, contract=limits.data, delta=limits.max_delta)
    show_findings(found)
    if not yes and not typer.confirm("Shall runs use it as it is now?"):
        typer.echo("Nothing was changed.")
        raise typer.Exit(1)
    with as_owner_of(ledger.resolve().parent):
        take(data, ledger)
    typer.echo(f"{data} is taken in as it is now.")


def _decide(where: Path, run: str, decision: Decision, ledger: Path | None) -> None:
    from ..guard.runs import decide
    from ..site.users import as_owner_of

    file, _ = _files(where, ledger)
    with as_owner_of(file.resolve().parent):
        decide(run, decision, file)
    typer.echo(f"{run} is {decision}, from its next request on.")


def _files(where: Path, ledger: Path | None) -> tuple[Path, Path | None]:
    """The ledger and the policy: as named, or as the running resident says.

    Raises:
        ConfideError: ``runs.ledger``, or that nobody answers.
    """
    if ledger is not None:
        return ledger, None
    report = _own_report(where)
    return Path(report["ledger_file"]), Path(report["policy_file"])


def _own_report(where: Path) -> dict[str, Any]:
    """What the running resident says to its own user."""
    from ...common.errors import ConfideError
    from ..site.join import socket_at, status

    report = status(socket_at(where))
    if "ledger_file" not in report:
        raise ConfideError(
            "runs.ledger",
            "The resident tells where its ledger lies to root and to its own user alone.",
            "Run this as one of them, or name the ledger with --ledger.",
        )
    return report


def _finite(epsilon: float) -> float | None:
    """None for what JSON cannot say: an epsilon without noise."""
    return epsilon if math.isfinite(epsilon) else None


def _show(rows: list[dict[str, Any]], left: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not rows:
        console.print("No run has asked so far.")
    else:
        table = Table("run", "from", "learns", "asks epsilon", "spent", "you said")
        for row in rows:
            told = (row["run"], row["coordinator"], row["task"])
            asks = "-" if row["task"] is None else _epsilon(row["asked"])
            table.add_row(
                *map(_shown, told), asks, _epsilon(row["spent"]), row["said"] or "nothing"
            )
        console.print(table)
    for line in left:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"


def _shown(word: str | None) -> str:
    """What a coordinator chose, without what would command a terminal or rich."""
    from rich.markup import escape

    from .terminal import plain

    return escape(plain(word or "-"))
