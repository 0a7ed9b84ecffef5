"""The administrator's word on single runs: yes or no, on the holder's own machine.

Two small files lie beside the ledger and belong to its user. ``LEDGER.asked.json`` is the
resident's: with ``ask-before-run`` in the policy, what each run said of itself when it asked first.
``LEDGER.decisions.json`` is the administrator's: allowed or denied, by the run's id. A request is
refused, or not, by the run's id, the policy and that file alone, before anything else of it is
looked at that costs or tells. A denied run is refused whatever the policy says, also in mid-run.

What a run says of itself is the coordinator's word; its id is its own choice, too. What bounds it
is the policy, by which the epsilon of one id adds up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError
from ...common.machine.paths import replace_durably
from ...common.plans import planned_steps
from ...common.privacy.accountant import GaussianSteps, epsilon_pld
from ...common.settings import Settings
from .policy import Policy

MOST_ASKED = 100  # runs; of more, the newest are kept: whoever asks could ask for ever
_MOST_BYTES = 2**20
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Decision(StrEnum):
    """What the administrator said of a run."""

    ALLOWED = "allowed"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run said of itself besides its id, which has its name: who starts it, what is learnt,
    the planned steps of all its rounds and sums with their delta, and when it asked first (Unix
    time)."""

    coordinator: str
    task: str
    steps: tuple[GaussianSteps, ...]
    delta: float
    time: int

    @property
    def epsilon(self) -> float:
        """What the whole run plans to spend, by PLD; infinite without noise."""
        return epsilon_pld(self.steps, self.delta)


def check_run(run: str, settings: Settings, policy: Policy, ledger: Path) -> None:
    """Refuse a run that the administrator denied, or has still to say yes to.

    Raises:
        ConfideError: ``policy.run-denied``, ``policy.ask-before-run``, ``policy.decisions`` when
            the file of decisions cannot be relied on, or ``task.run`` for an id that nobody could
            type.
    """
    decision = decisions(ledger).get(run)
    if decision is Decision.DENIED:
        raise ConfideError(
            "policy.run-denied",
            f"This holder's administrator denied run {run!r:.140}.",
            "Start another run, after the administrator agreed to it.",
        )
    if not policy.ask_before_run or decision is Decision.ALLOWED:
        return
    if not _ID.fullmatch(run):
        raise ConfideError("task.run", "The run's id is not 1 to 128 of A-Z a-z 0-9 . _ -")
    _note_asked(run, settings, ledger)
    raise ConfideError(
        "policy.ask-before-run",
        f"This holder's administrator was asked about run {run}, and has not said yes so far.",
        f"There: `confide client runs KIT`, then `confide client allow KIT {run}`; then ask again.",
    )


def decide(run: str, decision: Decision, ledger: Path) -> None:
    """Write down what the administrator says of a run; it counts from the next request on.

    Raises:
        ConfideError: ``task.run``, ``policy.decisions``, or ``policy.write`` when the disk refuses.
    """
    if not _ID.fullmatch(run):
        raise ConfideError(
            "task.run",
            f"{run!r:.140} is not a run's id: 1 to 128 of A-Z a-z 0-9 . _ -",
            "`confide client runs KIT` lists them.",
        )
    _write(_decisions_file(ledger), {**decisions(ledger), run: decision})


def decisions(ledger: Path) -> dict[str, Decision]:
    """What was said so far, by the run's id.

    Raises:
        ConfideError: ``policy.decisions``: a file that cannot be read may have held a no.
    """
    path = _decisions_file(ledger)
    try:
        return {str(run): Decision(word) for run, word in _read(path).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ConfideError(
            "policy.decisions",
            f"{path} cannot be read as the administrator's decisions.",
            "Put it right or remove it, and say again which runs are denied.",
        ) from None


def asked(ledger: Path) -> dict[str, Asked]:
    """The runs that asked, the newest last; none where the file is spoilt: it decides nothing."""
    try:
        return {str(run): _asked(row) for run, row in _read(_asked_file(ledger)).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfideError):
        return {}


def _note_asked(run: str, settings: Settings, ledger: Path) -> None:
    known = asked(ledger)
    if run in known:
        return
    known[run] = Asked(
        coordinator=settings.run.coordinator[:100],
        task=settings.task.kind,
        steps=planned_steps(settings),
        delta=settings.privacy.delta,
        time=round(time.time()),
    )
    newest = {r: asdict(a) for r, a in list(known.items())[-MOST_ASKED:]}
    with suppress(ConfideError):  # the disk is full: the run is refused all the same
        _write(_asked_file(ledger), newest)


def _asked(row: Mapping[str, Any]) -> Asked:
    steps = tuple(GaussianSteps.from_json(step) for step in row["steps"])
    return Asked(**{**row, "steps": steps})


def _asked_file(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.asked.json")


def _decisions_file(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.decisions.json")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(raw) > _MOST_BYTES:
        raise ValueError("too large")
    found: Mapping[str, Any] = json.loads(raw)
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        replace_durably(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        raise ConfideError(
            "policy.write",
            f"{path} cannot be written: {error.strerror}.",
            "Make room, or let this user write there.",
        ) from None
