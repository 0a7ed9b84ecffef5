"""The checks that a report stands on: what was verified in a run, and what withdraws its claim."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from ...common.methods import method_of
from ...common.plans import plan_of
from ...common.privacy.plan import Trust
from ..seal import broken
from . import Json, epsilon_text
from .accounts import Account, left_out
from .reading import RunRecord

PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
WHOLE = "The run folder is as the run left it"  # its check, which verify asks for by name

# What a holder answers when its own checks before or within a release fail
# (client/training/self_check.py, client/training/private_step.py).
SELF_CHECKS = (
    "train.self-check",
    "train.clip",
    "train.noise",
    "train.no-gradient",
    "train.batch-shape",
)


def run_checks(run: RunRecord, accounts: Sequence[Account], holders: Sequence[Json]) -> list[Json]:
    """What was verified. A hard check that fails withdraws the claim."""
    checks = [_check_noise_is_on(run)]
    if run.private:
        checks += [
            _check_noised(accounts),
            _check_charged(run, accounts),
            _check_chains(accounts),
            _check_ledgers(run, accounts),
            _check_limit(run, holders),
            _check_self_checks(run, accounts),
        ]
    return [*checks, _check_whole(run), _check_trained(run), _check_finished(run)]


def _check(
    name: str, problems: Sequence[str], detail: str, *, hard: bool = True, done: bool = True
) -> Json:
    """A check in one of three states; what was not ``done`` is never told as passed."""
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if problems[3:] else "")
    state = FAILED if problems else PASSED if done else NOT_CHECKED
    return {"name": name, "state": state, "hard": hard, "detail": shown or detail}


def _check_whole(run: RunRecord) -> Json:
    """Whether metrics.jsonl, config.toml and the adapter are those that the run ended with."""
    problems = broken(run.folder)
    return _check(
        WHOLE,
        problems or [],
        "Every line of metrics.jsonl, the settings and the adapter are those that its last line"
        " was written for."
        if problems is not None
        else "The run wrote no end that the folder could be held against.",
        done=problems is not None,
    )


def _check_noise_is_on(run: RunRecord) -> Json:
    problems = [] if run.private else ["privacy.trust = 'off': no holder added noise"]
    plan = plan_of(run.settings)
    shared = (
        f"Every holder adds a share of the noise; {plan.honest} of them make all of it, and no sum"
        f" of fewer than {plan.least} is opened."
    )
    alone = "Every holder adds all of the noise itself."
    detail = shared if plan.trust is Trust.DISTRIBUTED else alone
    return _check("Noise was on", problems, detail)


def _check_noised(accounts: Sequence[Account]) -> Json:
    problems = [
        f"{account.name}, round {number}: no noised step in its receipt"
        for account in accounts
        for number in account.history.bare
    ]
    count = sum(account.history.updates for account in accounts)
    return _check(
        "Every accepted update was noised",
        problems,
        f"{count} updates, each with a receipt of noised steps only.",
    )


def _check_charged(run: RunRecord, accounts: Sequence[Account]) -> Json:
    """As many steps on the books as rounds were accepted."""
    problems = []
    for account in accounts:
        charged = sum(step.steps for step in account.steps)
        steps = plan_of(run.settings).steps_per_round
        due = account.history.rounds * steps + account.history.sums
        if charged < due:
            problems.append(f"{account.name}: {charged} steps charged, {due} released")
    return _check(
        "Every accepted update was charged", problems, "No holder released more than it charged."
    )


def _check_chains(accounts: Sequence[Account]) -> Json:
    problems = [f"{a.name}: {what}" for a in accounts for what in a.history.breaks]
    return _check(
        "Receipts chain forward", problems, "No holder's ledger ever went back between rounds."
    )


def _check_self_checks(run: RunRecord, accounts: Sequence[Account]) -> Json:
    """The holder refuses by itself; that it did not is its word, as is all that it runs."""
    problems = [
        f"{who}, round {number}: {code}"
        for number, who, code in left_out(run)
        if code in SELF_CHECKS
    ]
    if not any(account.history.updates for account in accounts):
        problems.append("no update was accepted")
    return _check(
        "Gradients and noise were checked at each holder",
        problems,
        "confide releases no update unless, at the holder: gradients of made-up records agreed"
        " with those of each record alone, before the charge; every trained tensor had a gradient"
        " of its own for each record, and moved; no clipped gradient was longer than the clip norm;"
        " each draw of noise had the variance it must have. No holder said otherwise."
        " This is the holders' word.",
        hard=False,
    )


def _check_ledgers(run: RunRecord, accounts: Sequence[Account]) -> Json:
    problems = []
    for account in accounts:
        facts = account.ledger
        if facts is not None:
            found = facts.against(account.newest, run.unit_in_words)
            problems += [f"{account.name}: {problem}" for problem in found]
    present = sum(account.ledger is not None for account in accounts)
    detail = (
        f"{present} of {len(accounts)} ledgers are in the run folder; their hash chains hold and "
        "the receipts are part of them."
        if present
        else "No ledger is in the run folder; the figures rest on the receipts, the holders' word."
    )
    missing = len(accounts) - present
    if present and missing:
        detail += f" Those of the other {missing} were not checked."
    return _check("Ledgers agree with the receipts", problems, detail, done=not missing)


def _check_limit(run: RunRecord, holders: Sequence[Json]) -> Json:
    name = "No holder spent more than planned"
    if run.limit is None:
        told = "The noise was given, so that no epsilon was planned."
        return _check(name, [], told, done=False)
    problems = [
        f"{holder['name']}: epsilon {epsilon_text(holder['epsilon_pld'])} > {run.limit:g}"
        for holder in holders
        if holder["epsilon_pld"] is None or holder["epsilon_pld"] > run.limit * (1 + 1e-9)
    ]
    return _check(name, problems, f"Every holder stays at or below epsilon = {run.limit:g}.")


def _check_trained(run: RunRecord) -> Json:
    """LoRA's B starts at zero: where it is still zero, nothing was learnt (Opacus issue 820), but
    for the head alone, and where B stays at the holders."""
    path = run.folder / "adapter" / "adapter_model.safetensors"
    if not path.is_file():
        return _check("The adapter was trained", ["there is no adapter"], "", hard=False)
    problems = []
    s, tensors = run.settings, list(_tensors(path.read_bytes()))
    moves = s.lora.method != "head" and "B" not in method_of(s.aggregate.method).stays
    for name, dtype, data in tensors:
        if moves and "lora_B" in name and not any(data):
            problems.append(f"{name} is still zero")
        if not _all_finite(dtype, data):
            problems.append(f"{name} is not finite")
    return _check(
        "The adapter was trained",
        problems,
        f"{len(tensors)} tensors, all finite, no LoRA factor left at its start."
        if moves
        else f"{len(tensors)} tensors, all finite; no B of LoRA was trained at the coordinator.",
        hard=False,
    )


def _tensors(file: bytes) -> Iterable[tuple[str, str, bytes]]:
    """Name, dtype and bytes of every tensor of a safetensors file."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = entry["data_offsets"]
            yield name, entry["dtype"], file[8 + length + low : 8 + length + high]


def _all_finite(dtype: str, data: bytes) -> bool:
    if dtype == "BF16":
        exponents = np.frombuffer(data, "<u2") & 0x7F80
        return bool((exponents != 0x7F80).all())
    known = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    return dtype not in known or bool(np.isfinite(np.frombuffer(data, known[dtype])).all())


def _check_finished(run: RunRecord) -> Json:
    status = run.end.get("status", "not ended")
    abandoned = [number for number, line in run.rounds.items() if line.abandoned]
    problems = [] if status == "finished" else [f"the run is {status} {run.end.get('code', '')}"]
    problems += [f"round {number} was abandoned" for number in abandoned]
    problems += [
        f"too few took part in the sum of {s['of']}" for s in run.summed.values() if s["abandoned"]
    ]
    return _check(
        "All rounds were completed", problems, f"{len(run.rounds)} rounds were run.", hard=False
    )
