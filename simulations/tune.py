"""A search for the settings of a scenario: which learning rate, clip norm, rank, or base model.

Each trial is an ordinary run in this process. If base models are compared, it has a process of its
own, so that seconds and memory are the model's alone. The study is an SQLite file and continues
where it stopped. A trial ends early if its measure on the public text is below the median of the
earlier trials at the same round. The measure is the task's main metric, with two exceptions: minus
the loss replaces perplexity, and a metric of which less is better changes its sign. A metric of
text that the model writes is measured only before and after a run, so by such a metric no trial
ends early.

What it costs: a scenario's text is public, so the search is free, and its outcome says so. All
trials write into one ledger per holder, as they would on private text, where every trial is
charged, also one that ended early. The sum in the ledger is what the search would cost there.
Choosing the best of many is never accounted as one run; repeat-and-select (Liu and Talwar 2019;
Papernot and Steinke 2022) is cheaper, but for a random number of trials that do not learn from each
other.

Source: Akiba et al. 2019 (Optuna); Bergstra et al. 2011 (TPE).
"""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError, nearest
from ..common.machine.installed import library
from ..common.metrics import METRICS
from ..common.settings import OF_THE_COMMAND, Scalar, Settings, from_flat
from .ready import check_start, check_text
from .scenario import Scenario, run_config, text_of, with_batch
from .space import Dimension
from .trial import PERPLEXITY, one_run

SAMPLERS = ("tpe", "random", "grid")
_TRIALS = 20  # where nobody says how many
_MINUS_LOSS = "minus loss"
# The median of fewer trials than this says little, so none ends early before.
_TRIALS_BEFORE_PRUNING = 5


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, how, and where the study is kept. ``trials`` is their total number; None is
    the whole grid, or 20 by another sampler."""

    scenario: Scenario
    space: tuple[Dimension, ...]
    folder: Path
    sampler: str = "tpe"
    trials: int | None = None

    @property
    def points(self) -> int | None:
        """How many points the grid has; None if the sampler draws them."""
        return math.prod(len(d.grid()) for d in self.space) if self.sampler == "grid" else None

    @property
    def wanted(self) -> int:
        """The total number of trials; each point of a grid at most once."""
        most = self.points or _TRIALS
        if self.trials is None:
            return most
        return min(self.trials, most) if self.points else self.trials

    def config(self) -> dict[str, Scalar]:
        """The run config that every trial starts from."""
        return run_config(self.scenario)

    @property
    def measure(self) -> str:
        """The measure to be maximised, in words."""
        from ..common.tasks import task_for

        metric = task_for(from_flat(self.config()).task).metrics[0]
        if metric == PERPLEXITY:
            return _MINUS_LOSS
        return f"minus {metric}" if METRICS[metric].less else metric


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: its values, how it ended (complete, pruned or failed), and what it took.

    Attributes:
        curve: the measure after each round in which it was measured.
        facts: seconds, bytes a holder and round, parameters; megabytes if it ran in its own
            process.
    """

    number: int
    values: Mapping[str, Scalar]
    state: str
    measure: float | None
    curve: tuple[tuple[int, float], ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All trials of a study, and the epsilon that stands in the fullest holder's ledger."""

    search: Search
    trials: tuple[Trial, ...]
    epsilon: float
    delta: float

    @property
    def best(self) -> Trial:
        """The completed trial with the best measure, the earliest of equals.

        Raises:
            ConfideError: ``tune.no-trial``.
        """
        done = [t for t in self.trials if t.state == "complete" and t.measure is not None]
        if not done:
            codes = sorted({str(t.facts.get("code")) for t in self.trials if t.facts.get("code")})
            raise ConfideError(
                "tune.no-trial",
                f"None of {len(self.trials)} trials came to its end ({', '.join(codes)}).",
                "Narrow the space, or see metrics.jsonl in the folders of the trials.",
            )
        return max(done, key=lambda t: t.measure or -math.inf)


def tune(search: Search, say: Callable[[Trial], None] = lambda _: None) -> Outcome:
    """Run the trials that are still missing, and report each.

    Raises:
        ConfideError: ``extra.missing`` without Optuna, ``tune.sampler``, ``tune.resume`` when
            the folder holds another search, and what ``prepare`` raises.
    """
    if search.sampler not in SAMPLERS:
        raise ConfideError(
            "tune.sampler",
            f"{search.sampler!r} is not a sampler.",
            nearest(search.sampler, SAMPLERS),
        )
    settings = from_flat(search.config())
    optuna = _optuna()
    for one in _models_of(search, settings):
        check_start(one)
    data = check_text(text_of(search.scenario, settings), settings)
    with _study(optuna, search) as study:
        return _tuned(search, data, study, optuna.TrialPruned, say)


def _tuned(
    search: Search, data: Path, study: Any, pruned: type[Exception], say: Callable[[Trial], None]
) -> Outcome:
    """Run trials until there are as many as wanted, counting those of other processes."""

    def objective(trial: Any) -> float:
        values = {d.key: d.suggest(trial) for d in search.space}
        trial.set_user_attr("values", values)
        outcome = _trial(search, data, trial, values)
        for key, value in outcome.items():
            trial.set_user_attr(key, value)
        if outcome["state"] == "pruned":
            raise pruned
        if outcome["state"] == "failed":
            raise ConfideError(outcome["code"], outcome["message"])
        return float(outcome["measure"])

    def tell(_: Any, frozen: Any) -> None:
        say(_told(frozen))
        if len(_finished(study)) >= search.wanted:
            study.stop()

    missing = search.wanted - len(_finished(study))
    if missing > 0:
        study.optimize(objective, n_trials=missing, callbacks=[tell], catch=(ConfideError,))
    delta = float(search.config()["privacy.delta"])
    return Outcome(
        search=search,
        trials=tuple(_told(frozen) for frozen in _finished(study)),
        epsilon=_spent(search.folder / "holders", delta),
        delta=delta,
    )


def _models_of(search: Search, settings: Settings) -> list[Settings]:
    """The settings with each base model that is tried."""
    tried = [d.choices for d in search.space if d.key == "model.name"] or [(settings.model.name,)]
    return [replace(settings, model=replace(settings.model, name=str(n))) for n in tried[0]]


def _optuna() -> Any:
    optuna = library("optuna")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    return optuna


@contextmanager
def _study(optuna: Any, search: Search) -> Iterator[Any]:
    """The study in the folder, new or continued, while this process works on it. Several processes
    may share its trials. A process that finds no other one gives up the trials that a crash cut
    off."""
    search.folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(search.folder, os.O_RDONLY)  # a lock on the folder leaves no file behind
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_SH)
            alone = False
        study = _opened(optuna, search, alone=alone)
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield study
    finally:
        os.close(handle)


def _opened(optuna: Any, search: Search, *, alone: bool) -> Any:
    study = optuna.create_study(
        study_name=search.scenario.name,
        storage=_storage(search.folder),
        direction="maximize",
        load_if_exists=True,
        pruner=_pruner(optuna, search),
    )
    described = json.dumps(
        [search.sampler, {k: v for k, v in search.config().items() if k not in OF_THE_COMMAND}]
        + [repr(dimension) for dimension in search.space],
        sort_keys=True,
    )
    known = study.user_attrs.get("search")
    if known not in (None, described):
        raise ConfideError(
            "tune.resume",
            f"{search.folder} holds a search with another space, sampler or configuration.",
            "Go on with the same options, or name another folder with --out.",
        )
    running = (optuna.trial.TrialState.RUNNING,)
    for cut_off in study.get_trials(deepcopy=False, states=running) if alone else ():
        study.tell(cut_off.number, state=optuna.trial.TrialState.FAIL)
    # A sampler that began again with the same seed would try the same values again.
    seed = hash((search.config()["run.seed"], len(study.trials))) % 2**31
    study.sampler = _sampler(optuna, search, seed)
    if known is None:
        study.set_user_attr("search", described)
        own = {d.key: search.config()[d.key] for d in search.space}
        if search.sampler != "grid" and all(d.holds(own[d.key]) for d in search.space):
            study.enqueue_trial(own)  # the scenario as it is comes first
    return study


def _storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.sqlite'}"


def _pruner(optuna: Any, search: Search) -> Any:
    rounds = int(search.config()["round.count"])
    return optuna.pruners.MedianPruner(
        n_startup_trials=_TRIALS_BEFORE_PRUNING, n_warmup_steps=rounds // 4
    )


def _sampler(optuna: Any, search: Search, seed: int) -> Any:
    if search.sampler == "grid":
        return optuna.samplers.GridSampler({d.key: d.grid() for d in search.space}, seed=seed)
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _finished(study: Any) -> list[Any]:
    """The trials with an outcome, without those that a crash cut off."""
    return [t for t in study.get_trials(deepcopy=False) if "state" in t.user_attrs]


def _told(frozen: Any) -> Trial:
    known = dict(frozen.user_attrs)
    return Trial(
        number=frozen.number,
        values=known.pop("values"),
        state=known.pop("state"),
        measure=known.pop("measure"),
        curve=tuple((int(r), float(v)) for r, v in known.pop("curve")),
        facts=known,
    )


def _trial(search: Search, data: Path, trial: Any, values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Run one trial, here or in a process of its own."""
    place = {"run.out": str(search.folder / "runs"), "run.name": f"trial-{trial.number}"}
    config = {**search.config(), **values, **place, "run.resume": "", "data.path": str(data)}
    if "train.batch" not in values:
        config = with_batch(config, search.scenario, sorted(data.glob("holder-*.jsonl")))
    ledgers = search.folder / "holders"
    if not any(d.key == "model.name" for d in search.space):
        return one_run(config, data, ledgers, _watch(trial)) | {"megabytes": None}
    spawn = multiprocessing.get_context("spawn")
    arguments = (config, data, ledgers, search, trial._trial_id)
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as alone:
        return alone.submit(run_alone, *arguments).result()


def run_alone(
    config: Mapping[str, Scalar], data: Path, ledgers: Path, search: Search, trial_id: int
) -> dict[str, Any]:
    """``one_run`` in a process of its own, which finds its trial in the study's file."""
    optuna = _optuna()
    study = optuna.load_study(
        study_name=search.scenario.name,
        storage=_storage(search.folder),
        pruner=_pruner(optuna, search),
    )
    return one_run(config, data, ledgers, _watch(optuna.trial.Trial(study, trial_id)))


def _watch(trial: Any) -> Callable[[int, float], bool]:
    """Report a round's measure; True if the trial should end early."""

    def watch(number: int, measure: float) -> bool:
        trial.report(measure, number)
        return bool(trial.should_prune())

    return watch


def _spent(ledgers: Path, delta: float) -> float:
    """The largest epsilon in a holder's ledger that is proven for all trials together, each chosen
    after seeing the ones before; 0 before the first."""
    from ..common.privacy.ledger import Ledger

    spent = 0.0
    for path in sorted(ledgers.glob("*/ledger.sqlite")):
        with Ledger.open(path, create=False) as ledger:
            spent = max(spent, ledger.proven(delta, ""))
    return spent
