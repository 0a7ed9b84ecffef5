"""The coordinator's commands, thin: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or 'latest'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Join the coordinator's commands to the command line."""
    report = typer.Typer(no_args_is_help=True, help="Show or verify the privacy report of a run.")
    report.command("show")(report_show)
    report.command("make")(report_make)
    report.command("verify")(report_verify)
    report.command("diff")(report_diff)
    app.add_typer(report, name="report")
    app.command("runs")(list_runs)
    app.command("predict")(predict_texts)
    app.command("explain")(explain_text)
    app.command("evaluate")(evaluate)
    app.command("export")(export)


def report_show(run: RunArgument = "latest", as_json: JsonOption = False) -> None:
    """Show the privacy report of a run, computing it if need be."""
    from rich.console import Console

    from .report import find_run, load_report
    from .report.build import build_report
    from .report.terminal import outcome, show

    folder = find_run(run)
    there = (folder / "report.json").is_file()
    report = load_report(folder) if there else build_report(folder, prv=False)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    show(report, console)
    page = folder / "report.html"
    if page.is_file():
        console.print(f"\nTo read and to print: {page}", markup=False, soft_wrap=True)
    console.print(outcome(report), markup=False, soft_wrap=True)


def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder of run folders.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List the runs in a folder, newest first: date, outcome, claim and score."""
    from rich.console import Console

    from ..common.errors import ConfideError
    from .report.runs import runs_in, show_runs

    rows = runs_in(folder)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], ensure_ascii=False))
        return
    if not rows:
        raise ConfideError(
            "run.missing",
            f"There is no run under {str(folder)!r}.",
            "Start one with `confide simulate`, or name the folder that has your runs.",
        )
    show_runs(rows, Console())


def report_diff(
    one: RunArgument,
    other: RunArgument,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: claims, scores, and the settings that differ."""
    from rich.console import Console

    from .report import find_run, load_report
    from .report.build import build_report
    from .report.runs import beside, beside_page, show_beside

    def report_of(run: str) -> dict[str, Any]:
        folder = find_run(run)
        there = (folder / "report.json").is_file()
        return load_report(folder) if there else build_report(folder, prv=False)

    found = beside(report_of(one), report_of(other))
    if html:
        html.write_text(beside_page(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    show_beside(found, Console())
    if html:
        typer.echo(f"Page: {html}")


def report_make(run: RunArgument = "latest") -> None:
    """Make report, page and model card again, for example after you filled in about.toml."""
    from .report import find_run
    from .report.build import write_report
    from .report.terminal import outcome

    folder = find_run(run)
    typer.echo(outcome(write_report(folder)))
    typer.echo(f"To read and to print: {folder / 'report.html'}")


def report_verify(
    run: RunArgument = "latest",
    ledger: Annotated[
        list[Path] | None,
        typer.Option(help="A holder's ledger, or a folder of ledgers; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the report again, from the run's files and the ledgers, and name every difference.

    Exit status 1: something differs. 3: not everything could be checked.
    """
    from rich.console import Console

    from .report import find_run
    from .report.terminal import show_verdict
    from .report.verify import verify_run

    verdict = verify_run(find_run(run), ledger or ())
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2, allow_nan=False))
    else:
        show_verdict(verdict, Console())
    if verdict.status:
        raise typer.Exit(verdict.status)


def predict_texts(
    run: RunArgument,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="The texts to answer.")],
    as_json: JsonOption = False,
) -> None:
    """Answer texts with the adapter of a run: a label, a number, or a written text."""
    from ..common.tasks import TASKS
    from .report import find_run
    from .run_folder import run_settings

    folder = find_run(run)
    from .predict import predict  # and torch with it

    task = TASKS[run_settings(folder).task.kind]
    for text, found in zip(texts, predict(folder, texts), strict=True):
        typer.echo(json.dumps(task.told(text, found)) if as_json else task.line(text, found))


def evaluate(
    run: RunArgument = "latest",
    file: Annotated[
        Path | None, typer.Argument(help="Records to score on. Default: the run's public text.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The file's column with the text. Default: the run's.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--label",
            help="Its column with the answers; '' for none. Default: the run's.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the adapter of a run on a file of public records."""
    from ..common.tasks import TASKS
    from ..common.text.readers import read_records
    from .report import find_run, metric_title, value_text
    from .run_folder import run_settings

    folder = find_run(run)
    if file is not None:
        settings = run_settings(folder)
        data, lists = settings.data, TASKS[settings.task.kind].lists
        columns = (data.text if text is None else text, data.target if target is None else target)
        read_records(file, text=columns[0], target=columns[1] or None, lists=lists, own_screen=True)
    from .predict import evaluate_run  # and torch with it

    score = evaluate_run(folder, file, text=text, target=target)
    if as_json:
        row = {"examples": score.examples, "loss": score.loss, "metric": score.metric}
        typer.echo(json.dumps({**row, **score.metrics}))
        return
    for name, value in score.metrics.items():
        typer.echo(f"{metric_title(name)}: {value_text(name, value)}")
    typer.echo(f"Loss: {score.loss:.4f}, on {score.examples} records")


def export(
    run: RunArgument,
    merged: Annotated[
        Path, typer.Option("--merged", metavar="FOLDER", help="A new folder for the model.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write base model and adapter as one model, which transformers loads without confide."""
    from .report import find_run

    folder = find_run(run)
    from .predict import export_merged

    export_merged(folder, merged)
    done = (
        json.dumps({"folder": str(merged)})
        if as_json
        else f"{merged}: README.md says how to use it"
    )
    typer.echo(done)


def explain_text(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to answer.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which words drove the answer to a text (integrated gradients)."""
    from rich.console import Console

    from ..common.errors import ConfideError
    from ..common.machine.installed import need
    from .report import find_run

    folder = find_run(run)
    need("captum")
    from .explain import (
        explain,  # and torch with it
        render,
        summary,
        terminal,
    )

    found = explain(folder, text)
    if html is not None:
        try:
            html.write_text(render(found), encoding="utf-8")
        except OSError as error:
            raise ConfideError(
                "explain.html", f"{html} cannot be written: {error.strerror}.", "Name another file."
            ) from None
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console()
    console.print(found.answer, style="bold", markup=False)
    console.print(terminal(found), soft_wrap=True)
    console.print(summary(found), markup=False, soft_wrap=True)
