"""report.json: what a run can show for itself, computed from its folder.

For every holder the events are those of its ledger when the folder holds one, otherwise those of
its newest receipt; epsilon is recomputed from the events, never copied. The claim is the maximum
over the holders (their data sets are disjoint), and it is withdrawn when a hard check fails.
Whatever is not known stays null; nothing is estimated downwards. Accounting: Koskela et al. 2020
(PLD), Gopi et al. 2021 (PRV), Mironov et al. 2019 (RDP).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from ...common.errors import ConfideError
from ...common.privacy import accountant, statement
from ...common.privacy.accountant import GaussianSteps
from ...common.privacy.groups import group_epsilon
from ...common.privacy.plan import Relation, Unit
from ..run_folder import RunFolder
from . import SCHEMA, Json, finite, group_text, no_path, wilson
from .checks import run_checks
from .html import render
from .reading import Run, read_run
from .verify import Account, LedgerFacts, read_ledgers

GROUP_SIZES = (2, 5)
CURVE_POINTS = 12  # rounds at which epsilon is recomputed for the chart
CURVE_HOLDERS = 12  # more different holders than this: only the extremes are drawn
# Failures that come before a holder charges its ledger, so that nothing was spent.
BEFORE_CHARGE = ("ledger.budget-exhausted", "policy.", "transport.gone")
NAMELESS = "node-"  # a holder that never answered is known by the number of its node only
ADVERSARY = (
    "everyone who sees the updates, the adapter or this report, the coordinator included, "
    "with any knowledge and any computing power"
)

Steps = tuple[GaussianSteps, ...]


def write_report(folder: Path, *, prv: bool = True) -> Json:
    """Compute the report and leave report.json and report.html in the folder."""
    report = build_report(folder, prv=prv)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    RunFolder(folder).write("report.json", text.encode())
    RunFolder(folder).write("report.html", render(report).encode())
    return report


def build_report(folder: Path, *, prv: bool = True) -> Json:
    """The report as a JSON object. ``prv=False`` leaves epsilon_prv null, and torch alone."""
    run = read_run(folder)
    ledgers = read_ledgers(folder, run.id)
    accounts = [_account(run, name, ledgers.get(name)) for name in _holder_names(run, ledgers)]
    holders = [_holder(run, account, prv=prv) for account in accounts]
    _add_curves(run, accounts, holders)
    checks = run_checks(run, accounts, holders)
    claim = _claim(run, accounts, holders, checks)
    report = {
        "schema": SCHEMA,
        "claim": claim,
        "run": _about(run),
        "holders": holders,
        "utility": _utility(run),
        "released": _released(run, accounts),
        "not_protected": _things([_weaker(run, claim["groups"]), *_NOT_PROTECTED]),
        "checks": checks,
        "faults": [{"round": r, "holder": h, "code": c} for r, h, c in _left_out(run)],
        "costs": _costs(run),
        "software": run.start.get("software", {}),
        "settings": {key: no_path(value) for key, value in run.settings.to_flat().items()},
    }
    return {key: finite(value) for key, value in report.items()}


# --- holders ---


def _holder_names(run: Run, ledgers: dict[str, LedgerFacts]) -> list[str]:
    """Every holder that is known by name, and every node that can be none of these."""
    known = {update.holder for update in run.accepted} | set(ledgers)
    known |= {name for _, name, _ in _left_out(run) if not name.startswith(NAMELESS)}
    strangers: set[str] = set()
    for number, event in run.rounds.items():
        nameless = {n for r, n, c in _left_out(run) if r == number and _may_charge(n, c)}
        answered = {update["holder"] for update in event["accepted"]}
        if len(nameless) > len(known - answered):
            strangers |= nameless
    return sorted(known | strangers)


def _left_out(run: Run) -> Iterable[tuple[int, str, str]]:
    for number, event in run.rounds.items():
        for left in event["left_out"]:
            yield number, str(left["holder"]), str(left["code"])


def _may_charge(name: str, code: str) -> bool:
    return name.startswith(NAMELESS) and not code.startswith(BEFORE_CHARGE)


def _account(run: Run, name: str, ledger: LedgerFacts | None) -> Account:
    """The events of one holder: its ledger's, else its newest receipt's plus what is open."""
    mine = [update for update in run.accepted if update.holder == name]
    receipts = tuple(update.receipt for update in mine if update.receipt)
    rounds = tuple(sorted({update.round for update in mine}))
    steps: Steps = tuple(receipts[-1].steps_run) if receipts else ()
    basis, open_rounds = "receipt" if receipts else "plan", 0
    if ledger is not None and not ledger.fault:
        steps, basis = ledger.steps, "ledger"
    else:
        open_rounds = _open_rounds(run, name, rounds[-1] if rounds else 0)
        steps = (*steps, *_open_steps(run, steps, open_rounds))
    return Account(
        name=name,
        rounds=rounds,
        receipts=receipts,
        steps=accountant.merge(steps),
        basis=basis,
        open_rounds=open_rounds,
        ledger=ledger,
    )


def _open_rounds(run: Run, name: str, after: int) -> int:
    """Rounds after the newest receipt in which the holder may have charged without our knowing.

    Who timed out, or was turned away at the gate, has spent its round; the next receipt would say
    so, but there was none. Where only a node's number is known, it may have been this holder.
    """
    rounds = set()
    for number, who, code in _left_out(run):
        answered = {update["holder"] for update in run.rounds[number]["accepted"]}
        maybe = who == name or (_may_charge(who, code) and name not in answered)
        if number > after and maybe and not code.startswith(BEFORE_CHARGE):
            rounds.add(number)
    return len(rounds)


def _open_steps(run: Run, steps: Steps, rounds: int) -> Steps:
    """As many steps as the open rounds have, like the holder's last; at rate 1 if there is none."""
    noise = steps[-1].noise_multiplier if steps else run.settings.privacy.noise_multiplier
    if not rounds or not noise:
        return ()
    rate, count = steps[-1].sampling_rate if steps else 1.0, rounds * run.settings.train.steps
    return (GaussianSteps(noise_multiplier=noise, sampling_rate=rate, steps=count),)


def _holder(run: Run, account: Account, *, prv: bool) -> Json:
    """One row of the report. Without any event that we know of, the plan's epsilon stands."""
    delta, steps = run.settings.privacy.delta, account.steps
    unknown = bool(account.open_rounds and not steps)
    known = run.private and not unknown
    pld = accountant.epsilon_pld(steps, delta) if known else (run.limit if run.private else None)
    newest = account.receipts[-1] if account.receipts else None
    return {
        "name": account.name,
        "rounds": len(account.rounds),
        "events": [step.to_json() for step in steps],
        "basis": account.basis,
        "open_rounds": account.open_rounds,
        "epsilon_pld": pld,
        "epsilon_prv": _prv(steps, delta) if known and prv else None,
        "epsilon_rdp": accountant.epsilon_rdp(steps, delta) if known else None,
        "epsilon_limit": run.limit,
        "epsilon_all_runs": newest.epsilon if newest and run.private else None,
        "epsilon_rounds": [],
        "receipt": newest.to_json() if newest else None,
        "ledger": account.ledger.path if account.ledger else None,
    }


@lru_cache(maxsize=1024)
def _prv(steps: Steps, delta: float) -> float | None:
    """Opacus's figure, or None where it has none: there is too little noise for it."""
    try:
        return accountant.epsilon_prv(steps, delta)
    except ConfideError:
        return None


def _add_curves(run: Run, accounts: Sequence[Account], holders: Sequence[Json]) -> None:
    """epsilon after some of the rounds, for the chart, of holders that differ."""
    spent = {a.steps: h["epsilon_pld"] or 0.0 for a, h in zip(accounts, holders, strict=True)}
    shown = sorted(spent, key=lambda steps: spent[steps])
    if len(shown) > CURVE_HOLDERS:
        shown = [shown[0], shown[-1]]
    for account, holder in zip(accounts, holders, strict=True):
        if run.private and account.receipts and account.steps in shown:
            holder["epsilon_rounds"] = _curve(run, account)


def _curve(run: Run, account: Account) -> list[list[float]]:
    by_round = {u.round: u.receipt for u in run.accepted if u.holder == account.name and u.receipt}
    rounds = sorted(by_round)
    chosen = sorted({*rounds[:: math.ceil(len(rounds) / CURVE_POINTS)], rounds[-1]})
    delta = run.settings.privacy.delta
    return [[float(r), accountant.epsilon_pld(by_round[r].steps_run, delta)] for r in chosen]


# --- the claim ---


def _claim(
    run: Run, accounts: Sequence[Account], holders: Sequence[Json], checks: Sequence[Json]
) -> Json:
    """Disjoint holders compose in parallel: the claim is the largest epsilon, never the mean."""
    failed = [check["name"] for check in checks if check["hard"] and not check["passed"]]
    spent = [holder["epsilon_pld"] for holder in holders]
    bounded = run.private and all(e is not None and math.isfinite(e) for e in spent)
    epsilon = max(spent, default=0.0) if bounded else None
    private = bounded and not failed
    steps: Steps = ()
    if private and spent:
        steps = accounts[spent.index(epsilon)].steps
    privacy, found = run.settings.privacy, partial(accountant.true_positive_rate, steps)
    return {
        "private": private,
        "sentence": _sentence(run, epsilon, failed),
        "unit": privacy.unit,
        "neighbouring": str(Relation.ADD_OR_REMOVE_ONE),
        "epsilon": epsilon,
        "delta": privacy.delta,
        "planned_epsilon": run.limit,
        "adversary": ADVERSARY if private else "nobody",
        "in_plain_words": _in_plain_words(private, steps, run.unit),
        "attacker": [
            {"false_positive_rate": rate, "true_positive_rate": found(false_positive_rate=rate)}
            for rate in (statement.FALSE_POSITIVE_RATES if steps else ())
        ],
        "groups": [
            {"records": size, "epsilon": group_epsilon(steps, privacy.delta, size)}
            for size in (GROUP_SIZES if steps and run.unit is Unit.RECORD else ())
        ],
    }


def _sentence(run: Run, epsilon: float | None, failed: Sequence[str]) -> str:
    if run.private and (failed or epsilon is None):
        reasons = f"A check failed: {'; '.join(failed)}" if failed else "A holder's part is unknown"
        return f"{statement.NOT_PRIVATE}. {reasons}."
    privacy, spent = run.settings.privacy, math.inf if epsilon is None else epsilon
    return statement.claim(epsilon=spent, delta=privacy.delta, unit=run.unit)


def _in_plain_words(private: bool, steps: Steps, unit: Unit) -> str:
    if not private:
        return f"Nothing is promised about what the adapter or the updates reveal of a {unit}."
    if not steps:
        return "No more is known than the bound above, which every holder planned with."
    return statement.in_plain_words(steps, unit=unit)


# --- the rest of the report ---


def _about(run: Run) -> Json:
    model = run.start.get("model", {})
    return {
        "id": run.id,
        "name": run.settings.run.name,
        "started": run.start.get("time"),
        "ended": run.end.get("time"),
        "status": run.end.get("status", "not ended"),
        "rounds_planned": run.settings.round.count,
        "rounds": sum(not event["abandoned"] for event in run.rounds.values()),
        "holders": run.start.get("federation", {}).get("holders"),
        "model": {**model, "name": no_path(model.get("name", run.settings.model.name))},
    }


def _utility(run: Run) -> Json:
    """Accuracy on the coordinator's own held-out text, with a 95 % Wilson interval at the end."""
    points = [
        {"round": number, "accuracy": event.get("accuracy"), "loss": event.get("loss")}
        for number, event in run.evaluations.items()
    ]
    before = run.evaluations.get(0, {})
    after: Json = next(reversed(run.evaluations.values()), {})
    return {
        "metric": "accuracy",
        "before": {key: before.get(key) for key in ("accuracy", "loss")},
        "after": {key: after.get(key) for key in ("accuracy", "loss")},
        "interval": wilson(after.get("accuracy"), after.get("examples")),
        "examples": after.get("examples"),
        "rounds": points,
        "yardsticks": list(run.yardsticks),
    }


def _released(run: Run, accounts: Sequence[Account]) -> Json:
    """Everything that left a holder, or that the run made public, by who answers for it."""
    s, trained = run.settings, run.start.get("model", {}).get("trained")
    kind = "sum of clipped gradients" if s.round.mode == "gradient" else "change of the adapter"
    size = f" of {trained:,} numbers" if trained else ""
    update = f"One {kind}{size} per round and holder"
    guarded = (
        f"clipped to {s.privacy.clip:g} per {run.unit}; the holder added Gaussian noise itself"
    )
    rates = [step.sampling_rate for account in accounts for step in account.steps]
    tells = (
        f"with the public batch of {s.train.batch} it tells how many {run.unit}s a holder has"
        if min(rates, default=0.0) < 1
        else f"it is 1, which tells that no holder has more than {s.train.batch} {run.unit}s"
    )
    bare = [] if run.private else [(update, "no noise was added: it can reveal records")]
    return {
        "accounted": _things([(update, guarded)] if run.private else []),
        "public": _things(_PUBLIC),
        "not_accounted": _things([*bare, ("The sampling rate", tells), *_NOT_ACCOUNTED]),
    }


def _things(pairs: Iterable[tuple[str, str]]) -> list[Json]:
    return [{"what": what, "why": why} for what, why in pairs]


_PUBLIC = (
    ("The base model and the adapter at the start", "they hold no private text"),
    ("The settings of the run", "chosen by the coordinator"),
    ("Accuracy and loss by round", "measured by the coordinator on public held-out text"),
)
_NOT_ACCOUNTED = (
    ("Which holders took part, and why one did not", "whoever coordinates sees who answers"),
    ("The ledger's length and total in each receipt", "they tell of the holder's other runs"),
    ("The time of each answer", "it depends on the machine and on how many records were drawn"),
)


def _weaker(run: Run, groups: Sequence[Json]) -> tuple[str, str]:
    """For whom the promise is weaker than it may sound."""
    person = run.settings.data.person
    if run.unit is Unit.PERSON:
        apart = (
            f"Persons are the values of the column {person!r}, as the holder filled it in. Someone"
            " under two of them counts as two persons, and what one person's records say of another"
            " is protected as the first one's alone."
        )
        return ("A person under several names", apart)
    column = f" The column {person!r} names persons, but was not the unit." if person else ""
    weaker = "".join(
        f" With {group['records']} at one holder, epsilon is {group_text(group['epsilon'])}."
        for group in groups
    )
    several = f"The promise is for one record; for a person with more it is weaker.{weaker}{column}"
    return ("A person with several records", several)


_NOT_PROTECTED = (
    (
        "One person at several holders",
        "Each holder accounts for its own text. What several of them spend on the same person "
        "adds up, and none of them can know it.",
    ),
    (
        "Facts shared by many",
        "What many records say, an adapter may learn and repeat. It would do so without any "
        "single one of them, and so no claim of this kind covers it.",
    ),
    ("The holder's own machine", "Its disks, logs and backups, and whoever may read them."),
    (
        "A holder that runs other software",
        "The noise is added by the holder's own copy of confide. A receipt is the holder's word; "
        "only its ledger can be verified.",
    ),
    ("Limits of the machine", "Attacks on rounding, or on computing time, are not excluded."),
)


def _costs(run: Run) -> Json:
    def mean(key: str) -> float | None:
        values = [event[key] for event in run.rounds.values() if event.get(key) is not None]
        return sum(values) / len(values) if values else None

    return {
        "seconds": run.end.get("seconds"),
        "seconds_per_round": mean("seconds"),
        "bytes_down": mean("bytes_down"),
        "bytes_up": mean("bytes_up"),
        "peak_memory_mb": run.end.get("peak_memory_mb"),
    }
