"""The commands of this room: ``confide assets fetch|list|unpack``, ``simulate``, ``tune``,
``bench``, and the door to ``confide doctor`` (``doctor_cli``)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .tune_cli import tune

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from ..common.settings import Scalar
    from .assets import Asset
    from .made import Made
    from .scenario import Scenario

# What the demo needs.
_DEFAULT = "nyt"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Assets, or scenarios: all that they need. Without any: the demo's."),
]


def add_commands(app: typer.Typer) -> None:
    """Join this room's commands to the command line."""
    from .deploy_cli import add_commands as add_server
    from .doctor_cli import add_commands as add_doctor

    assets = typer.Typer(help="Public models and text for simulations.", no_args_is_help=True)
    assets.command("fetch")(fetch)
    assets.command("list")(show)
    assets.command("unpack")(unpack)
    app.add_typer(assets, name="assets")
    app.command("simulate")(simulate)
    app.command("tune")(tune)
    bench = typer.Typer(help="Benchmarks; each prints a table.", no_args_is_help=True)
    bench.callback()(lambda: None)
    bench.command("utility")(bench_utility)
    bench.command("step")(bench_step)
    bench.command("ledger")(bench_ledger)
    bench.command("report")(bench_report)
    app.add_typer(bench, name="bench")
    add_doctor(app)
    add_server(app)


def fetch(names: Names = None, as_json: Json = False) -> None:
    """Fetch or make models and text, check them, prepare federations. What is there stays."""
    from rich.console import Console

    from .assets import Asset
    from .assets import fetch as fetch_asset
    from .made import make
    from .scenario import prepare

    assets, scenarios = _wanted(names or [_DEFAULT])
    done: list[dict[str, Any]] = []
    for asset in assets:
        with Console(stderr=True).status(asset.name):
            fetched = fetch_asset(asset) if isinstance(asset, Asset) else make(asset)
        done.append({"name": asset.name, "path": str(asset.folder), "fetched": fetched})
        if not as_json:
            new = "fetched and checked" if isinstance(asset, Asset) else "made"
            typer.echo(f"{asset.name}: {new if fetched else 'there already'}, {asset.folder}")
    made = [{"name": item.federation, "path": str(prepare(item))} for item in scenarios]
    if as_json:
        typer.echo(json.dumps({"assets": done, "federations": made}))
        return
    for federation in made:
        typer.echo(f"{federation['name']}: prepared, {federation['path']}")


def show(as_json: Json = False) -> None:
    """List what can be fetched or made, with licence and source."""
    from .assets import ASSETS, is_present
    from .made import MADE, is_made

    present: list[tuple[Asset | Made, bool]] = [
        *((asset, is_present(asset)) for asset in ASSETS.values()),
        *((made, is_made(made)) for made in MADE.values()),
    ]
    rows = [
        {
            "name": asset.name,
            "title": asset.title,
            "licence": asset.licence,
            "source": asset.source,
            "path": str(asset.folder),
            "fetched": there,
        }
        for asset, there in present
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        state = f"in {row['path']}" if row["fetched"] else "not fetched"
        typer.echo(f"{row['name']}  {row['title']}\n    licence: {row['licence']}")
        typer.echo(f"    source:  {row['source']}\n    cache:   {state}")


def unpack(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="A new folder, to be named as model.name.")],
) -> None:
    """Write the model of a GGUF file as a plain model folder, in float16."""
    from ..common.errors import ConfideError
    from .gguf import unpack as write_model
    from .staging import staged

    if folder.exists():
        raise ConfideError(
            "assets.gguf", f"{folder} is there, and is never overwritten.", "Name another folder."
        )
    with staged(folder) as new:
        write_model(file, new)
    typer.echo(f"Unpacked. Use it with --set model.name={folder}")


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting that differs; may be repeated."),
]


def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or file.")] = _DEFAULT,
    changes: Set = None,
    yardsticks: Annotated[
        bool, typer.Option("--yardsticks", help="Also train what the run is to be held against.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a federation on this machine, by Flower's simulation engine, with a live display."""
    from rich.console import Console

    from ..common.settings import from_flat
    from .display import Display
    from .flower import simulate as run_flower
    from .ready import check_model, check_start, check_text
    from .scenario import load_scenario, run_config, text_of, with_batch

    chosen = load_scenario(scenario)
    config = run_config(chosen, changes or [])
    settings = from_flat(config)
    check_start(settings)
    text = check_text(text_of(chosen, settings), settings)
    config = with_batch(config, chosen, changes or [], text)
    console = Console(stderr=True)
    with console.status("looking at the model"):
        check_model(settings)
    with Display(console, settings.round.count, settings.privacy.epsilon) as display:
        try:
            folder = run_flower(config, chosen.holders, display.show)
        except KeyboardInterrupt:
            hint = "Stopped. To go on: --set run.resume=FOLDER with the run's folder in"
            console.print(f"{hint} {config['run.out']}/", markup=False)
            raise
    if yardsticks:
        _measure_yardsticks(folder, config, console)
    _show_outcome(folder, as_json)


def _measure_yardsticks(folder: Path, config: Mapping[str, Scalar], console: Console) -> None:
    from ..server.report.build import write_report
    from .yardsticks import measure

    with console.status("yardsticks") as status:
        measure(folder, config, lambda name: status.update(f"yardstick: {name}"))
    write_report(folder)


def _show_outcome(folder: Path, as_json: bool) -> None:
    from ..server.report.terminal import outcome

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        claim = {name: report["claim"][name] for name in ("sentence", "epsilon", "delta")}
        utility = report["utility"]
        metric = utility["metric"]
        told = {when: utility[when][metric] for when in ("before", "after")}
        counted = {name: report["run"][name] for name in ("rounds", "rounds_planned")}
        typer.echo(json.dumps({"run": str(folder), "metric": metric, **told, **claim, **counted}))
        return
    typer.echo(f"{report['claim']['sentence']}\nRun folder: {folder}\n{outcome(report)}")


def bench_utility(
    scenario: Annotated[str, typer.Argument(help="A scenario's name or file.")] = "movies",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row.")] = 5,
    methods: Annotated[str, typer.Option(help="head, or an aggregate.method.")] = "ffa,head",
    epsilons: Annotated[str, typer.Option(help="Numbers, or off; commas between.")] = "off,8,3,1",
    partitions: Annotated[
        str, typer.Option(help="Of iid, dirichlet, natural (users); the scenario's own, unless.")
    ] = "own",
    tune_rates: Annotated[
        int, typer.Option(min=0, help="Rates tried for each method and epsilon; 0: no tuning.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Training records at most; the scenario's, unless.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep runs in this .jsonl file; go on with those in it.")
    ] = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Accuracy by method, epsilon and partition, several seeds each, with 95 % intervals."""
    from rich.console import Console

    from .benchmarks import places, results, rows, utility
    from .scenario import load_scenario

    chosen, known = load_scenario(scenario), [places.OWN, *places.PARTITIONS]
    compared = _each_of(methods, utility.METHODS, "method")
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
        changes=changes or [],
    )
    with Console(stderr=True).status("utility") as status:
        found = utility.utility(table, kept, status.update)
    if as_json:
        for row in found:
            typer.echo(json.dumps(row.to_json()))
        return
    typer.echo(rows.markdown(found))
    if len(compared) > 1 and len(promised) > 1:
        typer.echo(f"\n{rows.overview(found)}")


def bench_step(
    models: Annotated[str, typer.Option(help="Shapes of models, commas between.")] = "all",
    engines: Annotated[str, typer.Option(help="Who steps; plain always does.")] = "all",
    batch: Annotated[int, typer.Option(min=2, help="Examples in a step.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each example.")] = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="Steps of each, interleaved.")] = 9,
    threads: Annotated[int, typer.Option(min=0, help="0 leaves it to torch.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the frozen base: float32, bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    epoch: Annotated[
        bool, typer.Option("--epoch", help="Also an epoch of the demo's text, lever by lever.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time and memory of a private step by each engine, as ratios to plain PEFT's."""
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
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each row.")] = 300,
    folder: Annotated[
        Path | None, typer.Option(help="On the disk to be measured; the system's by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time of a charge and of a release, far from the limit and near it."""
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
    holders: Annotated[int, typer.Option(min=1, help="Holders, each with its own size.")] = 1_000,
    asked: Annotated[int, typer.Option(min=0, help="Holders in each round; 0 is all.")] = 100,
    as_json: Json = False,
) -> None:
    """Time and memory of the privacy report of a made-up run whose holders all differ."""
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
            "bench.epsilon", f"{text!r} is no epsilon.", "Write a number, or off."
        ) from None


def _wanted(names: list[str]) -> tuple[list[Asset | Made], list[Scenario]]:
    """What to fetch or make and which scenarios to prepare, each once."""
    from ..common.errors import ConfideError, nearest
    from ..common.text.benchmarks import BENCHMARKS
    from .assets import ASSETS
    from .made import MADE
    from .scenario import load_scenario, scenario_names
    from .sources import source_named

    every: dict[str, Asset | Made] = {**ASSETS, **MADE}
    assets: dict[str, Asset | Made] = {}
    scenarios: dict[str, Scenario] = {}
    for name in names:
        if name in every:
            assets[name] = every[name]
        elif name in (*scenario_names(), *BENCHMARKS) or name.endswith((".toml", ".json")):
            scenario = scenarios.setdefault(name, load_scenario(name))
            own = () if scenario.files else source_named(scenario.source).assets
            text = [ASSETS[asset] for asset in own]
            model = f"models/{scenario.config.get('model.name')}"
            needed = [asset for asset in every.values() if asset.target == model]
            assets |= {asset.name: asset for asset in (*needed, *text)}
        else:
            known = [*every, *scenario_names(), *BENCHMARKS]
            raise ConfideError(
                "assets.unknown", f"No asset or scenario is called {name!r}.", nearest(name, known)
            )
    return list(assets.values()), list(scenarios.values())
