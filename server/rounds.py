"""The rounds: ask, gate, aggregate, step, evaluate, checkpoint. The whole run is here.

A round with fewer accepted updates than ``round.min-holders`` is abandoned whole: the adapter
stays, while the holders that released stay charged. The adapter is the only state that rounds
share, and the checkpoint after each is enough to go on after a crash.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.adapter import get_adapter, set_adapter
from ..common.errors import ConfideError
from ..common.models import LoadedModel
from ..common.settings import Settings
from ..common.tensors import flatten, unflatten
from ..common.wire import Refusal, Task
from .aggregation import ServerOptimizer, mean_change
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .evaluation import Evaluator, Score
from .gate import Accepted, check
from .run_folder import RunFolder
from .selection import select
from .transport import Transport

logger = logging.getLogger("confide.server")

# What a holder needs to know. It never hears a path, and the coordinator never names one.
_PRIVATE_TO_COORDINATOR = ("data.path", "run.out", "run.resume", "run.name")


@dataclass
class _State:
    """The adapter (N,) and the step that moves it; ``done`` is the last finished round."""

    adapter: Tensor
    optimizer: ServerOptimizer
    done: int


class Rounds:
    """A run over a transport, in a folder.

    Args:
        wanted: how many holders must be connected before the first round.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedModel,
        transport: Transport,
        folder: RunFolder,
        evaluator: Evaluator,
    ) -> None:
        self._settings, self._loaded, self._transport = settings, loaded, transport
        self._folder, self._evaluator = folder, evaluator
        self._schema = loaded.schema

    def run(self, nodes: Sequence[int]) -> Score:
        """All rounds that are left; returns the last score.

        Raises:
            ConfideError: ``run.no-round`` when not one round could be finished.
        """
        state = self._begin()
        score = self._evaluate(state)
        trained = state.done > 0
        for number in range(state.done + 1, self._settings.round.count + 1):
            accepted = self._round(number, nodes, state)
            if accepted:
                trained = True
                score = self._evaluate(state)
            self._save(state)
        if not trained:
            raise ConfideError(
                "run.no-round",
                f"None of {self._settings.round.count} rounds had enough accepted updates"
                f" ({self._settings.round.min_holders}).",
                "The codes of the holders that were left out are in metrics.jsonl.",
            )
        return score

    def _begin(self) -> _State:
        trained_shapes = self._schema.trained_shapes
        if self._settings.run.resume:
            found = load_checkpoint(self._folder, self._schema.digest)
            named = unflatten(found.adapter, self._schema.shapes)
            optimizer = ServerOptimizer(flatten(named, trained_shapes), self._settings)
            optimizer.restore(flatten(named, trained_shapes), found.optimizer)
            return _State(found.adapter, optimizer, found.round)
        adapter = get_adapter(self._loaded.model)
        optimizer = ServerOptimizer(flatten(adapter, trained_shapes), self._settings)
        state = _State(flatten(adapter, self._schema.shapes), optimizer, 0)
        self._save(state)
        return state

    def _round(self, number: int, nodes: Sequence[int], state: _State) -> bool:
        settings, started = self._settings, time.monotonic()
        task = self._task(number, state.adapter)
        connected = set(self._transport.nodes())
        chosen = select(nodes, settings.round.holders, seed=settings.run.seed, round_number=number)
        replies = self._transport.ask(
            [node for node in chosen if node in connected], task, settings.round.timeout
        )
        accepted: dict[str, Accepted] = {}
        left_out = [
            {"holder": f"node-{node}", "code": "transport.gone"}
            for node in chosen
            if node not in connected
        ]
        for node in sorted(replies):
            reply = replies[node]
            name = reply.holder or f"node-{node}"
            try:
                if isinstance(reply, Refusal):
                    raise ConfideError(reply.code or "holder.failed", "The holder refused.")
                if name in accepted:
                    raise ConfideError("gate.duplicate", "Two nodes answer under one name.")
                accepted[name] = check(reply, task, settings, self._schema)
            except ConfideError as error:
                left_out.append({"holder": name, "code": error.code})
        abandoned = len(accepted) < settings.round.min_holders
        if not abandoned:
            self._advance(state, accepted)
        state.done = number
        self._record(number, time.monotonic() - started, task, accepted, left_out, abandoned)
        return not abandoned

    def _task(self, number: int, adapter: Tensor) -> Task:
        flat = self._settings.to_flat()
        return Task(
            run=self._folder.id,
            round=number,
            settings={k: v for k, v in flat.items() if k not in _PRIVATE_TO_COORDINATOR},
            schema=self._schema.digest,
            adapter=adapter.numpy().astype("<f4").tobytes(),
        )

    def _advance(self, state: _State, accepted: dict[str, Accepted]) -> None:
        change = mean_change({holder: update.change for holder, update in accepted.items()})
        trained = state.optimizer.step(change)
        named = unflatten(state.adapter.clone(), self._schema.shapes)
        named |= unflatten(trained, self._schema.trained_shapes)
        state.adapter = flatten(named, self._schema.shapes)

    def _record(
        self,
        number: int,
        seconds: float,
        task: Task,
        accepted: dict[str, Accepted],
        left_out: list[dict[str, str]],
        abandoned: bool,
    ) -> None:
        rows: list[dict[str, Any]] = [
            {"holder": a.holder, "bytes_up": a.size, "receipt": a.receipt}
            for _, a in sorted(accepted.items())
        ]
        sizes = [a.size for a in accepted.values()]
        self._folder.event(
            "round",
            round=number,
            seconds=round(seconds, 3),
            bytes_down=len(task.adapter),
            bytes_up=sum(sizes) // len(sizes) if sizes else 0,
            accepted=rows,
            left_out=left_out,
            abandoned=abandoned,
        )
        for row in left_out:
            logger.warning("round %d: %s left out, %s", number, row["holder"], row["code"])
        if abandoned:
            logger.warning("round %d abandoned: %d updates", number, len(accepted))

    def _evaluate(self, state: _State) -> Score:
        set_adapter(self._loaded.model, unflatten(state.adapter, self._schema.shapes))
        score = self._evaluator.score()
        self._folder.event(
            "evaluation",
            round=state.done,
            examples=score.examples,
            loss=round(score.loss, 6),
            accuracy=round(score.accuracy, 6),
        )
        logger.info(
            "round %d of %d: accuracy %.3f, loss %.3f on %d public records",
            state.done,
            self._settings.round.count,
            score.accuracy,
            score.loss,
            score.examples,
        )
        return score

    def _save(self, state: _State) -> None:
        save_checkpoint(
            self._folder,
            Checkpoint(state.done, self._schema.digest, state.adapter, state.optimizer.state()),
        )


def final_adapter(folder: RunFolder, loaded: LoadedModel) -> None:
    """Put the adapter of the last checkpoint into the model, ready to be saved."""
    state = load_checkpoint(folder, loaded.schema.digest)
    with torch.no_grad():
        set_adapter(loaded.model, unflatten(state.adapter, loaded.schema.shapes))
