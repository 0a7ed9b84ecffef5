"""A holder: one data set, its ledger, its policy, and the decision on every task.

``handle`` is the whole of it, in one order: parse, policy and contract, replay, affordable, model,
**charge**, read, train or sum, release. A request that only asks (``TrainRequest.dry``) is answered
where another one is charged. What comes before the charge looks at the request, the policy, the
ledger and the model alone, and writes nothing but the key of a run (``opening``): not one byte of
the text is read there, so that whether a request is answered, and by which code, cannot depend on
it. The charge is durable before the text is read, and is never given back. After it nothing that
the text holds changes what leaves but through the noisy sum: what cannot be read, encoded, trained
on or scored contributes zero. A secure sum that this holder helps to open reads no text at all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..common.adapter.encoding import Parcel, decode_vector, sent_size, unpack
from ..common.adapter.schema import AdapterSchema
from ..common.errors import ConfideError
from ..common.machine.paths import keys_beside
from ..common.masking.openers import Call
from ..common.methods import method_of
from ..common.methods.context import Context
from ..common.models.loading import LoadedModel, load_model
from ..common.plans import (
    Sum,
    bit_of,
    has_bit,
    inner_plan,
    is_shared,
    longest_sum,
    numbers_in_sum,
    plan_of,
    plan_of_sum,
    planned_steps,
    step_of_round,
    step_of_sum,
    steps_of_sums,
    sums_of,
)
from ..common.privacy.ledger import Charge, Ledger, first_objection
from ..common.privacy.noise import SecureGenerator
from ..common.privacy.plan import Plan, Unit
from ..common.settings import COORDINATORS_OWN, Settings, from_flat
from ..common.wire.messages import (
    OpenRequest,
    Ready,
    Refusal,
    Reply,
    Request,
    TrainRequest,
    Update,
    reply_from_bytes,
)
from .guard.policy import Policy, review, review_model, review_plan, review_requests, review_sum
from .guard.release import Outgoing, encoded, release
from .guard.runs import Decision, check_run, decisions
from .guard.scrub import code_of, quiet
from .guard.sum_keys import SumKeys
from .opening import SumMember
from .text.corpus import Corpus, check_readable
from .text.taken import check_taken
from .training.personal import Personal
from .training.private_step import noised_update, with_bit
from .training.sums import classes_of, noisy_sum, shares_of_classes, shares_of_scores
from .training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Site:
    """What belongs to a holder on its own machine; the coordinator never names any of it.

    Attributes:
        bundle: SHA-256 of the code that is installed here (``common.machine.installed``).
        new_ledger: whether the first charge makes the ledger, as in a simulation. A deployed holder
            has one since it joined: without it what was spent is unknown.
    """

    name: str
    data: Path
    ledger: Path
    policy: Policy
    bundle: str = ""
    new_ledger: bool = False

    @property
    def keys(self) -> Path:
        """The folder of this holder's own keys for secure sums, beside its ledger."""
        return keys_beside(self.ledger)


class Holder:
    """The holder of one site, warm over tasks.

    Args:
        site: where its text and ledger lie, and its limits.
        generator: source of noise and batches; the secure default in everything but tests.

    Attributes:
        unused: how many records of the newest request could not be used; None before the first
            request. For the administrator alone: it never leaves.
    """

    def __init__(self, site: Site, generator: SecureGenerator | None = None) -> None:
        self.site = site
        self.unused: int | None = None
        self._generator = generator or SecureGenerator()
        self._corpus: Corpus | None = None
        self._worked: deque[float] = deque()  # when a request was worked on, in the last 24 hours

    def handle(self, request: Request) -> Reply:
        """Answer a request, or refuse it by a code; no exception but an interrupt gets out, and
        that one carries nothing of what it interrupted."""
        outcome = self._attempt(request)
        if isinstance(outcome, BaseException):
            raise outcome  # outside the handlers, where no other exception hangs on to it
        return outcome

    def _attempt(self, request: Request) -> Reply | KeyboardInterrupt | SystemExit:
        try:
            with quiet():
                if isinstance(request, OpenRequest):
                    return self._open(request)
                return self._answer(request)
        except KeyboardInterrupt:
            return KeyboardInterrupt()
        except SystemExit as error:
            return SystemExit(error.code if isinstance(error.code, int) else 1)
        # Not Exception: a panic in a Rust extension (tokenizers) is none, and quotes its input.
        except BaseException as error:  # noqa: BLE001 - its text must not leave, whatever it is
            return Refusal(holder=self.site.name, task_hash=_hash_of(request), code=code_of(error))

    def _answer(self, request: TrainRequest) -> Reply:
        settings = from_flat(request.settings)
        review(settings, self.site.policy)
        _check_request(request, settings)
        kind = sums_of(settings).get(request.round)
        if kind is not None:
            review_sum(settings, self.site.policy)
        check_run(request.run, settings, self.site.policy, self.site.ledger)
        job = _Job(request=request, settings=settings, kind=kind)
        seen = self._check_ledger(job)
        if seen is not None:
            return reply_from_bytes(seen)
        review_requests(self._worked, self.site.policy, time.monotonic())
        if kind is not Sum.CLASSES:  # which takes no model
            loaded = self._load(settings)
            job = replace(job, model=(loaded, self._prepare(request, loaded, settings)))
        check_readable(self.site.data)
        check_taken(self.site.data, self.site.ledger)
        if request.dry:
            card = self._member.card(request, settings) if is_shared(settings) else b""
            return Ready(holder=self.site.name, task_hash=request.hash, card=card)
        if is_shared(settings):
            job = replace(job, call=self._member.call(request, settings, job.values))
        if self.site.new_ledger:
            self.site.ledger.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(self.site.ledger, create=self.site.new_ledger) as ledger:
            ledger.charge(self._charge_of(job), *self._limits(settings))
            return self._paid(job, ledger)

    @property
    def _member(self) -> SumMember:
        site = self.site
        keys = SumKeys(site.keys, site.name, create=site.new_ledger)
        return SumMember(keys, site.name, site.policy)

    def _open(self, request: OpenRequest) -> Reply:
        """Help to open a secure sum. It reads no text and costs nothing."""
        if decisions(self.site.ledger).get(request.run) is Decision.DENIED:
            raise ConfideError("policy.run-denied", "This holder's administrator denied the run.")
        if self.site.new_ledger:
            self.site.ledger.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(self.site.ledger, create=self.site.new_ledger) as ledger:
            return self._member.open(request, ledger)

    def _check_ledger(self, job: _Job) -> bytes | None:
        """The reply that the request got before, or None if it may be worked on and would fit.
        Where the first charge will make the ledger, none is made here."""
        request, charge, limits = job.request, self._charge_of(job), self._limits(job.settings)
        if self.site.new_ledger and not self.site.ledger.exists():
            _raise(first_objection(charge, *limits))
            self._review_run(job, None)
            return None
        with Ledger.open(self.site.ledger, create=False) as ledger:
            if request.dry and request.round in ledger.charged(request.run):
                return None  # a resumed run: what was charged is released again at no charge
            seen = ledger.replay(request.hash)
            if seen is None:
                _check_rounds_left(request, job.settings, ledger.charged(request.run))
                if job.settings.privacy.trust != "off":
                    ledger.check_unit(*_unit(job.settings))
                _raise(ledger.objection(charge, *limits))
                self._review_run(job, ledger)
            return seen

    def _load(self, settings: Settings) -> LoadedModel:
        loaded = load_model(settings)
        review_model(settings.model.name, loaded.sha256, self.site.policy)
        return loaded

    def _prepare(self, request: TrainRequest, loaded: LoadedModel, settings: Settings) -> Context:
        """Adapter and a check on made-up examples: with the model, all that can be wrong without
        text."""
        method = method_of(settings.aggregate.method)
        adapter = _adapter(request, loaded, method.sent(loaded.schema))
        Trainer(loaded).prepare(settings)
        return method.context(
            loaded.model,
            loaded.schema,
            adapter,
            most_rank=self.site.policy.max_rank,
            merged=request.merged,
            store=Personal(self.site.ledger, request),
        )

    def _paid(self, job: _Job, ledger: Ledger) -> Update:
        """Read, train or sum, release; the request was charged."""
        corpus = self._read(job.settings, ledger.identity_key)
        return release(
            self._sum(job, corpus) if job.kind else self._train(job, corpus),
            job.request,
            ledger,
            holder=self.site.name,
            delta=job.settings.privacy.delta,
            identity=corpus.identity,
        )

    def _train(self, job: _Job, corpus: Corpus) -> Outgoing:
        """The private change of what is trained, as it leaves."""
        (loaded, context), settings, failed = job.known(), job.settings, 0
        unit, plan = Unit(settings.privacy.unit), job.plan
        whole = unit is Unit.HOLDER  # inside it nothing is private; its update is
        examples = corpus.examples(loaded)
        units = corpus.units(Unit.RECORD if whole else unit, examples)
        text, inner = corpus.text(loaded), inner_plan(settings) if whole else plan

        def train(schema: AdapterSchema, start: Tensor) -> Tensor:
            nonlocal failed
            own = Trainer(replace(loaded, schema=schema))
            change = own.train(start, text, settings, inner, self._generator, units=units)
            failed = own.unusable
            return change

        change, schema = context.train(train)
        self.unused = sum(one is None for one in examples) + failed
        if has_bit(settings):
            change = with_bit(change, settings.privacy.clip, bit_of(settings))
        if whole:
            change = noised_update(change, plan, self._generator)
        if job.call:
            return self._member.hide(job.call, change, step_of_round(settings), schema.digest)
        return encoded(change, settings.wire.encoding, schema.digest)

    def _sum(self, job: _Job, corpus: Corpus) -> Outgoing:
        """A noisy sum: of the classes, or of how well the adapter does on the text."""
        settings = job.settings
        if job.kind is Sum.CLASSES:
            labels = settings.task.label_names
            shares = shares_of_classes(classes_of(corpus.records, labels), len(labels))
        else:
            loaded, context = job.known()
            examples = corpus.examples(loaded)
            shares = shares_of_scores(
                loaded, context.adapter, examples, Sum(str(job.kind)), self._generator
            )
        self.unused = sum(one is None for one in shares)
        units = corpus.units(settings.privacy.unit, shares)
        used = [one for one in shares if one is not None]
        longest = longest_sum(settings) if job.call else math.inf
        total = noisy_sum(used, job.values, units, job.plan, self._generator, longest)
        if job.call:
            return self._member.hide(job.call, total, step_of_sum(settings))
        return encoded(total, "fp32")

    def _charge_of(self, job: _Job) -> Charge:
        """The price of a request, and all that its run is to release."""
        return Charge(
            run=job.request.run,
            round=job.request.round,
            task_hash=job.request.hash,
            plan=job.plan,
            person=_unit(job.settings)[1],
            bundle_hash=self.site.bundle,
            whole=planned_steps(job.settings),
        )

    def _review_run(self, job: _Job, ledger: Ledger | None) -> None:
        """The whole run against the policy: what was charged, and rounds and sums to come."""
        run, settings = job.request.run, job.settings
        charged = ledger.charged(run) if ledger else {}
        sums = sums_of(settings)
        review_plan(
            plan_of(settings),
            self.site.policy,
            ledger.steps(run) if ledger else (),
            summed=sum(charged.get(number, 0) for number in sums),
            sums=steps_of_sums(settings, sum(number not in charged for number in sums)),
            rounds=0 if job.kind else 1,
            unmasked=ledger.steps(unmasked=True) if ledger else (),
        )

    def _limits(self, settings: Settings) -> tuple[float | None, float | None]:
        """Most epsilon over all runs, and in this one."""
        policy = self.site.policy
        if settings.privacy.trust == "off":
            return None, None
        return policy.max_epsilon, policy.max_epsilon_per_run

    def _read(self, settings: Settings, key: bytes) -> Corpus:
        """The text, parsed once for as long as its file stays the same."""
        corpus, data, contract = self._corpus, self.site.data, self.site.policy.data
        if corpus is None or not corpus.is_that_of(data, settings, contract, key):
            corpus = self._corpus = Corpus(data, settings, contract, key)
        return corpus


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request that was parsed: its settings, which sum it asks for (None: a round), and, once it
    is loaded, the model with what the method asks around its training; and the secure sum that it
    contributes to, if it does."""

    request: TrainRequest
    settings: Settings
    kind: Sum | None
    model: tuple[LoadedModel, Context] | None = None
    call: Call | None = None

    @property
    def values(self) -> int:
        """How many numbers leave."""
        if self.kind:
            return numbers_in_sum(self.kind, self.settings)
        loaded, _ = self.known()
        trained = method_of(self.settings.aggregate.method).sent(loaded.schema).trained_size
        return trained + has_bit(self.settings)

    @property
    def plan(self) -> Plan:
        """Of what is charged: a round, or the sum."""
        return plan_of_sum(self.settings) if self.kind else plan_of(self.settings)

    def known(self) -> tuple[LoadedModel, Context]:
        if self.model is None:
            raise TypeError("a task with a model was worked on without it")
        return self.model


def _raise(refused: ConfideError | None) -> None:
    if refused is not None:
        raise refused


def _unit(settings: Settings) -> tuple[Unit, str]:
    """The unit of privacy, with the column that tells persons apart where it is the person."""
    unit = Unit(settings.privacy.unit)
    return unit, settings.data.person if unit is Unit.PERSON else ""


def _hash_of(request: Request) -> str:
    """The task's hash, or nothing for a request of values that no message can carry."""
    try:
        return request.hash
    except (TypeError, ValueError, RecursionError):
        return ""


def _check_request(request: TrainRequest, settings: Settings) -> None:
    """Refuse what an honest coordinator never sends: a path, or a round that is not of the run."""
    flat, defaults = settings.to_flat(), Settings().to_flat()
    named = [key for key in COORDINATORS_OWN if flat[key] != defaults[key]]
    if named:
        raise ConfideError(
            "task.path",
            f"The task sets {named[0]} = {flat[named[0]]!r:.100}, which is the coordinator's own.",
            "A coordinator's paths are neither sent nor read.",
        )
    if request.round in sums_of(settings):
        return
    if not 1 <= request.round <= settings.round.count:
        raise ConfideError(
            "task.round", f"Round {request.round} is outside 1 to {settings.round.count}."
        )
    if settings.task.uncounted and not request.dry:  # who only asks has not counted yet
        raise ConfideError(
            "task.uncounted",
            "The task trains with class weights or rates that were not counted yet.",
            "Ask for the count first, and send the numbers that it gives.",
        )


def _check_rounds_left(
    request: TrainRequest, settings: Settings, charged: Mapping[int, int]
) -> None:
    """The noise is calibrated to ``round.count`` rounds and one of each sum: no holder takes part
    in more. ``charged`` has the steps of each round so far."""
    count, steps = settings.round.count, plan_of(settings).steps_per_round
    sums = sums_of(settings)
    if request.round in sums:
        full, what = request.round in charged, "this sum"
    else:
        trained = sum(many for number, many in charged.items() if number not in sums)
        full, what = trained + steps > steps * count, f"{count} rounds"
    if full:
        raise ConfideError(
            "task.too-many-rounds",
            f"The ledger has {what} of {request.run} already.",
            "Start another run; the budget goes on.",
        )


def _adapter(request: TrainRequest, loaded: LoadedModel, leaves: AdapterSchema) -> Tensor:
    """The coordinator's adapter (N,), checked before anything is charged for it; ``leaves`` is the
    schema of the update that it asks for."""
    schema = loaded.schema
    if leaves.digest != request.schema:
        raise ConfideError("task.schema", "The coordinator's adapter does not fit the model here.")
    values = decode_vector(request.adapter, "fp32", sent_size(schema, request.sent))
    adapter = unpack(schema, Parcel(request.sent, values, request.rest), loaded.initial)
    if not torch.isfinite(adapter).all():
        raise ConfideError(
            "adapter.not-finite", "The coordinator's adapter contains NaN or infinity."
        )
    return adapter
