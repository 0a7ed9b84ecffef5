"""The gate: what an update must be before the coordinator looks at its values.

Everything a holder could choose freely is fixed here: it answers this request of this run under the
plain name of the node that it came from (``senders``), has exactly the schema's values in the
agreed encoding, all finite and no longer than an honest change can be, and states a receipt under
the plan's terms that goes on where the holder's last one ended. Weights are never taken from a
holder: every accepted update counts the same. What fails is left out of the round and named with a
code; the round goes on.

A receipt is the holder's word. What the gate can tell is that it contradicts the plan or itself;
the report recomputes epsilon from it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..common.adapter.encoding import decode_vector, rounding_of
from ..common.adapter.schema import AdapterSchema
from ..common.errors import ConfideError
from ..common.masking.openers import Call, Statement, statement_from_bytes
from ..common.masking.ring import from_bytes
from ..common.methods.ranks import padded
from ..common.plans import is_sum, most_terms, most_units, plan_of, steps_of_sums, sums_of
from ..common.privacy.accountant import within
from ..common.privacy.ledger import Receipt
from ..common.settings import Settings
from ..common.wire.messages import Refusal, Reply, TrainRequest, Update
from .ledgers import WENT_BACK
from .senders import ANOTHERS_NAME, NAMELESS, Senders

# A name goes into file names, log lines and the report, and none may look like a nameless node's.
_NAME = re.compile(rf"(?!{NAMELESS})[A-Za-z0-9_][A-Za-z0-9._-]{{0,63}}")
_CODE = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
_MOST_CODE = 64
_HASH = re.compile(r"[0-9a-f]{64}")
_LEDGER_ID = re.compile(r"[0-9a-f]{16,64}")
_MOST_NOISE = 1e9
_MOST_ENTRIES = 2**53
_CLOSE = 1e-3  # relative, of noise that the same target may be calibrated to on two machines
_ROUNDING = 1.01  # of fp32 sums
# No coordinate of Adam moves further than this times lr in a step: by Cauchy and Schwarz
# |m| / sqrt(v) <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) = 7.27 with torch's betas, and the
# corrections of the start make it less.
_ADAM_STEP = 7.3


@dataclass(frozen=True)
class Accepted:
    """An update that passed: who sent it, its change (M,), its receipt and its size in bytes. In a
    secure sum nobody sees the change, which is empty; ``masked`` and ``statement`` are there."""

    holder: str
    change: Tensor
    receipt: Receipt
    size: int
    masked: bytes = field(default=b"", repr=False)
    statement: Statement | None = None


def judge(
    replies: Mapping[int, Reply],
    request: TrainRequest,
    settings: Settings,
    schema: AdapterSchema,
    receipts: Mapping[str, Receipt],
    barred: Collection[str] = (),
    senders: Senders | None = None,
    start: float = 0.0,
    narrower: Mapping[str, AdapterSchema] | None = None,
    call: Call | None = None,
) -> tuple[dict[str, Accepted], list[dict[str, str]]]:
    """Who of a round is accepted, by name, and who is left out with which code.

    Args:
        receipts: the newest of each holder that passed in an earlier round of this run.
        barred: holders whose ledger went back in an earlier round.
        senders: whose name each node has; nobody's is known without it.
        start: the L2 norm of the adapter that the round began with.
        narrower: by digest, the schemas of smaller rank that a holder may train instead.
        call: of the secure sum that the request asked for, if it did.
    """

    def passes(update: Update, last: Receipt | None) -> Accepted:
        if call is not None:
            return check_masked(update, request, settings, schema.digest, call, last)
        return check(update, request, settings, schema, last, start, narrower)

    return sift(replies, passes, receipts, barred, senders)


def sift(
    replies: Mapping[int, Reply],
    passes: Callable[[Update, Receipt | None], Accepted],
    receipts: Mapping[str, Receipt],
    barred: Collection[str],
    senders: Senders | None = None,
) -> tuple[dict[str, Accepted], list[dict[str, str]]]:
    """What ``judge`` says, by what ``passes`` says of each update and its holder's last receipt."""
    senders = senders or Senders()
    senders.look()
    passed: dict[int, Accepted] = {}
    failed: dict[int, str] = {}
    for node, reply in sorted(replies.items()):
        try:
            senders.check(node, reply.holder)
            passed[node] = _update(reply, passes, receipts, barred)
        except ConfideError as error:
            failed[node] = error.code
    # Nobody can say which of two is the one that the name belongs to, so neither counts.
    times = Counter(update.holder for update in passed.values())
    failed |= {n: "gate.duplicate" for n, update in passed.items() if times[update.holder] > 1}
    good = {node: update for node, update in passed.items() if node not in failed}
    senders.keep({node: update.holder for node, update in good.items()})
    accepted = {update.holder: update for update in good.values()}
    left_out = []
    for node, code in sorted(failed.items()):
        name = senders.name_of(node)
        if name.startswith(NAMELESS) and code != ANOTHERS_NAME:
            claimed = named(replies[node].holder, node)
            # Under the name of a holder that was accepted, somebody else must have answered.
            name = name if claimed in accepted else claimed
        left_out.append({"holder": name, "code": code})
    return accepted, left_out


def _update(
    reply: Reply,
    passes: Callable[[Update, Receipt | None], Accepted],
    receipts: Mapping[str, Receipt],
    barred: Collection[str],
) -> Accepted:
    if isinstance(reply, Refusal):
        raise ConfideError(refusal_code(reply), "The holder refused.")
    if not isinstance(reply, Update):
        raise ConfideError("gate.task", "The holder answers what nobody asked now.")
    if reply.holder in barred:
        raise ConfideError(WENT_BACK, "The ledger went back in an earlier round.")
    return passes(reply, receipts.get(reply.holder))


def named(claimed: str, node: int) -> str:
    """The name that a holder gives itself, if it is one that can be written anywhere."""
    return claimed if _NAME.fullmatch(claimed) else f"{NAMELESS}{node}"


def refusal_code(refusal: Refusal) -> str:
    """The code of a refusal, if it is one that a holder may give: what the gate found is the
    gate's to say, since a holder is barred for it."""
    code = refusal.code
    good = len(code) <= _MOST_CODE and _CODE.fullmatch(code) and not code.startswith("gate.")
    return code if good else "holder.failed"


def check(
    update: Update,
    request: TrainRequest,
    settings: Settings,
    schema: AdapterSchema,
    last: Receipt | None = None,
    start: float = 0.0,
    narrower: Mapping[str, AdapterSchema] | None = None,
) -> Accepted:
    """Let an update pass or say why not. One of a smaller rank is made one of ``schema``.

    Args:
        last: the receipt of the newest update of this holder that passed in this run.
        start: the L2 norm of the adapter that the round began with, which weight decay pulls to
            zero.
        narrower: as for ``judge``.

    Raises:
        ConfideError: ``gate.name``, ``gate.task``, ``gate.schema``, ``gate.encoding``,
            ``gate.not-finite``, ``gate.norm``, ``gate.receipt``, ``gate.ledger``, ``gate.noise``,
            ``wire.size``.
    """
    sent = schema if update.schema == schema.digest else (narrower or {}).get(update.schema, schema)
    change = _values(update, request, sent.digest, settings.wire.encoding, sent.trained_size)
    most = largest_norm(settings, sent.trained_size, start)
    if not float(change.double().norm()) <= most:
        raise ConfideError("gate.norm", f"The update is longer than {most:g}, as no honest one is.")
    receipt = _checked_receipt(update, request, settings, last)
    if sent is not schema:
        change = padded(change, sent.trained_shapes, schema.trained_shapes)
    return Accepted(update.holder, change, receipt, len(update.values))


def check_masked(
    update: Update,
    request: TrainRequest,
    settings: Settings,
    schema: str,
    call: Call,
    last: Receipt | None = None,
) -> Accepted:
    """The same of a contribution to a secure sum, of which only what is in clear can be looked at:
    the values are uniform words, and the sum alone shows whether they were what they should be.

    Raises:
        ConfideError: as ``check``; ``sum.malformed``, ``sum.stranger``, ``sum.signature`` or
            ``gate.statement`` where the statement is not this holder's about these values.
    """
    _check_form(update, request, schema, "ring32")
    from_bytes(update.values, call.size)
    statement = statement_from_bytes(update.statement, len(call.openers))
    statement.check(call)
    of_these = statement.masked == hashlib.sha256(update.values).digest()
    if statement.name != update.holder or not of_these:
        raise ConfideError("gate.statement", "The statement is of another holder or other values.")
    receipt = _checked_receipt(update, request, settings, last)
    size = len(update.values) + len(update.statement)
    return Accepted(update.holder, torch.zeros(0), receipt, size, update.values, statement)


def check_sum(
    update: Update, request: TrainRequest, settings: Settings, size: int, last: Receipt | None
) -> Accepted:
    """The same of a sum of ``size`` numbers, of which no bound is known but that they are finite.

    Raises:
        ConfideError: as ``check``.
    """
    values = _values(update, request, request.schema, "fp32", size)
    receipt = _checked_receipt(update, request, settings, last)
    return Accepted(update.holder, values, receipt, len(update.values))


def _checked_receipt(
    update: Update, request: TrainRequest, settings: Settings, last: Receipt | None
) -> Receipt:
    """The receipt of an update, which goes on from the last one under the plan's terms."""
    receipt, summed = _receipt(update.receipt, settings), request.round in sums_of(settings)
    _check_progress(receipt, last, 1 if summed else plan_of(settings).steps_per_round)
    if settings.privacy.trust != "off":
        if summed and not any(is_sum(step, settings) for step in receipt.steps_run):
            raise ConfideError("gate.noise", "The receipt states no sum with the plan's noise.")
        _check_noise(receipt, last, settings)
    return receipt


def _values(update: Update, request: TrainRequest, schema: str, encoding: str, size: int) -> Tensor:
    """The values of an update that answers this request, under a name, in the agreed form."""
    _check_form(update, request, schema, encoding)
    values = decode_vector(update.values, update.encoding, size)
    if not torch.isfinite(values).all():
        raise ConfideError("gate.not-finite", "The update contains NaN or infinity.")
    return values


def _check_form(update: Update, request: TrainRequest, schema: str, encoding: str) -> None:
    if not _NAME.fullmatch(update.holder):
        raise ConfideError("gate.name", "The holder's name is not 1 to 64 of A-Z a-z 0-9 . _ -")
    if (update.task_hash, update.run, update.round) != (request.hash, request.run, request.round):
        raise ConfideError("gate.task", "The update answers another task.")
    if update.schema != schema:
        raise ConfideError("gate.schema", "The update was made for another adapter.")
    if update.encoding != encoding:
        raise ConfideError("gate.encoding", f"The update is {update.encoding[:20]!r}.")


def largest_norm(settings: Settings, size: int, start: float = 0.0) -> float:
    """What the L2 norm of an honest change of ``size`` values does not exceed once it is encoded,
    from values whose norm is at most ``start`` (which matters for weight decay alone).

    A step is at most ``most_units`` clipped units, to which a holder cuts its sum, plus noise, over
    the public batch. A noise longer than sigma C (sqrt(size) + 10) has a probability below 1e-20.
    """
    longer = 1 + rounding_of(settings.wire.encoding)
    return longer * _largest_norm(settings, size, start)


def _largest_norm(settings: Settings, size: int, start: float) -> float:
    privacy, train = settings.privacy, settings.train
    noise = plan_of(settings).noise_multiplier * (math.sqrt(size) + 10)
    gradient = _ROUNDING * privacy.clip * (most_units(train.batch) + noise) / train.batch
    if settings.round.mode == "gradient":
        return gradient
    if train.optimizer in ("adam", "adamw"):
        moved = _ADAM_STEP * train.steps * train.lr * math.sqrt(size)
        return moved + _ROUNDING * train.steps * train.lr * train.weight_decay * (start + moved)
    return train.steps * train.lr * gradient


def largest_sum(settings: Settings, size: int, count: int) -> float:
    """What the L2 norm of the sum of ``count`` honest contributions to a secure sum of ``size``
    values does not exceed, undivided, but with a probability below 1e-20."""
    plan, units = plan_of(settings), most_terms(settings)
    noise = plan.share_std * math.sqrt(count) * (math.sqrt(size) + 10)
    return _ROUNDING * (count * units * plan.clip_norm + noise)


def _receipt(told: Mapping[str, Any], settings: Settings) -> Receipt:
    """A receipt that is one: every field of its type, and numbers that a plan can have."""
    try:
        receipt = Receipt.from_json(told)
    except ConfideError:
        raise ConfideError("gate.receipt", "The update carries no receipt of a charge.") from None
    sound = (
        _HASH.fullmatch(receipt.head)
        and _LEDGER_ID.fullmatch(receipt.ledger_id)
        and receipt.entries < _MOST_ENTRIES
        and receipt.delta == settings.privacy.delta
        and all(s.steps > 0 and s.noise_multiplier < _MOST_NOISE for s in receipt.steps_run)
        and _total(receipt) <= _most_steps(settings)
    )
    if not sound:
        raise ConfideError("gate.receipt", "The receipt contradicts the plan of the run.")
    return receipt


def _most_steps(settings: Settings) -> int:
    """How many steps a receipt may state of this run."""
    return plan_of(settings).steps_per_round * settings.round.count + len(sums_of(settings))


def _check_progress(receipt: Receipt, last: Receipt | None, steps: int) -> None:
    """The same ledger as before, longer, with the ``steps`` of this request in it. A ``last``
    without steps is that of a run before.

    A ledger's number is known to its holder and the coordinator alone, so that whoever states it
    and less than before has put an older copy back: what it spent in between is missing for good.
    """
    before = _total(last) if last else 0
    if last and receipt.ledger_id != last.ledger_id:
        if last.steps_run:
            raise ConfideError("gate.receipt", "The ledger is another one than before.")
        last = None  # of a run before: it is named for it (``ledgers``), and may be another text's
    contains = _total(receipt) >= before + steps
    if last and ((before and not contains) or not _goes_on(receipt, last)):
        raise ConfideError(WENT_BACK, "The ledger went back.")
    if not contains:
        raise ConfideError("gate.receipt", "The receipt does not contain the steps of this task.")


def _goes_on(receipt: Receipt, last: Receipt) -> bool:
    return receipt.entries > last.entries and receipt.head != last.head


def _check_noise(receipt: Receipt, last: Receipt | None, settings: Settings) -> None:
    """Every step has the plan's rate and its noise, which are the same at every holder. What the
    last receipt said was looked at then."""
    plan = plan_of(settings)
    new = _rounds_of(receipt, settings) - (_rounds_of(last, settings) if last else set())
    least, most = ((1 + sign * _CLOSE) * plan.noise_multiplier for sign in (-1, 1))
    if any(noise < least for noise, _ in new):
        raise ConfideError("gate.noise", "The receipt states less noise than the plan.")
    if len(new) > 1 or any(noise > most or rate != plan.sampling_rate for noise, rate in new):
        raise ConfideError("gate.receipt", "The receipt states another plan than the run's.")
    if any(noise < plan.noise_multiplier and not _enough(noise, settings) for noise, _ in new):
        raise ConfideError("gate.noise", "The receipt states less noise than the plan.")


def _enough(noise: float, settings: Settings) -> bool:
    """Whether a little less noise than is calibrated here keeps the epsilon of the run all the
    same: another machine's arithmetic may end the search a last digit apart."""
    plan = plan_of(settings)
    if settings.privacy.noise_multiplier:
        return False
    whole = replace(plan, noise_multiplier=noise).steps(plan.max_rounds)
    most = settings.privacy.epsilon * (1 + 1e-6)
    return within((whole, *steps_of_sums(settings)), plan.delta, most)


def _rounds_of(receipt: Receipt, settings: Settings) -> set[tuple[float, float]]:
    """Noise and rate of all that is stated, without what can only be the sums of the run."""
    most = len(sums_of(settings))
    rounds = (s for s in receipt.steps_run if not (is_sum(s, settings) and s.steps <= most))
    return {(s.noise_multiplier, s.sampling_rate) for s in rounds}


def most_common(codes: Sequence[str]) -> str:
    """The codes that were given most often, in words."""
    counts = Counter(codes).most_common(3)
    return ", ".join(f"{code} ({times})" for code, times in counts) or "none"


def _total(receipt: Receipt) -> int:
    return sum(s.steps for s in receipt.steps_run)
