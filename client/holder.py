"""A holder: one data set, its ledger, its policy, and the last word on every task.

``handle`` is the whole of it, in this order: parse, policy, seen before?, affordable?, model and
adapter, read and count, plan, charge (durable), train or sum, release. What a task can get wrong is
refused before the text is opened, and a first such task leaves not even an empty ledger; what the
text shows, before the charge; the charge comes before any text is used, and is never given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..common.adapter import AdapterSchema
from ..common.encoding import decode_vector
from ..common.errors import ConfideError
from ..common.leaving import leaving
from ..common.models import LoadedModel, load_model
from ..common.parcel import Parcel, sent_size, unpack
from ..common.privacy.ledger import Charge, Ledger
from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Relation, Trust, Unit
from ..common.settings import COORDINATORS_OWN, PrivacySpec, Settings, from_flat
from ..common.sums import Sum, steps_of_sums, sums_of
from ..common.tasks import class_indices
from ..common.wire import Refusal, Reply, Task, Update
from .corpus import Corpus
from .policy import Policy, review, review_model, review_plan, review_sum
from .release import release
from .scrub import code_of, quiet
from .share import Share, share_of
from .sums import noisy_sum, plan_of_sum, shares_of_classes, shares_of_scores
from .trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Site:
    """What belongs to a holder on its own machine; none of it is ever named by the coordinator."""

    name: str
    data: Path
    ledger: Path
    policy: Policy
    bundle: str = ""  # hash of the code that is installed here; empty in a simulation


class Holder:
    """The holder of one site, warm over tasks.

    Args:
        site: where its text and ledger lie, and its limits.
        generator: source of noise and batches; the secure default in everything but tests.
    """

    def __init__(self, site: Site, generator: SecureGenerator | None = None) -> None:
        self.site = site
        self._generator = generator or SecureGenerator()
        self._corpus: Corpus | None = None

    def handle(self, task: Task) -> Reply:
        """Answer a task with an update or a refusal; no exception but an interrupt gets out, and
        that one carries nothing of what it interrupted."""
        outcome = self._attempt(task)
        if isinstance(outcome, BaseException):
            raise outcome  # outside the handlers, where no other exception hangs on to it
        return outcome

    def _attempt(self, task: Task) -> Reply | KeyboardInterrupt | SystemExit:
        try:
            with quiet():
                return self._answer(task)
        except KeyboardInterrupt:
            return KeyboardInterrupt()
        except SystemExit as error:
            return SystemExit(error.code if isinstance(error.code, int) else 1)
        # Not Exception: a panic in a Rust extension (tokenizers) is none, and quotes its input.
        except BaseException as error:  # noqa: BLE001 - its text must not leave, whatever it is
            return Refusal(holder=self.site.name, task_hash=_hash_of(task), code=code_of(error))

    def _answer(self, task: Task) -> Update:
        settings = from_flat(task.settings)
        review(settings, self.site.policy)
        _check_task(task, settings)
        kind = sums_of(settings).get(task.round)
        if kind is not None:
            review_sum(settings, self.site.policy)
        # A task that is wrong in itself makes no ledger; where there is one, it is asked first.
        share, counts = None, kind is Sum.CLASSES  # which takes no model
        if not (counts or self.site.ledger.exists()):
            share = self._prepare(task, settings)
        self.site.ledger.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(self.site.ledger) as ledger:
            seen = ledger.replay(task.hash)
            if seen is not None:
                return Update.from_bytes(seen)
            _check_rounds_left(task, settings, ledger)
            if settings.privacy.trust != "off":
                ledger.check_unit(*_unit(settings))
            self._check_known(task, settings, ledger)
            if counts:
                return self._count(task, settings, ledger)
            share = share or self._prepare(task, settings)
            if kind is not None:
                return self._score(kind, task, settings, share, ledger)
            return self._train(task, settings, share, ledger)

    def _prepare(self, task: Task, settings: Settings) -> Share:
        """Model, adapter and a check on made-up examples: all that can be wrong without text."""
        loaded = load_model(settings)
        review_model(settings.model.name, loaded.sha256, self.site.policy)
        adapter = _adapter(task, loaded, leaving(loaded.schema, settings.aggregate.method))
        Trainer(loaded).prepare(settings)
        return share_of(task, loaded, adapter, settings, self.site.policy, self.site.ledger)

    def _train(self, task: Task, settings: Settings, share: Share, ledger: Ledger) -> Update:
        """Read, plan, charge, train, release."""
        corpus, units, plan = self._planned(task, settings, ledger)
        text = corpus.encoded(share.loaded)
        self._charge(task, settings, plan, plan, ledger)

        def train(loaded: LoadedModel, start: Tensor) -> Tensor:
            own = Trainer(loaded)
            return own.train(start, text, settings, plan, self._generator, units=units)

        change, schema = share.train(train)
        sent = {"encoding": settings.wire.encoding, "schema": schema.digest}
        return self._release(change, task, settings, ledger, **sent)

    def _count(self, task: Task, settings: Settings, ledger: Ledger) -> Update:
        """Read, plan, charge, count the classes, release."""
        corpus, units, rounds = self._planned(task, settings, ledger)
        labels, plan = settings.task.label_names, plan_of_sum(settings)
        classes = class_indices(corpus.records, labels)
        self._charge(task, settings, plan, rounds, ledger)
        shares = shares_of_classes(classes, len(labels))
        total = noisy_sum(shares, units, plan, self._generator)
        return self._release(total, task, settings, ledger)

    def _score(
        self, kind: Sum, task: Task, settings: Settings, share: Share, ledger: Ledger
    ) -> Update:
        """Read, plan, charge, score the adapter on the text, release the sum."""
        corpus, units, rounds = self._planned(task, settings, ledger)
        loaded, plan = share.loaded, plan_of_sum(settings)
        examples = loaded.task.encode(corpus.records, loaded.tokenizer, loaded.max_length)
        self._charge(task, settings, plan, rounds, ledger)
        shares = shares_of_scores(loaded, share.adapter, examples, kind, self._generator)
        total = noisy_sum(shares, units, plan, self._generator)
        return self._release(total, task, settings, ledger)

    def _planned(
        self, task: Task, settings: Settings, ledger: Ledger
    ) -> tuple[Corpus, list[list[int]], Plan]:
        """The text, its units, and the plan of a round for so many, which the policy allows."""
        corpus = self._open_corpus(settings, ledger)
        units = corpus.units(_unit(settings)[0])
        plan = plan_for(settings, len(units))
        self._review_run(task, settings, plan, ledger)
        return corpus, units, plan

    def _release(
        self,
        values: Tensor,
        task: Task,
        settings: Settings,
        ledger: Ledger,
        *,
        encoding: str = "fp32",
        schema: str = "",
    ) -> Update:
        return release(
            values,
            task,
            ledger,
            schema=schema,
            holder=self.site.name,
            encoding=encoding,
            delta=settings.privacy.delta,
        )

    def _charge(
        self, task: Task, settings: Settings, plan: Plan, rounds: Plan, ledger: Ledger
    ) -> None:
        ledger.charge(self._charge_of(task, settings, plan, rounds), *self._limits(settings))

    def _charge_of(self, task: Task, settings: Settings, plan: Plan, rounds: Plan) -> Charge:
        """The price of a task: ``plan``, of a run whose rounds have the plan ``rounds``."""
        return Charge(
            run=task.run,
            round=task.round,
            task_hash=task.hash,
            plan=plan,
            person=_unit(settings)[1],
            bundle_hash=self.site.bundle,
            whole=(rounds.steps(rounds.max_rounds), *steps_of_sums(settings)),
        )

    def _review_run(self, task: Task, settings: Settings, plan: Plan, ledger: Ledger) -> None:
        """The whole run against the policy: what was charged, and rounds and sums to come."""
        charged, sums = ledger.charged(task.run), sums_of(settings)
        summed = sum(charged.get(number, 0) for number in sums)
        left = steps_of_sums(settings, sum(number not in charged for number in sums))
        rounds = 0 if task.round in sums else 1
        review_plan(plan, self.site.policy, ledger.steps(task.run), summed, left, rounds)

    def _limits(self, settings: Settings) -> tuple[float | None, float | None]:
        """Most epsilon over all runs, and in this one."""
        policy = self.site.policy
        if settings.privacy.trust == "off":
            return None, None
        return policy.max_epsilon, policy.max_epsilon_per_run

    def _check_known(self, task: Task, settings: Settings, ledger: Ledger) -> None:
        """Refuse what cannot fit without opening the text, from the units that the ledger knows.
        A file written to since then may hold other units, and a run without noise may have counted
        another kind: the text is read, and the charge decides."""
        known, limits = ledger.dataset(), self._limits(settings)
        if known is None or (known.unit, known.person) != _unit(settings):
            return
        rounds, summed = plan_for(settings, known.units), task.round in sums_of(settings)
        plan = plan_of_sum(settings) if summed else rounds
        if summed or self._untouched():  # a sum costs the same whatever the number of units
            charge = self._charge_of(task, settings, plan, rounds)
            _raise(ledger.objection(charge, *limits))
        if self._untouched():
            self._review_run(task, settings, rounds, ledger)

    def _untouched(self) -> bool:
        """Whether the ledger was written to after the text."""
        try:
            return self.site.data.stat().st_mtime_ns < self.site.ledger.stat().st_mtime_ns
        except OSError:
            return False

    def _open_corpus(self, settings: Settings, ledger: Ledger) -> Corpus:
        """The text, read once; the ledger learns which data set it is and how many units."""
        corpus, key = self._corpus, ledger.identity_key
        if corpus is None or not corpus.is_that_of(self.site.data, settings.data, key):
            corpus = self._corpus = Corpus(self.site.data, settings.data, key)
        unit, person = _unit(settings)
        ledger.register(corpus.identity, len(corpus.units(unit)), unit, person)
        return corpus


def _raise(refused: ConfideError | None) -> None:
    if refused is not None:
        raise refused


def _unit(settings: Settings) -> tuple[Unit, str]:
    """The unit of privacy, with the column that tells persons apart where it is the person."""
    unit = Unit(settings.privacy.unit)
    return unit, settings.data.person if unit is Unit.PERSON else ""


def _hash_of(task: Task) -> str:
    """The task's hash, or nothing for a task of values that no message can carry."""
    try:
        return task.hash
    except (TypeError, ValueError, RecursionError):
        return ""


def _check_task(task: Task, settings: Settings) -> None:
    """Refuse what no coordinator sends: a path, or a round that the run does not have."""
    flat, defaults = settings.to_flat(), Settings().to_flat()
    named = [key for key in COORDINATORS_OWN if flat[key] != defaults[key]]
    if named:
        raise ConfideError(
            "task.path",
            f"The task sets {named[0]} = {flat[named[0]]!r:.100}, which is the coordinator's own.",
            "A coordinator's paths are neither sent nor read.",
        )
    if task.round in sums_of(settings):
        return
    if not 1 <= task.round <= settings.round.count:
        raise ConfideError(
            "task.round", f"Round {task.round} is outside 1 to {settings.round.count}."
        )
    if settings.task.uncounted:
        raise ConfideError(
            "task.uncounted",
            "The task trains with class weights or rates that were not counted yet.",
            "Ask for the count first, and send the numbers that it gives.",
        )


def _check_rounds_left(task: Task, settings: Settings, ledger: Ledger) -> None:
    """The noise is calibrated to ``round.count`` rounds and one of each sum: no holder takes part
    in more."""
    count, steps = settings.round.count, settings.train.steps
    charged, sums = ledger.charged(task.run), sums_of(settings)
    if task.round in sums:
        full, what = task.round in charged, "this sum"
    else:
        trained = sum(many for number, many in charged.items() if number not in sums)
        full, what = trained + steps > steps * count, f"{count} rounds"
    if full:
        raise ConfideError(
            "task.too-many-rounds",
            f"The ledger has {what} of {task.run} already.",
            "Start another run; the budget goes on.",
        )


def _adapter(task: Task, loaded: LoadedModel, leaves: AdapterSchema) -> Tensor:
    """The coordinator's adapter (N,), checked before anything is charged for it; ``leaves`` is the
    schema of the update that it asks for."""
    schema = loaded.schema
    if leaves.digest != task.schema:
        raise ConfideError("task.schema", "The coordinator's adapter does not fit the model here.")
    values = decode_vector(task.adapter, "fp32", sent_size(schema, task.sent))
    adapter = unpack(schema, Parcel(task.sent, values, task.rest), loaded.initial)
    if not torch.isfinite(adapter).all():
        raise ConfideError(
            "adapter.not-finite", "The coordinator's adapter contains NaN or infinity."
        )
    return adapter


def plan_for(settings: Settings, units: int) -> Plan:
    """The plan of a holder with ``units`` units: its own sampling rate, and noise for the largest
    participation that the run allows (every round, and every sum besides)."""
    privacy: PrivacySpec = settings.privacy
    rate = min(1.0, settings.train.batch / units)
    shared = {
        "unit": Unit(privacy.unit),
        "trust": Trust(privacy.trust),
        "clip_norm": privacy.clip,
        "sampling_rate": rate,
        "steps_per_round": settings.train.steps,
        "max_rounds": settings.round.count,
        "delta": privacy.delta,
    }
    if privacy.trust == "off" or privacy.noise_multiplier:
        plan = Plan(
            relation=Relation.ADD_OR_REMOVE_ONE,
            noise_multiplier=privacy.noise_multiplier,
            **shared,  # type: ignore[arg-type]
        )
    else:
        sums = steps_of_sums(settings)
        plan = Plan.calibrate(epsilon=privacy.epsilon, besides=sums, **shared)  # type: ignore[arg-type]
    if privacy.trust != "off":
        plan.check_units(units)
    return plan
