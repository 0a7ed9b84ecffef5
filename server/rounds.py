"""The rounds: ask, gate, aggregate, step, evaluate, checkpoint. The whole run is here.

A round with fewer accepted updates than ``round.min-holders`` is abandoned whole: the adapter
stays, while the holders that released stay charged. So none is begun before that many holders are
connected and said that they can take part (``ready``), and three such rounds in a row, or too few
who are left, end the run. The checkpoint after each round is all that it takes to go on after a
crash.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.adapter.encoding import HINT, OTHER_START, pack
from ..common.adapter.schema import AdapterSchema, flatten, size_of, unflatten
from ..common.errors import ConfideError
from ..common.masking.keys import Roster
from ..common.methods import Arrived, method_of
from ..common.models.loading import LoadedModel
from ..common.plans import bit_of, divisor, has_bit, is_shared, step_of_round, sums_of
from ..common.privacy.clipping import next_clip, share_that_fits
from ..common.settings import COORDINATORS_OWN, Settings
from ..common.wire.messages import NO_ADAPTER, TrainRequest
from . import sums
from .aggregation import OUTLIER, ServerOptimizer, combine
from .aggregation.optimizer import best_round, is_done, measured_after, rate_of
from .checkpoint import MOST_ABANDONED, Checkpoint, load_checkpoint, save_checkpoint
from .evaluation import Evaluator, Score, Scores
from .gate import Accepted, judge, largest_sum, most_common
from .ledgers import WENT_BACK, Ledgers, Memory
from .participants import Able, select, selection_key
from .run_folder import RunFolder
from .secure_sum import SUM, SUSPECT, TOO_LONG, Opened, SecureSum, named
from .senders import Known, Senders
from .transport import Transport, wait_for_nodes

logger = logging.getLogger("confide.server")


class Rounds:
    """A run over a transport, in a folder."""

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        transport: Transport,
        folder: RunFolder,
        evaluator: Evaluator,
        known: Known | None = None,
        memory: Memory | None = None,
        roster: Roster | None = None,
    ) -> None:
        self._ledgers = Ledgers(folder, memory)
        self._settings, self._loaded, self._transport = settings, loaded, transport
        self._senders = Senders(transport.nodes, known)
        self._able = Able(settings, transport, self._senders)
        self._secure: SecureSum | None = None
        if is_shared(settings):
            self._secure = SecureSum(settings, transport, self._senders, roster)
        self._folder = folder
        self._scores = Scores(loaded, evaluator, folder, settings.round.count)
        self._schema = loaded.schema
        self._method = method_of(settings.aggregate.method)
        self._trained = self._method.moved(loaded.schema).trained_shapes
        self._added = size_of(self._method.added(loaded.schema))
        self._last_codes = list[str]()
        self._counted: dict[str, str] = {}

    def run(self, nodes: Sequence[int]) -> Score:
        """All rounds that are left; returns the last score. ``nodes`` are the holders that were
        there at the start; who is missing later is named.

        Raises:
            ConfideError: ``run.no-round`` when not one round could be finished,
                ``run.too-few-holders`` when too few are connected for a round, or can take part in
                any; the run can be resumed then; ``run.no-count`` when too few counted their
                classes.
        """
        state = self._begin()
        if self._secure:
            self._secure.troubles = state.sums
        if state.round < self._settings.round.count or self._secure:
            self._ask_who_can(state)
        self._count_classes(state)
        score = self._remaining(nodes, state)
        if not state.advanced:
            raise self._no_round(state)
        return self._finish(state, score)

    def _ask_who_can(self, state: Checkpoint) -> None:
        """Before the first charge; in a run with secure sums the answers bring the keys."""
        least, timeout = self._settings.round.min_holders, self._settings.round.timeout
        there = wait_for_nodes(self._transport, least, timeout)
        request = self._next_request(state)
        if self._secure:
            request = self._secure.asking(request)
        self._able.ask(request, there, self._folder)
        if self._secure:
            self._secure.meet(self._able.cards, self._folder.id)

    def _remaining(self, nodes: Sequence[int], state: Checkpoint) -> Score | None:
        """The rounds that are left, until enough was learnt or too few holders are; the score after
        the last one, where it was measured."""
        # A resumed run has this loss already, or its last round was abandoned and has none.
        score: Score | None = self._evaluate(state, written=not state.round, new=not state.round)
        for number in range(state.round + 1, self._settings.round.count + 1):
            if is_done(list(state.losses.values()), self._settings.round.patience):
                logger.info("the public loss has not become less; the run ends here")
                break
            too_few = self._able.too_few({*nodes, *self._transport.nodes()})
            if too_few and not state.advanced:
                raise too_few
            if too_few or (state.abandoned >= MOST_ABANDONED and not self._narrows(state)):
                logger.warning("%s", too_few or f"{state.abandoned} rounds in a row were abandoned")
                break
            if self._round(number, nodes, state):
                scored, written = measured_after(self._settings, number)
                score = self._evaluate(state, written=written) if scored else None
                state.abandoned = 0
            else:
                state.abandoned += 1
            save_checkpoint(self._folder, state)
        return score

    def _narrows(self, state: Checkpoint) -> bool:
        """Whether rounds were abandoned for wrong sums, and the next ones tell whose they are."""
        return bool(self._secure and self._secure.spared(self._able.of(self._transport.nodes())))

    def _no_round(self, state: Checkpoint) -> ConfideError:
        return ConfideError(
            "run.no-round",
            f"None of {state.round} rounds had {self._settings.round.min_holders} accepted updates;"
            f" the last answers were {most_common(self._last_codes)}.",
            HINT
            if OTHER_START in self._last_codes
            else "Correct what the codes name; confide's docs and metrics.jsonl have more.",
        )

    def _finish(self, state: Checkpoint, score: Score | None) -> Score:
        """The score of the adapter that is kept: the last round's, or with ``round.patience`` that
        of the lowest public loss. metrics.jsonl records which round was kept. ``score`` is the last
        round's, or None if it was not evaluated."""
        kept, adapter = state.round, state.adapter
        if state.best is not None:
            kept, adapter = best_round(state.losses), state.best
            self._folder.event("kept", round=kept)
        self._measure_at_holders(state, adapter)
        if score and kept == state.round and score.whole:
            return score
        return self._scores.after(kept, adapter, state.merged, written=True)

    def _count_classes(self, state: Checkpoint) -> None:
        """Before the first round, where class weights or rates are to be counted; once in a run."""
        if not self._settings.task.uncounted:
            return
        self._counted = sums.remembered(self._folder, self._settings)
        if self._counted:
            return
        timeout, least = self._settings.round.timeout, self._settings.round.min_holders
        nodes = wait_for_nodes(self._transport, least, timeout)
        request = TrainRequest(run=self._folder.id, round=0, settings=self._flat(), **NO_ADAPTER)
        summed = self._sum(request, nodes, state)
        self._counted = sums.counted(summed, self._settings)
        sums.record(self._folder, request, summed, self._settings, gave=self._counted)
        if not self._counted:
            raise sums.no_count(summed, self._settings)
        sums.remember(self._folder, self._counted)
        # Only now: a count that is asked for once more is answered with the very same receipts.
        self._ledgers.take(0, summed.accepted, summed.left_out, state.receipts)
        save_checkpoint(self._folder, state)

    def _measure_at_holders(self, state: Checkpoint, adapter: Tensor) -> None:
        """After the last round, where a metric of the holders' own text is asked for. The run has
        its outcome by then, so that nobody is waited for. A resumed run gets the same bytes."""
        number = self._settings.round.count + 1
        if number not in sums_of(self._settings):
            return
        ended = replace(state, adapter=adapter)
        last = self._task(max(state.round, 1), ended, self._settings.train.lr)
        request = replace(last, round=number)
        summed = self._sum(request, self._transport.nodes(), state)
        found = sums.measured(summed, self._settings, self._loaded.model)
        sums.record(self._folder, request, summed, self._settings, **found)

    def _sum(self, request: TrainRequest, nodes: Sequence[int], state: Checkpoint) -> sums.Summed:
        told = state.receipts, state.barred, self._senders
        return sums.ask(request, self._settings, self._transport, nodes, *told, self._secure)

    def _begin(self) -> Checkpoint:
        if self._settings.run.resume:
            stepped = size_of(self._trained)
            found = load_checkpoint(self._folder, self._schema, self._added, stepped)
            tensors = unflatten(found.adapter, self._schema.shapes)
            self._optimizer = ServerOptimizer(flatten(tensors, self._trained), self._settings)
            self._optimizer.restore(found.optimizer)
            if found.abandoned >= MOST_ABANDONED:  # a run that ended for that tries again
                found.abandoned = 0
            return found
        adapter = self._loaded.initial
        rewritten = self._method.rewrite(adapter)
        adapter = dict(rewritten.adapter) if rewritten else adapter
        self._optimizer = ServerOptimizer(flatten(adapter, self._trained), self._settings)
        state = Checkpoint(
            schema=self._schema.digest,
            adapter=flatten(adapter, self._schema.shapes),
            merged=torch.zeros(self._added),
            receipts=self._ledgers.before(),
        )
        save_checkpoint(self._folder, state)
        return state

    def _round(self, number: int, nodes: Sequence[int], state: Checkpoint) -> bool:
        settings, started = self._settings, time.monotonic()
        least, timeout = settings.round.min_holders, settings.round.timeout
        connected = wait_for_nodes(self._transport, least, timeout)
        able, key = self._able.of(connected), selection_key(self._folder)
        spared = self._secure.spared(able) if self._secure else {}
        able = [node for node in able if node not in spared]
        chosen = select(able, settings.round.holders, key=key, round_number=number)
        rate = rate_of(settings.train, number, settings.round.count, list(state.losses.values()))
        schema = self._method.sent(self._schema, number)
        request, call = self._task(number, state, rate), None
        if self._secure:
            values = schema.trained_size + has_bit(settings)
            call = self._secure.call(request, chosen, values)
            request = named(request, call.roster, call.openers)
        replies = self._transport.ask(chosen, request, timeout)
        settings = self._at(state, rate)
        start = float(state.adapter.double().norm())
        told = state.receipts, state.barred, self._senders
        narrower = self._method.narrower(schema)
        accepted, left_out = judge(replies, request, settings, schema, *told, start, narrower, call)
        self._able.note(replies, left_out)
        left_out += self._able.left_out(set(connected) - set(chosen))
        gone = sorted(set(nodes) - set(connected))
        left_out += [{"holder": self._senders.name_of(n), "code": "transport.gone"} for n in gone]
        left_out += [{"holder": name, "code": SUSPECT} for name in spared.values()]
        state.barred |= {row["holder"] for row in left_out if row["code"] == WENT_BACK}
        abandoned = len(accepted) < least
        self._ledgers.take(number, accepted, left_out, state.receipts)
        changes, opened = {holder: update.change for holder, update in accepted.items()}, None
        if call and self._secure and not abandoned:
            opened = self._secure.open(call, accepted, step_of_round(settings))
            left_out += opened.left_out
            opened, changes = self._mean_of(opened, settings, state)
            self._secure.learn(opened)
            abandoned = not changes
        if not abandoned:
            far = self._advance(state, changes, schema, rate)
            left_out += [{"holder": holder, "code": OUTLIER} for holder in far]
        state.round = number
        self._last_codes = [row["code"] for row in left_out]
        if opened and opened.code:
            self._last_codes.append(opened.code)
        self._record(
            number,
            time.monotonic() - started,
            request,
            accepted,
            left_out,
            abandoned=abandoned,
            asked=len(chosen),
            connected=len(connected),
            **_of_sum(opened, settings),
        )
        return not abandoned

    def _at(self, state: Checkpoint, rate: float) -> Settings:
        """The settings as they are in a round, with its learning rate and clip norm."""
        own = self._settings
        clip = state.clip or own.privacy.clip
        train, privacy = replace(own.train, lr=rate), replace(own.privacy, clip=clip)
        return replace(own, train=train, privacy=privacy)

    def _mean_of(
        self, opened: Opened, settings: Settings, state: Checkpoint
    ) -> tuple[Opened, dict[str, Tensor]]:
        """The mean change of the contributors, in the sum's own name; nothing where the sum was not
        opened, or is longer than any honest one. Their bits, if they sent any, give the clip norm
        of the next round."""
        total, count = opened.total, len(opened.of)
        if total is None:
            return opened, {}
        if not np.linalg.norm(total) <= largest_sum(settings, len(total), count):
            logger.warning("the sum of %d holders is longer than any honest one", count)
            return replace(opened, total=None, code=TOO_LONG), {}
        if has_bit(settings):
            total, bits = total[:-1], float(total[-1])
            share = share_that_fits(bits, bit_of(settings), count)
            privacy = settings.privacy
            state.clip = next_clip(privacy.clip, share, privacy.clip_quantile)
        mean = total / divisor(settings, count)
        return opened, {SUM: torch.from_numpy(mean).float()}

    def _next_request(self, state: Checkpoint) -> TrainRequest:
        """What the next round will send, as far as it is known."""
        number, losses = state.round + 1, list(state.losses.values())
        rate = rate_of(self._settings.train, number, self._settings.round.count, losses)
        return self._task(number, state, rate)

    def _task(self, number: int, state: Checkpoint, rate: float) -> TrainRequest:
        """The request of a round. Holders that step themselves do so at the round's rate: it
        travels as the ``train.lr`` of this request, and no part of the plan depends on it."""
        flat = self._flat()
        if self._settings.round.mode == "steps":
            flat["train.lr"] = rate
        if has_bit(self._settings):
            flat["privacy.clip"] = state.clip or self._settings.privacy.clip
        flat["aggregate.method"] = self._method.told(number)
        parcel = pack(self._schema, state.adapter, self._loaded.initial)
        return TrainRequest(
            run=self._folder.id,
            round=number,
            settings=flat,
            schema=self._method.sent(self._schema, number).digest,
            sent=parcel.sent,
            rest=parcel.rest,
            adapter=parcel.values.numpy().astype("<f4").tobytes(),
            merged=state.merged.numpy().astype("<f4").tobytes() if state.advanced else b"",
        )

    def _flat(self) -> dict[str, Any]:
        """The settings as they travel, with what was counted."""
        flat: dict[str, Any] = {**self._settings.to_flat(), **self._counted}
        return {k: v for k, v in flat.items() if k not in COORDINATORS_OWN}

    def _advance(
        self,
        state: Checkpoint,
        changes: Mapping[str, Tensor],
        schema: AdapterSchema,
        rate: float,
    ) -> tuple[str, ...]:
        """Move the adapter; returns the holders that passed the gate and were left out by the
        robust rule, whose receipts count as everybody's."""
        state.advanced += 1
        moved = self._method.combine(self._arrived(state, changes, schema, rate))
        if moved is not None:
            state.adapter, state.merged = moved.adapter, moved.merged
            return ()
        chosen = self._settings.aggregate
        combined = combine(changes, chosen.robust, chosen.byzantine)
        # What rests in this round does not move.
        change = {name: torch.zeros(shape) for name, shape in self._trained}
        change |= unflatten(combined.change, schema.trained_shapes)
        trained = self._optimizer.step(flatten(change, self._trained), rate)
        tensors = unflatten(state.adapter, self._schema.shapes)
        tensors |= unflatten(trained, self._trained)
        rewritten = self._method.rewrite(tensors)
        if rewritten:
            tensors = dict(rewritten.adapter)
            self._optimizer.rewrite(lambda vector: rewritten.turned(vector, self._trained))
        state.optimizer = self._optimizer.state()
        state.adapter = flatten(tensors, self._schema.shapes)
        return combined.outliers

    def _arrived(
        self, state: Checkpoint, changes: Mapping[str, Tensor], schema: AdapterSchema, rate: float
    ) -> Arrived:
        """What the round has for a method that combines it."""
        return Arrived(
            schema=schema,
            adapter=state.adapter,
            changes=changes,
            merged=state.merged,
            step=rate if self._settings.round.mode == "gradient" else 1.0,
            seed=f"{self._settings.run.seed}/{state.advanced}",
        )

    def _record(
        self,
        number: int,
        seconds: float,
        request: TrainRequest,
        accepted: dict[str, Accepted],
        left_out: list[dict[str, str]],
        **facts: bool | int | float | str | list[str],
    ) -> None:
        rows: list[dict[str, Any]] = [
            {"holder": a.holder, "bytes_up": a.size, "receipt": a.receipt.to_json()}
            for _, a in sorted(accepted.items())
        ]
        sizes = [a.size for a in accepted.values()]
        self._folder.event(
            "round",
            round=number,
            seconds=round(seconds, 3),
            bytes_down=len(request.adapter) + len(request.merged),
            bytes_up=sum(sizes) // len(sizes) if sizes else 0,
            accepted=rows,
            left_out=left_out,
            **facts,
        )
        for row in left_out:
            logger.warning("round %d: %s left out, %s", number, row["holder"], row["code"])
        if any(row["code"] == OTHER_START for row in left_out):
            logger.warning("%s: %s", OTHER_START, HINT)
        if facts["abandoned"]:
            logger.warning("round %d abandoned: %d updates", number, len(accepted))

    def _evaluate(self, state: Checkpoint, *, written: bool, new: bool = True) -> Score:
        """The public score of the adapter as it is now; its loss is kept if it is ``new``. Text
        that is ``written`` takes a pass for each token, while the loss costs one."""
        score = self._scores.after(state.round, state.adapter, state.merged, written=written)
        if new:
            state.losses[state.round] = score.loss
        if self._settings.round.patience and best_round(state.losses) == state.round > 0:
            state.best = state.adapter.clone()  # a checkpoint's tensors share no memory
        return score


def _of_sum(opened: Opened | None, settings: Settings) -> dict[str, str | float | list[str]]:
    """What a round's event says of its secure sum."""
    if not opened:
        return {}
    told: dict[str, str | float | list[str]]
    told = {"openers": list(opened.openers), "sum": opened.code}
    return told | {"clip": settings.privacy.clip} if has_bit(settings) else told
