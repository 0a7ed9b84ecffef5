"""Noisy sums over the holders, at the coordinator: asked for, added up, and what follows from them.

The holders add the noise and are charged (``common.plans``); everything here is post-processing of
what they released, and costs no privacy. Added up over H holders the noise has standard deviation
sqrt(H) times one holder's. Nothing here withstands a hostile holder, which can send any number.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.errors import ConfideError
from ..common.plans import (
    Sum,
    largest_loss,
    noise_of,
    numbers_in_sum,
    plan_of_sum,
    step_of_sum,
    sums_of,
    with_counted,
)
from ..common.privacy.ledger import Receipt
from ..common.settings import Settings, from_flat
from ..common.tasks.labels import COUNTED
from ..common.wire.messages import TrainRequest, Update
from .gate import Accepted, check_masked, check_sum, sift
from .run_folder import RunFolder
from .secure_sum import SecureSum, named
from .senders import Senders
from .transport import Transport

logger = logging.getLogger("confide.server")

COUNTED_FILE = "checkpoint/counted.json"
_COUNTED = re.compile(rf"{COUNTED} [0-9.e+-]+(,[0-9.e+-]+)*")  # as ``with_counted`` has it
_LARGEST_WEIGHT = 1e6  # of a class, by ``common.settings.combinations``
_CLEAR = 4.0  # standard deviations that a number of units must stand out of its noise


@dataclass(frozen=True, kw_only=True)
class Summed:
    """A sum over the holders that were accepted: its numbers with noise, and the standard deviation
    of that noise on each; not ``known`` where a secure sum was not opened."""

    totals: tuple[float, ...]
    noise_std: float
    accepted: Mapping[str, Accepted]
    left_out: Sequence[Mapping[str, str]]
    known: bool = True


def ask(
    request: TrainRequest,
    settings: Settings,
    transport: Transport,
    nodes: Sequence[int],
    receipts: Mapping[str, Receipt],
    barred: Collection[str],
    senders: Senders | None = None,
    secure: SecureSum | None = None,
) -> Summed:
    """Ask ``nodes`` for the sum of a request, and add up what passes the gate; in a run with secure
    sums the openers do."""
    size = numbers_in_sum(sums_of(settings)[request.round], settings)
    call = secure.call(request, nodes, size) if secure else None
    if call:
        request = named(request, call.roster, call.openers)

    def passes(update: Update, last: Receipt | None) -> Accepted:
        if call:
            return check_masked(update, request, settings, request.schema, call, last)
        return check_sum(update, request, settings, size, last)

    replies = transport.ask(nodes, request, settings.round.timeout)
    accepted, left_out = sift(replies, passes, receipts, barred, senders)
    if secure and call:
        opened = secure.open(call, accepted, step_of_sum(settings))
        total = [0.0] * size if opened.total is None else opened.total.tolist()
        return Summed(
            totals=tuple(total),
            noise_std=plan_of_sum(settings).share_std * math.sqrt(len(accepted)),
            accepted=accepted,
            left_out=[*left_out, *opened.left_out],
            known=opened.total is not None,
        )
    values = [one.change.double().tolist() for one in accepted.values()]
    return Summed(
        totals=tuple(math.fsum(column) for column in zip(*values, strict=True)) or (0.0,) * size,
        noise_std=noise_of(settings) * math.sqrt(len(values)),
        accepted=accepted,
        left_out=left_out,
    )


def balanced(summed: Summed) -> tuple[str, str]:
    """Class weights and class rates, as settings: both give every class the same say.

    A class of which less was counted than one, or than the noise on it, is taken for that many.
    Weights are the inverse shares, with a mean of 1 over the records; rates are those at which a
    class is used as often as the rarest.
    """
    least = max(1.0, summed.noise_std)
    counts = [max(count, least) for count in summed.totals]
    mean, rarest = sum(counts) / len(counts), min(counts)
    weights = [min(mean / count, _LARGEST_WEIGHT) for count in counts]
    rates = [rarest / count for count in counts]
    return _listed(weights), _listed(rates)


def share_of(summed: Summed) -> tuple[float, float] | None:
    """The first of two numbers as a share of both, in [0, 1], with the standard error that the
    noise gives it (first order); None where both together hardly stand out of the noise."""
    first, rest = summed.totals
    units = first + rest
    if units <= 0 or units < _CLEAR * math.sqrt(2) * summed.noise_std:
        return None
    share = min(max(first / units, 0.0), 1.0)
    return share, summed.noise_std * math.hypot(share, 1 - share) / units


def remembered(folder: RunFolder, settings: Settings) -> dict[str, str]:
    """The settings that a count gave earlier in this run; empty before it.

    A run folder may come from anybody, and what stands here takes the place of settings: so it is
    exactly the settings that were to be counted, with the numbers that a count can give.

    Raises:
        ConfideError: ``run.resume`` when anything else is there.
    """
    path = folder.path / COUNTED_FILE
    if not path.is_file():
        return {}
    damaged = ConfideError("run.resume", f"{path} is damaged.", "Start a new run.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(found, dict) or found.keys() != with_counted(settings, "", "").keys():
        raise damaged
    if not all(isinstance(text, str) and _COUNTED.fullmatch(text) for text in found.values()):
        raise damaged
    try:
        from_flat({**settings.to_flat(), **found})  # as many numbers as classes, in their range
    except ConfideError:
        raise damaged from None
    return found


def remember(folder: RunFolder, found: Mapping[str, str]) -> None:
    """Keep what a count gave for a resumed run."""
    folder.write(COUNTED_FILE, json.dumps(dict(found)).encode())


def counted(summed: Summed, settings: Settings) -> dict[str, str]:
    """The settings that take the place of ``counted``; empty where too few holders counted."""
    return with_counted(settings, *balanced(summed)) if _enough(summed, settings) else {}


def no_count(summed: Summed, settings: Settings) -> ConfideError:
    """The error of a run whose classes too few holders counted."""
    codes = ", ".join(sorted({row["code"] for row in summed.left_out})) or "none"
    return ConfideError(
        "run.no-count",
        f"{len(summed.accepted)} holders counted their classes, round.min-holders ="
        f" {settings.round.min_holders}; the others said: {codes}.",
        "Resume the run when more are there, or start one with numbers in task.class-weights.",
    )


def _enough(summed: Summed, settings: Settings) -> bool:
    return summed.known and len(summed.accepted) >= settings.round.min_holders


def measured(summed: Summed, settings: Settings, model: Any) -> dict[str, float | None]:
    """The metric of the holders' own text, ``value``, and ``error``, the standard error that the
    noise gives it; None of either where too few holders answered or the noise is too large."""
    found = share_of(summed) if _enough(summed, settings) else None
    if found is None:
        return {"value": None, "error": None}
    share, error = found
    if settings.round.holder_metric == Sum.PERPLEXITY:
        most = largest_loss(model)
        return {"value": math.exp(share * most), "error": math.exp(share * most) * most * error}
    return {"value": share, "error": error}


def record(
    folder: RunFolder, request: TrainRequest, summed: Summed, settings: Settings, **facts: Any
) -> None:
    """A line of metrics.jsonl, with the receipts that the report needs."""
    kind = sums_of(settings)[request.round]
    rows = [
        {"holder": a.holder, "bytes_up": a.size, "receipt": a.receipt.to_json()}
        for _, a in sorted(summed.accepted.items())
    ]
    folder.event(
        "sum",
        round=request.round,
        of=kind,
        totals=[round(total, 3) for total in summed.totals],
        noise_std=round(summed.noise_std, 3),
        accepted=rows,
        left_out=list(summed.left_out),
        abandoned=not _enough(summed, settings),
        **facts,
    )
    for row in summed.left_out:
        logger.warning("sum of %s: %s left out, %s", kind, row["holder"], row["code"])


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.4g}" for number in numbers)
