"""``confide budget``: what a budget buys, and what steps have spent; ``confide settings``: what
there is to set. No data is read, and torch is imported for the PRV figure alone, by ``--prv``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .privacy import Unit

if TYPE_CHECKING:
    from .privacy.advice import Choice
    from .settings.rule import Rule

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WithPrv = Annotated[bool, typer.Option("--prv", help="Show the PRV figure, too (slower).")]
Delta = Annotated[float, typer.Option(help="Delta; choose it well below 1 / units.")]
OfUnit = Annotated[Unit, typer.Option(help="What the promise protects.")]
Steps = Annotated[int, typer.Option(help="Steps in all: steps per round times rounds.")]


def add_commands(app: typer.Typer) -> None:
    """Join ``budget`` and ``settings`` to the command line."""
    budget = typer.Typer(help="Plan a privacy budget, or add up what is spent.")
    budget.command("plan")(plan)
    budget.command("spent")(spent)
    app.add_typer(budget, name="budget")
    app.command("settings")(settings)


def plan(
    *,
    epsilon: Annotated[float, typer.Option(help="The most that all steps may spend.")],
    delta: Delta,
    n: Annotated[
        int,
        typer.Option(
            "--records",
            "--units",
            min=1,
            help="Units (records or persons) of the smallest holder.",
        ),
    ],
    steps: Steps,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Units used in a step, on average. Default: all."),
    ] = None,
    unit: OfUnit = Unit.RECORD,
    least: Annotated[
        int,
        typer.Option(min=1, help="Contributions to a secure sum, at least; 1: without one."),
    ] = 1,
    colluding: Annotated[
        int, typer.Option(min=0, help="How many of them may tell the coordinator all they sent.")
    ] = 0,
    prv: WithPrv = False,
    as_json: AsJson = False,
) -> None:
    """Compute the noise multiplier that keeps all steps within EPSILON, and the rate to set.

    A table shows what other batches would need: for the same computing with --batch, for the same
    steps without it. With --least also the share of the noise that each holder adds to a secure
    sum, and the epsilon that is left if every mask fails.
    """
    from .privacy.accountant import epsilon_pld
    from .privacy.advice import advise, same_computing, same_steps
    from .privacy.plan import Plan, Trust

    rate = 1.0 if batch is None else min(1.0, batch / n)
    made = Plan.calibrate(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=rate,
        steps_per_round=1,
        max_rounds=steps,
        clip_norm=1.0,
        unit=unit,
        trust=Trust.DISTRIBUTED if least > 1 else Trust.LOCAL,
        least=least,
        colluding=colluding,
    )
    if unit is not Unit.HOLDER:
        made.check_units(n)
    figures = _figures(made.noise_multiplier, rate, steps, delta, unit, prv)
    figures["relation"] = str(made.relation)
    if least > 1:
        figures["share_multiplier"] = made.share_std
        figures["epsilon_unmasked"] = epsilon_pld([made.unmasked(steps)], delta)
    pairs = same_steps(n, steps) if batch is None else same_computing(n, batch, steps)
    choices = advise(pairs, epsilon=epsilon, delta=delta, units=n)
    if as_json:
        advice = [choice.to_json() for choice in choices]
        typer.echo(json.dumps(figures | {"advice": advice}))
        return
    _show(figures, as_json)
    same = "as many steps" if batch is None else "as much computing"
    _show_advice(choices, min(batch or n, n), f"The same epsilon with {same}")


def spent(
    *,
    noise_multiplier: Annotated[float, typer.Option(help="Noise std / clip norm; 0: no noise.")],
    sampling_rate: Annotated[float, typer.Option(help="Chance that a step uses a unit.")],
    steps: Steps,
    delta: Delta,
    unit: OfUnit = Unit.RECORD,
    prv: WithPrv = False,
    as_json: AsJson = False,
) -> None:
    """Compute the epsilon that a number of noisy steps spends."""
    _show(_figures(noise_multiplier, sampling_rate, steps, delta, unit, prv), as_json)


def _figures(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float, unit: str, prv: bool
) -> dict[str, Any]:
    """``epsilon_*`` is None where it is infinite, since JSON has no infinity."""
    from .privacy import accountant

    taken = accountant.GaussianSteps(
        noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps
    )
    figures: dict[str, Any] = {
        "noise_multiplier": noise_multiplier,
        "sampling_rate": sampling_rate,
        "steps": steps,
        "delta": delta,
        "unit": unit,
        "relation": "add-or-remove-one",
        "epsilon_pld": accountant.epsilon_pld([taken], delta),
        "epsilon_rdp": accountant.epsilon_rdp([taken], delta),
    }
    if prv:
        figures["epsilon_prv"] = accountant.epsilon_prv([taken], delta)
    return {k: None if v == math.inf else v for k, v in figures.items()}


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    names = {
        "noise_multiplier": "noise multiplier",
        "sampling_rate": "sampling rate (train.rate)",
        "relation": "neighbouring",
        "epsilon_pld": "epsilon by PLD (the figure)",
        "epsilon_rdp": "epsilon by RDP (conservative)",
        "epsilon_prv": "epsilon by PRV (cross-check)",
        "share_multiplier": "share of one holder, by the clip norm",
        "epsilon_unmasked": "epsilon if every mask fails",
    }
    table = Table(show_header=False, box=None)
    for key, value in figures.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        table.add_row(names.get(key, key), "infinite: not private" if value is None else text)
    Console().print(table)


def _show_advice(choices: Sequence[Choice], chosen: int, title: str) -> None:
    """Noise per unit of signal (``privacy.advice``) beside the least of the table."""
    from rich.console import Console
    from rich.table import Table

    least = min(choice.noise_to_signal for choice in choices)
    table = Table("batch", "steps", "noise multiplier", "noise / signal", "", title=title)
    for choice in choices:
        marks = [
            word
            for word, true in (("least noise", choice.best), ("asked for", choice.batch == chosen))
            if true
        ]
        table.add_row(
            f"{choice.batch:,}",
            f"{choice.steps:,}",
            f"{choice.noise_multiplier:.3f}",
            f"{choice.noise_to_signal / least:.2f} x",
            ", ".join(marks),
        )
    console = Console()
    console.print(table)
    console.print(
        "Noise on one coordinate over all steps, for as much signal. With every unit in each step"
        " it is the same for any number of steps; fewer than ten rarely train.",
        highlight=False,
    )


def settings(
    key: Annotated[
        str,
        typer.Argument(help="A setting, its name in another library, or a table such as train."),
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema for settings files.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List settings: default, meaning, range, and what other libraries call them.

    The libraries are Hugging Face's (HF), PEFT, Opacus and Flower.
    """
    from .errors import ConfideError
    from .settings import hint, json_schema, rules
    from .settings.rule import found

    known = list(rules().values())
    chosen = found(key, known) if key else [(rule, "") for rule in known]
    if not chosen:
        raise ConfideError("settings.unknown-key", f"{key!r:.100} is not a setting.", hint(key))
    if schema or as_json:
        listed = [rule.to_json() for rule, _ in chosen]
        typer.echo(json.dumps(json_schema() if schema else listed, ensure_ascii=False))
        return
    _show_settings(chosen)


def _show_settings(chosen: Sequence[tuple[Rule, str]]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for rule, differs in chosen:
        head = Text(rule.key, style="bold")
        console.print(head.append(" = " + json.dumps(rule.default), style="none"))
        told = [rule.means, _values_of(rule), _usual_names(rule)]
        told += [f"Note: {differs}."] if "; it " in differs else []
        for line in filter(None, told):
            console.print(Padding(Text(line), (0, 0, 0, 4), expand=False))


def _values_of(rule: Rule) -> str:
    """Type and range in one line; options speak for themselves."""
    between = rule.range_in_words
    if rule.options:
        return f"One of: {between}"
    return f"{rule.type_in_words[0].upper()}{rule.type_in_words[1:]}{between and f' in {between}'}"


def _usual_names(rule: Rule) -> str:
    if not rule.usual:
        return ""
    names = (f"{lib} {name}{differs and f' ({differs})'}" for lib, name, differs in rule.usual)
    return f"Elsewhere: {'; '.join(names)}"
