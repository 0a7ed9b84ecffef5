"""The commands of simulations: ``confide simulate``, ``tune``, ``bench``, and the entries of
``confide assets`` (``assets_cli``) and ``confide doctor`` (``doctor_cli``)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .tune_cli import tune

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from ..common.settings import Scalar
    from ..server.results import Run

# What the demo needs.
_DEFAULT = "nyt"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
What = Annotated[
    str,
    typer.Argument(
        metavar="SETTINGS", help="A scenario's name, a file of settings, or a run folder."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    from .assets_cli import add_commands as add_assets
    from .deploy_cli import add_commands as add_server
    from .doctor import add_commands as add_doctor

    add_assets(app)
    app.command("simulate")(simulate)
    app.command("tune")(tune)
    bench = typer.Typer(help="Benchmarks; each prints a table.", no_args_is_help=True)
    bench.callback()(lambda: None)
    bench.command("utility")(bench_utility)
    bench.command("step")(bench_step)
    bench.command("ledger")(bench_ledger)
    bench.command("report")(bench_report)
    bench.command("sum")(bench_sum)
    app.add_typer(bench, name="bench")
    add_doctor(app)
    add_server(app)


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
]


def simulate(
    scenario: What = _DEFAULT,
    changes: Set = None,
    yardsticks: Annotated[
        bool, typer.Option("--yardsticks", help="Also train the baselines to compare the run with.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a federation on this machine with Flower's simulation engine and a live display."""
    from rich.console import Console

    from .display import Display
    from .simulation import Simulation

    simulation = Simulation.of(scenario, changes or [])
    settings = simulation.settings
    console = Console(stderr=True)
    with console.status("looking at the model"):
        simulation.check_model()
    with Display(console, settings.round.count, settings.privacy.epsilon) as display:
        try:
            run = simulation.run("flower", display.show)
        except KeyboardInterrupt:
            hint = "Stopped. To go on: --set run.resume=FOLDER with the run's folder in"
            console.print(f"{hint} {settings.run.out}/", markup=False)
            raise
    if yardsticks:
        _measure_yardsticks(run.path, simulation.config, console)
    _show_outcome(run, as_json)


def _measure_yardsticks(folder: Path, config: Mapping[str, Scalar], console: Console) -> None:
    from ..server.report.build import write_report
    from .yardsticks import measure

    with console.status("yardsticks") as status:
        measure(folder, config, lambda name: status.update(f"yardstick: {name}"))
    write_report(folder)


def _show_outcome(run: Run, as_json: bool) -> None:
    from ..server.report.terminal import outcome

    report, claim = run.report, run.claim
    if as_json:
        metric = report["utility"]["metric"]
        told = {when: report["utility"][when][metric] for when in ("before", "after")}
        told |= {name: claim[name] for name in ("sentence", "epsilon", "delta")}
        told |= {name: report["run"][name] for name in ("rounds", "rounds_planned")}
        typer.echo(json.dumps({"run": str(run.path), "metric": metric, **told}))
        return
    typer.echo(f"{claim['sentence']}\nRun folder: {run.path}\n{outcome(report)}")


def bench_utility(
    scenario: What = "movies",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row.")] = 5,
    methods: Annotated[
        str, typer.Option(help="Values of aggregate.method, or head; or all.")
    ] = "ffa,head",
    epsilons: Annotated[
        str, typer.Option(help="Numbers, or off (no noise), separated by commas.")
    ] = "off,8,3,1",
    partitions: Annotated[
        str,
        typer.Option(
            help="iid, dirichlet, natural (by user), separated by commas. Default: the scenario's."
        ),
    ] = "own",
    tune_rates: Annotated[
        int,
        typer.Option(
            min=0, help="Learning rates to try for each method and epsilon; 0: no tuning."
        ),
    ] = 0,
    trusts: Annotated[
        str,
        typer.Option(
            help="Who adds the noise: local, distributed (in shares), central (one trusted place);"
            " separated by commas."
        ),
    ] = "local",
    rates_from: Annotated[
        str, typer.Option(help="The scenario on whose public text learning rates are chosen.")
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of training records. Default: the scenario's."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep runs in this .jsonl file, and skip those that are in it."),
    ] = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy by method, epsilon and partition, with 95 % intervals over seeds."""
    from dataclasses import replace

    from rich.console import Console

    from .benchmarks import places, results, utility
    from .scenario import load_scenario

    chosen, known = load_scenario(scenario, changes or []), [places.OWN, *places.PARTITIONS]
    compared = _each_of(methods, utility.compared_methods(), "method")
    promised = [_epsilon(e.strip()) for e in epsilons.split(",")]
    kept = results.Results(out)
    fit, unfit = places.that_fit(chosen, _each_of(partitions, known, "partition"), limit)
    for reason in unfit:
        typer.echo(reason, err=True)
    table = utility.Table(
        scenario=chosen,
        methods=compared,
        epsilons=promised,
        places=fit,
        seeds=seeds,
        trials=tune_rates,
        trusts=_each_of(trusts, utility.TRUSTS, "trust"),
    )
    if rates_from:
        other = load_scenario(rates_from, changes or [])
        places.check_rates(other, chosen, tune_rates)
        elsewhere, _ = places.that_fit(other, [places.OWN], limit)
        rival = replace(table, scenario=other, places=elsewhere, whole=True)
        table = replace(table, other=rival)
    with Console(stderr=True).status("utility") as status:
        found = utility.utility(table, kept, status.update)
    if as_json:
        for row in found:
            typer.echo(json.dumps(row.to_json()))
        return
    typer.echo(results.markdown(found))
    if len(compared) > 1 and len(promised) > 1:
        typer.echo(f"\n{results.overview(found)}")


def bench_step(
    models: Annotated[str, typer.Option(help="Model shapes, separated by commas; or all.")] = "all",
    engines: Annotated[
        str,
        typer.Option(
            help="Engines to time, separated by commas; or all. Plain PEFT is always timed."
        ),
    ] = "all",
    batch: Annotated[int, typer.Option(min=2, help="Examples per step.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per example.")] = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="Steps per engine, interleaved.")] = 9,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: torch decides.")] = 1,
    dtype: Annotated[str, typer.Option(help="The frozen base: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    epoch: Annotated[
        bool, typer.Option("--epoch", help="Also time an epoch of the demo's text.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure time and memory of a private step with each engine, relative to plain PEFT."""
    from rich.console import Console

    from .benchmarks.engines import ENGINES
    from .benchmarks.epoch import epoch_rows
    from .benchmarks.pairs import HEADER, line
    from .benchmarks.step import step_rows
    from .benchmarks.workload import DEVICES, DTYPES, MODELS, Setup
    from .scenario import load_scenario

    setup = Setup(
        batch=batch,
        tokens=tokens,
        dtype=_one_of(dtype, DTYPES, "dtype"),
        device=_one_of(device, DEVICES, "device"),
        threads=threads,
    )
    shapes = [MODELS[name] for name in _each_of(models, MODELS, "model")]
    chosen = [ENGINES[name] for name in _each_of(engines, ENGINES, "engine")]
    if not as_json:
        typer.echo(HEADER)
    with Console(stderr=True).status("step") as status:
        say = status.update
        parts = [step_rows(shapes, chosen, setup, repetitions=repetitions, say=say)]
        if epoch:
            demo = load_scenario(_DEFAULT)
            parts.append(epoch_rows(demo, repetitions=repetitions, threads=threads, say=say))
        for row in itertools.chain(*parts):
            typer.echo(json.dumps(row.to_json()) if as_json else line(row))


def bench_ledger(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per row.")] = 300,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="A folder on the disk to measure. Default: the system's temporary folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the time of a ledger's charge and release, far from the limit and near it."""
    import tempfile

    from rich.console import Console

    from .benchmarks import ledger

    with (
        tempfile.TemporaryDirectory(prefix="confide-ledger-", dir=folder) as scratch,
        Console(stderr=True).status("ledger") as status,
    ):
        rows = list(ledger.ledger_rows(Path(scratch), rounds=rounds, say=status.update))
        syncs = ledger.sync_times(Path(scratch), rounds)
    if as_json:
        typer.echo(json.dumps({"rows": [row.to_json() for row in rows], "syncs": syncs}))
        return
    typer.echo("\n".join([ledger.HEADER, *(ledger.line(row) for row in rows)]))
    typer.echo(f"\n{ledger.summary(syncs)}")


def bench_report(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the made-up run.")] = 10_000,
    holders: Annotated[
        int, typer.Option(min=1, help="Number of holders, each of its own size.")
    ] = 1_000,
    asked: Annotated[int, typer.Option(min=0, help="Holders drawn for each round; 0: all.")] = 100,
    as_json: Json = False,
) -> None:
    """Measure time and memory of the privacy report of a made-up run."""
    from rich.console import Console

    from .benchmarks.report import HEADER, line, report_row

    with Console(stderr=True).status("report") as status:
        row = report_row(
            rounds=rounds,
            holders=holders,
            asked=min(asked or holders, holders),
            say=status.update,
        )
    typer.echo(json.dumps(row.to_json()) if as_json else f"{HEADER}\n{line(row)}")


def bench_sum(
    most: Annotated[int, typer.Option(min=0, help="Maximum number of values; 0: all.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure the processor time and bytes of a secure sum, beside a model of SecAgg+'s."""
    from rich.console import Console

    from .benchmarks.secure_sum import HEADER, line, sum_rows

    with Console(stderr=True).status("sum") as status:
        rows = list(sum_rows(status.update, most=most))
    if as_json:
        typer.echo(json.dumps([row.to_json() for row in rows]))
        return
    typer.echo("\n".join([HEADER, *(line(row) for row in rows)]))


def _each_of(names: str, known: Iterable[str], what: str) -> list[str]:
    if names == "all":
        return list(known)
    return [_one_of(name.strip(), known, what) for name in names.split(",")]


def _one_of(name: str, known: Iterable[str], what: str) -> str:
    from ..common.errors import ConfideError, nearest

    if name not in set(known):
        raise ConfideError(f"bench.{what}", f"{name!r} is no {what}.", nearest(name, known))
    return name


def _epsilon(text: str) -> float | None:
    from ..common.errors import ConfideError

    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfideError(
            "bench.epsilon", f"{text!r} is not an epsilon.", "Write a number, or off."
        ) from None
