"""``confide ledger``: what the holder's administrator or an auditor asks a ledger file, and the
door to ``confide client`` (``setup_cli``).

Reads ledgers only, never private text, and imports no torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..common.privacy.ledger import Entry
    from .site.budget import Spending

File = Annotated[Path, typer.Argument(help="The ledger file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def add_commands(app: typer.Typer) -> None:
    """Join ``ledger`` and ``client`` to the command line."""
    from .commands.setup import add_commands as add_setup

    ledger = typer.Typer(help="Read, check and export a privacy ledger.")
    ledger.command("show")(show)
    ledger.command("verify")(verify)
    ledger.command("export")(export)
    ledger.command("new")(new)
    app.add_typer(ledger, name="ledger")
    add_setup(app)


def show(
    file: File,
    *,
    delta: Annotated[
        float | None, typer.Option(help="Delta of the figures. Default: the newest plan's.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Your policy.toml: shows what is left. Default: the one beside the ledger."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent, in all and by each run, and what is left."""
    from .guard.policy_file import FILE_NAME, load_policy
    from .site.budget import left_of, read_spending
    from .site.users import as_owner_of

    spending, beside = read_spending(file), file.with_name(FILE_NAME)
    named = policy or (beside if beside.is_file() else None)
    left = []
    if named is not None:
        with as_owner_of(named.resolve().parent):
            limits = load_policy(named)
        left = left_of(spending, limits)
    summary = _summary(spending, delta) | {"left": [one.to_json() for one in left]}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    _print_summary(summary)
    if not left:
        typer.echo("Name your policy with --policy to see what is left.")
    for one in left:
        typer.echo(one.in_words())


def new(
    file: File,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Make a ledger for text that has never taken part in a run. `client join` makes one itself."""
    from ..common.errors import ConfideError
    from .site.budget import make_ledger
    from .site.users import as_owner_of

    with as_owner_of(file.resolve().parent):
        if file.exists() or file.is_symlink():
            raise ConfideError(
                "ledger.exists",
                f"{file} exists already.",
                "A ledger is never replaced: name a new file.",
            )
        typer.echo("A new ledger is empty: what was spent before would be spent again.")
        if not yes and not typer.confirm("Make it?"):
            raise typer.Exit(1)
        make_ledger(file)
    typer.echo(str(file))


def verify(
    file: File,
    *,
    head: Annotated[
        str, typer.Option(help="The head of a receipt: the ledger must still contain it.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check every entry. If anything is wrong, say what, with exit status 1."""
    from ..common.errors import ConfideError
    from ..common.privacy import ledger
    from .site.users import as_owner_of

    with as_owner_of(file.resolve().parent):
        verdict = ledger.verify(file, known_head=head)
    if as_json:
        fields = ("ok", "ledger_id", "entries", "head", "problem")
        typer.echo(json.dumps({name: getattr(verdict, name) for name in fields}))
        if not verdict.ok:
            raise typer.Exit(1)
        return
    if not verdict.ok:
        raise ConfideError("ledger.corrupt", verdict.problem, "Do not train with this ledger.")
    typer.echo(f"sound: {verdict.entries} entries, head {verdict.head}")
    if not head:
        typer.echo("Compare the head with the newest receipt: an older copy looks as sound.")


def export(
    file: File,
    *,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; it must not exist. Default: print.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export every entry with its hash, one JSON object per line, for an auditor to recompute."""
    from ..common.errors import ConfideError
    from .site.budget import read_spending

    entries = read_spending(file).entries
    rows = [{"number": e.number, "hash": e.hash, "payload": e.payload} for e in entries]
    text = json.dumps(rows) if as_json else "\n".join(json.dumps(row) for row in rows)
    if out is None:
        typer.echo(text)
        return
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except OSError as error:
        raise ConfideError(
            "ledger.export", f"{out} cannot be written: {error.strerror}.", "Choose another file."
        ) from error
    typer.echo(str(out))


def _summary(spending: Spending, delta: float | None) -> dict[str, Any]:
    """Figures of one ledger; an epsilon is None where it is infinite or nothing tells delta."""
    entries, book = spending.entries, spending.book
    charged = [e for e in entries if e.payload["state"] == "reserved"]
    delta = spending.newest_delta if delta is None else delta
    unit = book.unit
    return {
        "ledger": book.ledger_id,
        "head": book.head,
        "entries": len(entries),
        "text": book.identity or None,
        "unit": unit[0] if unit else None,
        "person": unit[1] if unit else None,
        "delta": delta,
        "epsilon": _epsilon(spending, delta, None),
        "runs": [_run(spending, run, charged, delta) for run in _runs(charged)],
    }


def _runs(charged: list[Entry]) -> list[str]:
    return list(dict.fromkeys(e.payload["run"] for e in charged))


def _run(spending: Spending, run: str, charged: list[Entry], delta: float | None) -> dict[str, Any]:
    tasks = {e.payload["task"] for e in charged if e.payload["run"] == run}
    released = [e for e in spending.entries if e.payload["state"] == "released"]
    return {
        "run": run,
        "charged": len(tasks),
        "released": sum(e.payload["task"] in tasks for e in released),
        "steps": [s.to_json() for s in spending.book.steps(run)],
        "code": sorted({e.payload["bundle"] for e in charged if e.payload["run"] == run}),
        "epsilon": _epsilon(spending, delta, run),
    }


def _epsilon(spending: Spending, delta: float | None, run: str | None) -> float | None:
    if delta is None:
        return None
    epsilon = spending.epsilon(delta, run)
    return epsilon if math.isfinite(epsilon) else None


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..common.privacy.ledger import in_words
    from .commands.terminal import plain

    def text(epsilon: float | None) -> str:
        return "infinite: not private" if epsilon is None else f"{epsilon:.4f}"

    console = Console()
    console.print(f"ledger {summary['ledger']}, {summary['entries']} entries", highlight=False)
    console.print(f"head   {summary['head']}", highlight=False, soft_wrap=True)
    if not summary["runs"]:
        console.print("Nothing was spent.")
        return
    table = Table("run", "charged", "released", "steps", f"epsilon at {summary['delta']:g}")
    for run in summary["runs"]:
        steps = sum(s["steps"] for s in run["steps"])
        counts = (str(run["charged"]), str(run["released"]), str(steps))
        table.add_row(escape(plain(run["run"])), *counts, text(run["epsilon"]))
    console.print(table)
    per = f" per {in_words(summary['unit'], summary['person'])}" if summary["unit"] else ""
    total = f"spent in all: epsilon = {text(summary['epsilon'])}{per}"
    console.print(plain(total), highlight=False, markup=False)
    for line in _told_of_code(summary["runs"]):
        console.print(plain(line), highlight=False, markup=False, soft_wrap=True)


def _told_of_code(runs: list[dict[str, Any]]) -> list[str]:
    """Which code trained, by the SHA-256 that each charge booked; the newest last."""
    from ..common.machine.installed import code_hash

    codes = dict.fromkeys(code for run in runs for code in run["code"])
    of = {code: [run["run"] for run in runs if code in run["code"]] for code in codes}
    here = code_hash()
    return [
        f"trained by the confide of SHA-256 {code or 'unknown'}"
        f"{' (the one installed here)' if code == here else ''}: {', '.join(named)}"
        for code, named in of.items()
    ]
