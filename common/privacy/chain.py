"""The chain of a privacy ledger: its entries, how each is checked, and what they add up to.

An entry is canonical JSON that names its place and the hash of the entry before it; its own hash
is the SHA-256 of those bytes. ``Book`` takes entries one by one, refuses whatever does not
follow, and counts what was charged. Nothing here touches a file (``ledger.py`` does).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from ..errors import ConfideError
from .accountant import GaussianSteps, epsilon_pld, merge
from .filters import Terms
from .plan import Plan, Trust, Unit
from .renyi import ORDERS
from .steps import Steps, covers, is_plain

# 2: a secret key of the ledger's own, for the identity of its text. 3: that is booked with what
# was released, no number of records is, and no entry is made before a charge; each charge has the
# whole plan of its run, and the limit that it was held to. 4: a plan says how many contribute to a
# secure sum and may collude, and each sum that this holder helped to open is booked.
FORMAT = 4
NO_HASH = "0" * 64
# Different mechanisms in one receipt: a run has one for its rounds and one for its sums, and each
# costs the accountant a sixth of a second of whoever is told of it.
MOST_MECHANISMS = 8


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One task's price: ``plan.steps_per_round`` steps of ``plan``. ``person`` is the column that
    tells persons apart; empty when the unit is the record. ``bundle_hash`` is that of the code that
    trains (``installed``). ``whole`` is all that the run is to release, sums included; by default
    the rounds of ``plan``."""

    run: str
    round: int
    task_hash: str
    plan: Plan
    person: str = ""
    bundle_hash: str = ""
    whole: Steps = ()


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run under one plan: all that it may release, at which delta. A run whose plan changes
    half-way has several."""

    run: str
    whole: Steps
    delta: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the book. ``payload`` holds number, previous, state, time, and by state:
    ``created`` format, ledger, key (hash of the identity key); ``reserved`` run, round, task, plan,
    person, bundle, whole (the steps of the whole run), limit (over all runs, null for none), order
    (of the ledger's Renyi filter); ``released`` task, reply (SHA-256 of the bytes that left), text
    (the identity of the text that was read); ``opened`` call, set (of contributions to a secure
    sum, which this holder helped to open: it costs nothing). No entry holds a number that was
    counted from the text, and each is as long for one text as for another."""

    number: int
    hash: str
    payload: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an update says of its holder's ledger.

    Attributes:
        epsilon: the PLD sum of all runs; inf when anything was released without noise.
        proven: epsilon of everything, this run in full, whatever chose the runs (``budget``); inf
            where none is proven.
        unmasked: the PLD sum of all runs where every mask of a secure sum fails; ``epsilon`` where
            there was none.
        runs: how many runs were ever charged; a run whose plan changed counts once for each.
        limit: what the holder held the newest charge to, over all runs; None for no limit.
        steps_run: what this run alone was charged.
    """

    ledger_id: str
    head: str
    entries: int
    delta: float
    epsilon: float
    proven: float
    unmasked: float
    runs: int
    limit: float | None
    steps_run: Steps

    def to_json(self) -> dict[str, Any]:
        """JSON knows no infinity: there it is null."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        return {
            **asdict(self),
            **{name: x if math.isfinite(x) else None for name, x in figures.items()},
            "steps_run": [s.to_json() for s in self.steps_run],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        """Strict about types, since it comes from another machine; says nothing of its truth."""
        if not isinstance(data, Mapping) or set(data) != set(RECEIPT_KINDS):
            raise ConfideError(
                "ledger.receipt", f"A receipt has exactly {', '.join(RECEIPT_KINDS)}."
            )
        values = dict(data)
        for name in _FIGURES:
            values[name] = math.inf if values[name] is None else values[name]
        for name, kind in RECEIPT_KINDS.items():
            if type(values[name]) is not kind and not (name == "limit" and values[name] is None):
                raise ConfideError("ledger.receipt", f"The receipt's {name} has the wrong type.")
        if not _in_range(values) or len(values["steps_run"]) > MOST_MECHANISMS:
            raise ConfideError("ledger.receipt", "The receipt's numbers are out of range.")
        values["steps_run"] = tuple(GaussianSteps.from_json(s) for s in values["steps_run"])
        return cls(**values)


_FIGURES = ("epsilon", "proven", "unmasked")  # any of them may be infinite

# What a receipt has as JSON, beside null for an infinite figure or for no limit.
RECEIPT_KINDS: Mapping[str, type] = {
    "ledger_id": str,
    "head": str,
    "entries": int,
    "delta": float,
    "epsilon": float,
    "proven": float,
    "unmasked": float,
    "runs": int,
    "limit": float,
    "steps_run": list,
}


def _in_range(values: Mapping[str, Any]) -> bool:
    limit = values["limit"]
    return (
        0 <= values["epsilon"] <= values["proven"] * (1 + 1e-9)
        and values["epsilon"] <= values["unmasked"] * (1 + 1e-9)
        and 0 < values["delta"] < 1
        and values["entries"] >= 1
        and values["runs"] >= 1
        and (limit is None or 0 <= limit < math.inf)
    )


def canonical(value: Mapping[str, Any]) -> str:
    """The one way to write a payload: sorted keys, no spaces, ASCII, no nan."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass
class Book:
    """The verified entries, added up. Only ever moves forward, by ``take``.

    ``unit`` is that of every charge with noise, with its column of persons; None before the first.
    ``plans`` holds every run under each of its plans, in order; ``terms`` what the first charge
    settled; ``limit`` is the newest charge's; ``raised`` says that one was ever above the first.
    """

    entries: int = 0
    head: str = NO_HASH
    ledger_id: str = ""
    key_hash: str = ""
    identity: str = ""  # of the text that was read last
    unit: tuple[Unit, str] | None = None
    tasks: dict[str, str] = field(default_factory=dict)  # task -> hash of its reply, "" if reserved
    releases: list[tuple[int, str]] = field(default_factory=list)  # number of the entry, task
    spent: Counter[tuple[str, float, float]] = field(default_factory=Counter)  # run, z, q -> steps
    unmasked: Counter[tuple[str, float, float]] = field(default_factory=Counter)  # if masks fail
    opened: dict[str, str] = field(default_factory=dict)  # call -> set of contributions
    charged: Counter[tuple[str, int]] = field(default_factory=Counter)  # run, round -> steps
    plans: dict[RunPlan, None] = field(default_factory=dict)
    terms: Terms | None = None
    limit: float | None = None
    raised: bool = False

    def take(self, number: int, text: str, digest: str) -> Entry:
        """Check one stored row against everything before it, and count it."""
        if not isinstance(text, str) or sha256(text.encode()).hexdigest() != digest:
            raise corrupt(f"Entry {self.entries} does not match its hash.")
        try:
            payload = json.loads(text)
            in_order = number == payload["number"] == self.entries
            if canonical(payload) != text or not in_order or payload["previous"] != self.head:
                raise corrupt(f"Entry {self.entries} does not follow the one before it.")
            self._count(payload)
        except (KeyError, TypeError, ValueError) as error:
            raise corrupt(f"Entry {self.entries} is not a ledger entry.") from error
        except ConfideError as error:
            if error.code.startswith("ledger."):
                raise
            raise corrupt(f"Entry {self.entries} holds no valid plan.") from error
        self.entries, self.head = self.entries + 1, digest
        return Entry(number=number, hash=digest, payload=payload)

    def _count(self, payload: dict[str, Any]) -> None:
        state = payload["state"]
        if (state == "created") != (self.entries == 0):
            raise ValueError("a ledger is created once, first")
        if state == "created":
            if payload["format"] != FORMAT:
                raise ConfideError(
                    "ledger.format",
                    f"The ledger has format {payload['format']!r}, this version reads {FORMAT}.",
                    "Use the version of confide that wrote it; a new ledger would forget what was"
                    " spent.",
                )
            self.ledger_id, self.key_hash = payload["ledger"], payload["key"]
        elif state == "reserved":
            plan = Plan.from_json(payload["plan"])
            steps, unit = plan.steps(), (plan.unit, payload.get("person", ""))
            if payload["task"] in self.tasks:
                raise ValueError("a task is charged once")
            if plan.trust is not Trust.OFF:
                if self.unit not in (None, unit):
                    raise ValueError("a ledger adds up one unit")
                self.unit = unit
            self._settle(plan, payload)
            self.tasks[payload["task"]] = ""
            self.spent[payload["run"], steps.noise_multiplier, steps.sampling_rate] += steps.steps
            bare = plan.unmasked()
            self.unmasked[payload["run"], bare.noise_multiplier, bare.sampling_rate] += bare.steps
            self.charged[payload["run"], payload.get("round", -1)] += steps.steps
        elif state == "released":
            if self.tasks[payload["task"]] or not payload["reply"]:
                raise ValueError("a task is released once")
            self.tasks[payload["task"]] = payload["reply"]
            self.identity = payload["text"]
            self.releases.append((payload["number"], payload["task"]))
        elif state == "opened":
            if payload["call"] in self.opened or not payload["set"]:
                raise ValueError("a sum is opened once")
            self.opened[payload["call"]] = payload["set"]
        else:
            raise ValueError("unknown state")

    def _settle(self, plan: Plan, payload: Mapping[str, Any]) -> None:
        """Take in the whole plan of a charge's run, and its limit."""
        whole = merge(GaussianSteps.from_json(step) for step in payload["whole"])
        limit, order = payload["limit"], payload["order"]
        if not (limit is None or (type(limit) is float and 0 <= limit < math.inf)):
            raise ValueError("a limit is a number, or none")
        if order not in ORDERS or not covers(whole, (plan.steps(),)):
            raise ValueError("a charge is a part of its run's plan")
        terms = self.terms or Terms(order=float(order), plain=is_plain(whole), limit=limit)
        if order != terms.order:
            raise ValueError("the order of the filter is settled once")
        above = terms.limit is not None and (limit is None or limit > terms.limit)
        self.terms, self.limit, self.raised = terms, limit, self.raised or above
        self.plans.setdefault(RunPlan(run=payload["run"], whole=whole, delta=plan.delta))

    def plans_of(self, run: str | None) -> Sequence[RunPlan]:
        """Every run under each of its plans, or one run, in the order of their first charges."""
        return [plan for plan in self.plans if run is None or plan.run == run]

    @property
    def deltas(self) -> frozenset[float]:
        """The deltas of all plans."""
        return frozenset(plan.delta for plan in self.plans)

    def steps(self, run: str | None, *, unmasked: bool = False) -> Steps:
        """All that was charged; ``unmasked``: what it is if every mask of a secure sum fails."""
        return merge(
            GaussianSteps(noise_multiplier=z, sampling_rate=q, steps=n)
            for (of, z, q), n in (self.unmasked if unmasked else self.spent).items()
            if run is None or of == run
        )


def corrupt(what: str) -> ConfideError:
    """The error of a ledger whose file is not what it was."""
    return ConfideError(
        "ledger.corrupt",
        f"The ledger is damaged or was tampered with. {what}",
        "Put the newest whole copy back and compare its head with the receipts already sent.",
    )


def task_spent() -> ConfideError:
    """The error of a task that comes a second time and has no kept reply."""
    return ConfideError(
        "ledger.task-spent",
        "This task was charged before, and its reply cannot be given again.",
        "Send a new task; fresh noise for the same task would be free of charge.",
    )


def exhausted(book: Book, plan: Plan, limit: float) -> ConfideError:
    """The error of a round that does not fit."""
    delta = plan.delta
    spent = epsilon_pld(book.steps(None), delta)
    wanted = epsilon_pld((*book.steps(None), plan.steps()), delta)
    several = (
        " Several runs are held to a bound that holds whatever one run showed before the next was"
        " set up, which allows less than their sum by PLD."
        if book.plans
        else ""
    )
    return ConfideError(
        "ledger.budget-exhausted",
        f"epsilon = {spent:.4g} of {limit:g} is spent at delta = {delta:g}; this task would make"
        f" it {wanted:.4g}.{several}",
        "The holder may raise its limit, or take part with more noise or fewer steps.",
    )


def run_exhausted(run: str, limit: float) -> ConfideError:
    """The error of a charge that does not fit into the limit of its run."""
    return ConfideError(
        "policy.max-epsilon-per-run",
        f"Run {run!r:.100} would spend more than max-epsilon-per-run = {limit:g}.",
        "Start a run with more noise or fewer rounds.",
    )


def check_unit(book: Book, unit: Unit, person: str) -> None:
    """Refuse to add up two units. A record's epsilon says nothing of a person's; and where persons
    are clipped as a whole, one record may move the sum by twice the clip norm."""
    if book.unit not in (None, (unit, person)):
        spent = in_words(*book.unit) if book.unit else ""
        raise ConfideError(
            "ledger.unit",
            f"What was spent on this data set is per {spent}, this task is per"
            f" {in_words(unit, person)}; the two do not add up.",
            f"Take part in runs with the unit {spent} only.",
        )


def in_words(unit: str, person: str) -> str:
    """The unit of a ledger for people: record, or person (column 'author')."""
    return f"{unit} (column {person!r})" if unit == Unit.PERSON else unit


def check_charge(charge: Charge, limit: float | None) -> None:
    """Refuse a charge that names nothing, or a limit that is no number."""
    if not charge.task_hash or not charge.run or type(charge.round) is not int:
        raise ConfideError("ledger.charge", "A charge needs a run, a whole round and a task hash.")
    if not isinstance(charge.bundle_hash, str):
        raise ConfideError("ledger.charge", "The hash of the code bundle is text, or empty.")
    if (charge.plan.unit is Unit.PERSON) != bool(charge.person):
        raise ConfideError("ledger.charge", "A column of persons goes with the unit person alone.")
    if charge.whole and not covers(charge.whole, (charge.plan.steps(),)):
        raise ConfideError("ledger.charge", "A charge is a part of what its run is to release.")
    if limit is not None and not limit >= 0:  # nan included
        raise ConfideError("ledger.charge", f"limit = {limit!r} is not a number >= 0.")


def hash_of_key(key: bytes) -> str:
    """What the first entry says of the identity key: enough to notice another one, and nothing
    that helps to guess 32 random bytes."""
    return sha256(b"confide ledger key:" + key).hexdigest()


def checked_key(key: object, digest: str) -> bytes:
    """The identity key, or the error of a ledger that lost it or got another."""
    if not isinstance(key, bytes) or hash_of_key(key) != digest:
        raise corrupt("Its identity key is not the one it was made with.")
    return key


def checked_reply(body: object, digest: str) -> bytes:
    """The kept bytes of a reply, or the error of a ledger that lost them."""
    if not isinstance(body, bytes) or sha256(body).hexdigest() != digest:
        raise corrupt("A kept reply does not match the entry of its release.")
    return body
