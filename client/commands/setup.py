"""``confide client init``, ``check-policy`` and ``check-data``, before ``join_cli`` joins, and
``adapter``, after a run of personal ones.

Reads and writes on this machine alone; what comes before a run imports no torch; nothing of any
record is printed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...common.tasks import TASKS

if TYPE_CHECKING:
    from ..text.check_data import Findings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Text = Annotated[
    str, typer.Option(help="The column with the text; or several, separated by commas.")
]
Target = Annotated[
    str | None,
    typer.Option("--target", "--label", help="The column with the answers; '' for none."),
]
Person = Annotated[str, typer.Option(help="The column that tells persons apart.")]
NOTHING_LEFT = "This was read on this machine; nothing of it was sent or kept."


def add_commands(app: typer.Typer) -> None:
    """Join ``client`` to the command line."""
    from .enrol import add_commands as add_enrol
    from .join import add_commands as add_join
    from .runs import add_commands as add_runs

    client = typer.Typer(help="Set up a holder of private text.", no_args_is_help=True)
    client.command("init")(init)
    client.command("check-policy")(check_policy)
    client.command("check-data")(check_data)
    client.command("adapter")(adapter)
    add_enrol(client)
    add_join(client)
    add_runs(client)
    app.add_typer(client, name="client")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where policy.toml goes.")],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Your text, to propose what the policy says of it.")
    ] = None,
    text: Text = "text",
    target: Target = None,
    person: Person = "",
    as_json: AsJson = False,
) -> None:
    """Write policy.toml, with careful limits and a comment above each.

    It never replaces a file. With --data it also proposes what the policy says of your text, for
    you to approve.
    """
    from ..guard.policy_file import write_policy

    contract = None
    if data is not None:
        from ..text.check_data import propose_contract

        contract = propose_contract(data, text=text, label=target or "", person=person)
    path = write_policy(folder, contract)
    if as_json:
        typer.echo(json.dumps({"policy": str(path)}))
        return
    typer.echo(f"{path} written. Lower its limits to what you can answer for.")
    if contract is None:
        typer.echo("Fill in [data] at its end: without it every run is refused.")
    else:
        typer.echo("Read [data] at its end: it says what your text is, as far as the file shows.")
    typer.echo(f"Then `confide client check-policy {path}` says whether it can be read.")
    typer.echo(f"Next: `confide client check-data FILE --policy {path}` says what is in your text.")


def check_policy(
    file: Annotated[Path, typer.Argument(help="A policy.toml.")], *, as_json: AsJson = False
) -> None:
    """Read a policy as the holder will, and show its limits; a mark shows what you changed."""
    from ..guard.policy import Policy
    from ..guard.policy_file import load_policy, policy_table

    limits, usual = policy_table(load_policy(file)), policy_table(Policy())
    if as_json:
        typer.echo(json.dumps(limits))
        return
    width = max(map(len, limits))
    for key, value in limits.items():
        shown = json.dumps(list(value) if isinstance(value, tuple) else value)
        note = "" if value == usual.get(key, value) else "   (not the default)"
        typer.echo(f"{key:<{width}}  {shown}{note}")


def check_data(
    file: Annotated[Path, typer.Argument(help="A jsonl, csv, parquet or txt file.")],
    *,
    policy: Annotated[
        Path | None, typer.Option(help="Your policy.toml, to check the file against it.")
    ] = None,
    text: Text = "text",
    target: Target = None,
    person: Person = "",
    task: Annotated[str, typer.Option(help=f"What a run would learn: {', '.join(TASKS)}.")] = "",
    labels: Annotated[
        str, typer.Option(help="The run's labels, separated by commas: counts each.")
    ] = "",
    delta: Annotated[float, typer.Option(min=0, max=1, help="The delta of the run.")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Count what is in a file, and warn of what would stop or harm a run.

    Nothing leaves this machine.
    """
    from ..guard.policy_file import load_policy
    from ..text.check_data import check_data as check

    needs = task not in TASKS or TASKS[task].target == "needed"
    label = ("label" if needs else "") if target is None else target
    found = check(
        file,
        text=text,
        label=label or None,
        task=task,
        person=person or None,
        labels=[name.strip() for name in labels.split(",") if name.strip()],
        contract=load_policy(policy).data if policy else None,
        delta=delta,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        show_findings(found)


def adapter(
    file: Annotated[Path, typer.Argument(help="RUN.safetensors beside the ledger.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write this holder's own adapter of a run (aggregate.method = 'fedsa') as a PEFT adapter."""
    from ..training.personal import export_personal

    number = export_personal(file, folder)
    if as_json:
        typer.echo(json.dumps({"adapter": str(folder), "round": number}))
        return
    typer.echo(f"{folder} holds this holder's adapter after round {number}; it stays here.")


def of_broken(found: Findings) -> list[str]:
    """The rows that are not used, a line each: for the administrator's own screen."""
    more = found.unfit - len(found.broken)
    return [*found.broken, *([f"{more} more rows are not used, either."] if more else [])]


def show_findings(found: Findings) -> None:
    """Print what ``check_data`` found."""
    from rich.console import Console
    from rich.table import Table

    middle, most, longest = found.words
    table = Table(show_header=False, box=None)
    table.add_row("records", str(found.records))
    if found.unfit:
        table.add_row("not used", f"{found.unfit} rows that do not fit")
    if found.persons is not None:
        table.add_row("persons", f"{found.persons}, at most {found.most_of_a_person} records each")
    if found.labels:
        counts = ", ".join(f"{name} {count}".strip() for name, count in found.labels[:20])
        more = f" and {len(found.labels) - 20} more" if len(found.labels) > 20 else ""
        table.add_row("labels", f"{len(found.labels)}, with so many records: {counts}{more}")
    table.add_row("words a record", f"{middle:g} (median), {most} (95 %), {longest} (longest)")
    console = Console()
    console.print(table, markup=False)
    for warning in found.warnings:
        console.print(f"! {warning}", markup=False, highlight=False, soft_wrap=True)
    for line in of_broken(found):
        console.print(f"! {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(NOTHING_LEFT, markup=False, highlight=False, soft_wrap=True)
