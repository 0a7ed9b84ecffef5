"""``confide doctor``, and what it is to examine: a scenario, a configuration, or a run folder.

A prepared federation in the cache, which is public text, shows how much each holder has. A model
folder in the cache shows how many values are trained. Neither is fetched or changed, and only the
numbers of records and persons are kept of the text. ``objection`` says beforehand what would end a
run: its folder, its text, or the model, which is loaded and checked as a holder does before the
first charge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..common.errors import ConfideError
from ..common.machine.paths import local_or_cached
from ..common.methods import method_of
from ..common.settings import Settings, from_flat
from ..common.tasks import TASKS
from ..common.text.benchmarks import BENCHMARKS
from ..server.doctor import Facts, Finding, noise, privacy, sort
from ..server.doctor.federation import facts_of
from ..server.doctor.run import examine_run
from ..server.report import find_run
from .ready import (
    agreed_by,
    asset_of,
    check_file,
    check_files,
    check_model,
    check_place,
    check_text,
)
from .scenario import Scenario, load_scenario, run_config

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


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was examined, in words, and the findings, worst first. If it has not run yet, also its
    settings, and the scenario if there is one."""

    subject: str
    facts: Facts
    findings: tuple[Finding, ...]
    settings: Settings | None = None
    scenario: Scenario | None = None


def diagnose(target: str, changes: Sequence[str] = ()) -> Diagnosis:
    """Examine a scenario's name, a .toml or .json file, a run folder, or ``latest``; the first two
    with ``KEY=VALUE`` changes.

    Raises:
        ConfideError: ``doctor.target`` for anything else, and what reading one raises.
    """
    if target == "latest" or Path(target).is_dir():
        if changes:
            _refuse(f"--set {changes[0]!r:.100} changes what is yet to run, and {target} has run")
        folder = find_run(target)
        facts, found = examine_run(folder)
        subject = f"the run {folder.resolve().name}"
        return Diagnosis(subject=subject, facts=facts, findings=tuple(found))
    subject, settings, scenario = _configuration(target, changes)
    facts = facts_of(settings)
    told = scenario.text.holders if scenario.federation else 0
    facts = replace(facts, holders=facts.holders or told, trained=_trained_values(settings))
    rules = (*privacy.rules(settings, facts), *noise.rules(settings, facts))
    return Diagnosis(
        subject=subject,
        facts=facts,
        findings=tuple(sort(rules)),
        settings=settings,
        scenario=scenario,
    )


def unseen(diagnosis: Diagnosis) -> str:
    """In words, why the model cannot be examined: it is not here, but could be fetched. Else
    empty."""
    if diagnosis.settings is None:
        return ""
    name = diagnosis.settings.model.name
    asset = "" if local_or_cached(name, "models") else asset_of(name)
    return f"{name} is not in the cache; run: confide assets fetch {asset}" if asset else ""


def objection(diagnosis: Diagnosis, *, with_model: bool = True) -> ConfideError | None:
    """The error that would end a run before or in its first round, as far as it can be known here.
    The check of a very large model may be left out."""
    settings = diagnosis.settings
    if settings is None:
        return None
    try:
        check_place(settings)
        _check_text(settings, diagnosis.scenario)
        if not unseen(diagnosis):
            check_files(settings.model.name)
            if with_model:
                check_model(settings)
    except ConfideError as error:
        return error
    return None


def _check_text(settings: Settings, scenario: Scenario | None) -> None:
    """Check the prepared text, or the files that it would be made of."""
    files = scenario.files if scenario else None
    if files is None:
        folder = local_or_cached(settings.data.path, "federations")
        if folder is not None:
            check_text(folder, settings)
        return
    agreed = replace(agreed_by(settings), text=files.text, target=files.target, person=files.person)
    for file in (files.train, files.val):
        check_file(file, settings, agreed)


# --- the settings ---


def _configuration(target: str, changes: Sequence[str]) -> tuple[str, Settings, Scenario]:
    """The configuration in words, its settings, and their scenario."""
    if not target.endswith((".toml", ".json")) and "/" in target and target not in BENCHMARKS:
        _refuse(f"There is no folder {target}")
    scenario = load_scenario(target, changes)
    return f"the settings of {target}", from_flat(run_config(scenario)), scenario


def _refuse(what: str) -> NoReturn:
    raise ConfideError(
        "doctor.target",
        f"{what}.",
        "Give a scenario's name, a .toml file of settings, a task description, a run folder, or"
        " 'latest'.",
    )


# --- the facts ---


def _trained_values(settings: Settings) -> int:
    """How many values are trained, from a model's config.json; 0 if that is not known, or if
    adapters are not at the attention's query and value alone.

    A LoRA factor of a projection from h to h features has rank * h values.
    """
    folder = local_or_cached(settings.model.name, "models")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return 0
    width = config.get("hidden_size") or config.get("dim") or config.get("n_embd") or 0
    depth = config.get("num_hidden_layers") or config.get("n_layers") or config.get("n_layer") or 0
    if not width or not depth or settings.lora.targets or settings.task.pooling != "mean":
        return 0
    head = (width + 1) * len(TASKS[settings.task.kind].head_labels(settings.task))
    if settings.lora.method == "head":
        return int(head)
    layers = min(settings.lora.layers or depth, depth)
    factors = len(method_of(settings.aggregate.method).factors(1))
    return int(head + 2 * layers * factors * settings.lora.rank * width)
