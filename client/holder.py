"""A holder: one data set, its ledger, its policy, and the last word on every task.

``handle`` is the whole of it, in this order: parse, policy, seen before?, read and count, plan,
charge (durable), train, release. The charge comes before any text is used and is never given
back once a private value may have left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConfideError
from ..common.models import LoadedModel, load_model
from ..common.privacy.ledger import Charge, Ledger
from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Relation, Trust, Unit
from ..common.settings import PrivacySpec, Settings, from_flat
from ..common.wire import Refusal, Reply, Task, Update, decode_vector
from .corpus import Corpus
from .policy import Policy, review
from .release import release
from .scrub import code_of
from .trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Site:
    """What belongs to a holder on its own machine; none of it is ever named by the coordinator."""

    name: str
    data: Path
    ledger: Path
    policy: Policy


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
        """Answer a task with an update or a refusal; no exception but an interrupt gets out."""
        try:
            return self._answer(task)
        except Exception as error:  # noqa: BLE001 - its text must not leave, whatever it is
            return Refusal(holder=self.site.name, task_hash=task.hash, code=code_of(error))

    def _answer(self, task: Task) -> Update:
        settings = from_flat(task.settings)
        review(settings, self.site.policy)
        self.site.ledger.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(self.site.ledger) as ledger:
            seen = ledger.replay(task.hash)
            if seen is not None:
                return Update.from_bytes(seen)
            corpus = self._open_corpus(settings, ledger)
            plan = plan_for(settings, len(corpus.records()))
            loaded = load_model(settings)
            if loaded.schema.digest != task.schema:
                raise ConfideError(
                    "task.schema", "The coordinator's adapter does not fit the model here."
                )
            adapter = decode_vector(task.adapter, "fp32", loaded.schema.size)
            text = corpus.encoded(settings.task, loaded)
            charge = Charge(run=task.run, round=task.round, task_hash=task.hash, plan=plan)
            ledger.charge(charge, self._limit(settings))
            change = _trainer(loaded).train(adapter, text, settings, plan, self._generator)
            return release(
                change,
                task,
                ledger,
                holder=self.site.name,
                encoding=settings.wire.encoding,
                delta=settings.privacy.delta,
            )

    def _limit(self, settings: Settings) -> float | None:
        return None if settings.privacy.trust == "off" else self.site.policy.max_epsilon

    def _open_corpus(self, settings: Settings, ledger: Ledger) -> Corpus:
        """The text, read once; the ledger learns which data set it is and how many units."""
        if self._corpus is None or self._corpus.spec != settings.data:
            self._corpus = Corpus(self.site.data, settings.data)
        identity = self._corpus.identity(ledger.ledger_id)
        known = ledger.dataset()
        if known is None or known.identity != identity:
            self._corpus = Corpus(self.site.data, settings.data)
            ledger.register(identity, len(self._corpus.records()))
        return self._corpus


def plan_for(settings: Settings, units: int) -> Plan:
    """The plan of a holder with ``units`` units: its own sampling rate, and noise for the largest
    participation that the run allows (every round)."""
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
        plan = Plan.calibrate(epsilon=privacy.epsilon, **shared)  # type: ignore[arg-type]
    if privacy.trust != "off":
        plan.check_units(units)
    return plan


# One model with hooks per process: Opacus refuses to hook a model twice.
_TRAINERS: dict[int, Trainer] = {}


def _trainer(loaded: LoadedModel) -> Trainer:
    if id(loaded) not in _TRAINERS:
        _TRAINERS[id(loaded)] = Trainer(loaded)
    return _TRAINERS[id(loaded)]
