"""A simulated federation from settings to outcome: what ``confide.simulate`` and the commands do.

It prepares the text, makes the checks that need only files, and then runs. A run is in this
process, one holder after the other and without waiting (``inprocess``), or on Flower's simulation
engine with a process for each holder that trains (``flower``). Rounds, holders, ledgers and report
are the same code, and the outcome differs only in the time that it takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..common.errors import ConfideError, nearest
from ..common.machine.paths import resumed_run, runs_folder
from ..common.settings import Scalar, Settings, from_flat, hint, rules, spelled
from ..server.results import Run
from ..server.run_folder import PUBLIC_FILE, new_id
from .ready import check_model, check_start, check_text
from .scenario import (
    Scenario,
    changed,
    holders_in,
    load_scenario,
    run_config,
    settled_text,
    text_of,
    with_batch,
)

if TYPE_CHECKING:
    from ..server.transport import Transport

Engine = Literal["inprocess", "flower"]
ENGINES = ("inprocess", "flower")
What = str | Path | Settings | Scenario | Mapping[str, Scalar]
Changes = Mapping[str, Scalar] | Sequence[str]
Progress = Callable[[dict[str, Any]], None]


def _nobody(_: dict[str, Any]) -> None:
    """The default listener: it ignores every event."""


def simulate(
    what: What = "nyt",
    changes: Changes = (),
    *,
    holders: int | Sequence[str | Path] | None = None,
    engine: Engine = "inprocess",
    progress: Progress = _nobody,
) -> Run:
    """Run a federation on this machine.

    Args:
        what: a scenario's name, a file of settings, a run folder (which is repeated), ``Settings``,
            or a mapping of flat keys.
        changes: settings that differ: ``{"privacy.epsilon": 3.0}``, or ``["privacy.epsilon=3"]``.
        holders: how many are simulated, or a file of records for each of them. The files are read
            where they lie; the held-out text is still the settings'.
        engine: ``inprocess`` is quick to start and takes one processor; ``flower`` is Flower's
            simulation engine, which takes all.
        progress: called with every event of the run, when metrics.jsonl gets it.

    Raises:
        ConfideError: the reason why the run is impossible, before it begins if that can be known.
    """
    simulation = Simulation.of(what, changes, holders=holders)
    if engine not in ENGINES:
        raise ConfideError(
            "simulation.engine",
            f"engine = {engine!r} is not an engine.",
            nearest(str(engine), ENGINES),
        )
    return simulation.run(engine, progress)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is about to run: flat settings, the file of each holder, the folder of the text."""

    config: Mapping[str, Scalar]
    files: tuple[Path, ...]
    text: Path

    @classmethod
    def of(
        cls,
        what: What,
        changes: Changes = (),
        *,
        holders: int | Sequence[str | Path] | None = None,
    ) -> Simulation:
        """Prepare the text, and refuse a run that the files show to be impossible."""
        scenario = as_scenario(what, changes)
        if isinstance(holders, int):
            scenario = scenario.with_({"federation.holders": holders})
        config = run_config(scenario)
        settings = from_flat(config)
        check_start(settings)
        text = text_of(scenario, settings)
        named = None if holders is None or isinstance(holders, int) else [Path(f) for f in holders]
        check_text(text, settings, named)
        count = range(0 if named else holders_in(text))
        files = named or [text / f"holder-{number:02d}.jsonl" for number in count]
        return cls(config=with_batch(config, scenario, files), files=tuple(files), text=text)

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return from_flat(self.config)

    def check_model(self) -> None:
        """Refuse what a holder would refuse in the first round, with the model in memory."""
        check_model(self.settings)

    def run(self, engine: str, progress: Progress = _nobody) -> Run:
        """Do the run."""
        if engine == "inprocess":
            return in_process(self.config, self.files, progress=progress)
        from .flower import simulate as by_flower

        if list(self.files) == sorted(self.text.glob("holder-*.jsonl")):
            return Run(by_flower(self.config, len(self.files), progress))
        with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
            config = {**self.config, "data.path": str(self._linked(Path(scratch)))}
            return Run(by_flower(config, len(self.files), progress))

    def _linked(self, place: Path) -> Path:
        """A folder with links to the files, by number, where Flower's holders look for them."""
        for number, file in enumerate(self.files):
            if file.suffix != ".jsonl":
                raise ConfideError(
                    "simulation.holders",
                    f"{file} is not a .jsonl file, which Flower's engine needs.",
                    "Use engine = 'inprocess', or federation.train and federation.val.",
                )
            link = place / f"holder-{number:02d}.jsonl"
            policy = file.with_suffix(".policy.toml")
            for source, name in ((file, link), (policy, link.with_suffix(".policy.toml"))):
                if source.is_file():
                    name.symlink_to(source.resolve())
        (place / PUBLIC_FILE).symlink_to((self.text / PUBLIC_FILE).resolve())
        return place


def in_process(
    config: Mapping[str, Scalar],
    files: Sequence[Path],
    *,
    ledgers: Path | None = None,
    watched: Callable[[Transport], Transport] = lambda transport: transport,
    progress: Progress = _nobody,
) -> Run:
    """A run in this process, of a holder for each file.

    Args:
        ledgers: where each holder's ledger lies; in the run folder unless given.
        watched: takes the transport to the holders and returns the one that the run uses.
    """
    from ..server.run import run  # and torch with it
    from .inprocess import federation

    resumed = resumed_run(config)
    named = str(config.get("run.id", "")) or new_id(
        "resumed" if resumed else str(config["run.name"])
    )
    folder = resumed or runs_folder(config) / named
    members = watched(federation(files, ledgers or folder / "holders"))
    config = {**config, "run.id": named}
    return Run(run(config, members, progress=progress, holders=len(files)).path)


def as_scenario(what: What, changes: Changes = ()) -> Scenario:
    """Settings of any kind as a scenario."""
    differing = _known(changes) if isinstance(changes, Mapping) else changed(changes)
    if isinstance(what, (str, Path)):
        found, path = load_scenario(what), Path(what)
    elif isinstance(what, Scenario):
        found, path = what, Path(what.name)
    else:
        flat = what.to_flat() if isinstance(what, Settings) else _known(what)
        chosen = {k: v for k, v in flat.items() if v != rules()[k].default}
        name = str(chosen.pop("run.name", "run"))
        found, path = Scenario(name=name, config=chosen), Path(name)
    return settled_text(found.with_(differing), path)


def as_settings(what: What, changes: Changes = ()) -> Settings:
    """The settings that ``simulate`` would run with, except a batch size that follows from text
    that is not prepared yet. Every value is checked."""
    return from_flat(run_config(as_scenario(what, changes)))


def _known(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The flat settings, by confide's own spelling of the keys."""
    for key in flat:
        if spelled(key) not in rules():
            raise ConfideError(
                "settings.unknown-key", f"{key!r:.100} is not a setting.", hint(str(key))
            )
    return {spelled(key): value for key, value in flat.items()}
