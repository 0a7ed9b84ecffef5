"""``confide doctor``: what is not private or not sound in a configuration or a run. Thin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..common.errors import ConfideError
    from .doctor import Diagnosis

Target = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|RUN",
        help="A scenario's name, a .toml or .json file, a run folder, or 'latest'.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Join ``doctor`` to the command line."""
    app.command("doctor")(doctor)


def doctor(
    target: Target,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    with_model: Annotated[
        bool, typer.Option("--model/--no-model", help="Load the model and check its gradients.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is not private or not sound in settings or a run, why, and what to do.

    Of settings it also says what would stop a run at once. Exit status 1: something is not private,
    or the run could not start.
    """
    from ..server.doctor import Severity
    from .doctor import diagnose, objection, unseen

    diagnosis = diagnose(target, changes or [])
    unknown = unseen(diagnosis)
    if not as_json:
        _show(diagnosis)
        if unknown:
            typer.echo(f"\nThe model was not checked: {unknown}")
    error = objection(diagnosis, with_model=with_model)
    if as_json:
        typer.echo(json.dumps(_to_json(diagnosis, error), ensure_ascii=False))
    if error and not as_json:
        raise error
    if error or any(f.severity is Severity.NOT_PRIVATE for f in diagnosis.findings):
        raise typer.Exit(1)


def _to_json(diagnosis: Diagnosis, error: ConfideError | None) -> dict[str, object]:
    from ..server.doctor import GUARDS

    told = {"code": error.code, "message": error.message, "hint": error.hint} if error else None
    return {
        "cannot_run": told,
        "subject": diagnosis.subject,
        "facts": diagnosis.facts.source,
        "findings": [finding.to_json() for finding in diagnosis.findings],
        "cannot_happen": [guard.to_json() for guard in GUARDS],
    }


def _show(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.text import Text

    from ..server.doctor import GUARDS, Severity
    from ..server.report import plain

    styles = {Severity.NOT_PRIVATE: "bold red", Severity.NOT_SOUND: "yellow", Severity.NOTE: "cyan"}
    console = Console(highlight=False)
    source = f"; sizes from {diagnosis.facts.source}" if diagnosis.facts.source else ""
    console.print(plain(f"Looked at {diagnosis.subject}{source}."), markup=False)
    for finding in diagnosis.findings:
        head = Text(f"\n{finding.severity.upper()}", style=styles[finding.severity])
        console.print(head.append(f"  [{finding.name}] {plain(finding.what)}", style="none"))
        told = f"  why: {finding.why}\n  fix: {finding.fix}"
        console.print(plain(told), markup=False)
    if not diagnosis.findings:
        console.print("No problem was found.")
    console.print("\nWhat no setting of confide can bring about:")
    for guard in GUARDS:
        console.print(f"  - {guard.fault}: {guard.guard}.", markup=False)
