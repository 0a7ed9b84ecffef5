"""Utility on the coordinator's own public, held-out text; private text is never measured here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.adapter.schema import set_adapter, unflatten
from ..common.errors import ConfideError
from ..common.methods.products import based_on
from ..common.models.batches import EncodedText, forward
from ..common.models.loading import LoadedModel
from ..common.settings import DataSpec, Settings
from ..common.tasks.task import PERPLEXITY, needs_answers, values
from ..common.tasks.tokens import targets_of
from ..common.text.readers import read_records
from .run_folder import PUBLIC_FILE, RunFolder

logger = logging.getLogger("confide.server")

_SEED = 0  # of the masks of public text: the same ones in every round


@dataclass(frozen=True)
class Score:
    """Mean loss over ``examples`` public records (in nats where it is a likelihood), and the
    task's metrics, the main one first; the perplexity alone where it is not ``whole``, because no
    text was written."""

    examples: int
    loss: float
    metrics: Mapping[str, float]
    whole: bool = True

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return next(iter(self.metrics))

    @property
    def value(self) -> float:
        """The main metric."""
        return self.metrics[self.metric]


class Evaluator:
    """The held-out text, encoded once; the frozen layers are computed once, too.

    Args:
        file: of the public records, in any format that a holder's text may have.
        own_screen: as for ``read_records``.

    Raises:
        ConfideError: the codes of the readers and of the task's ``encode``.
    """

    def __init__(
        self, loaded: LoadedModel, data: DataSpec, file: Path, *, own_screen: bool = False
    ) -> None:
        self._task, self._loaded = loaded.task, loaded
        self._records = read_records(
            file,
            text=data.text,
            target=data.target or None,
            lists=self._task.lists,
            own_screen=own_screen,
        )
        examples = self._task.encode(self._records, loaded.tokenizer, loaded.max_length)
        self._written = not self._task.by_logits and needs_answers(self._task.metrics)
        self._right = targets_of([r.target for r in self._records]) if self._written else []
        self._text = EncodedText(examples, loaded)

    @torch.no_grad()
    def score(self, *, written: bool = True) -> Score:
        """Score the adapter that the model carries now. A metric of text that the model writes
        takes a pass for each token, and is left out where it is not to be ``written``."""
        task, generator = self._task, torch.Generator().manual_seed(_SEED)
        loss, total, terms = 0.0, 0.0, 0
        answers, right = list[Any](), list[Any]()
        for batch in self._text.batches(draws=lambda _: generator):
            logits = forward(self._loaded, task, batch)
            losses, counts = task.losses(logits, batch.targets), task.counts(batch.targets)
            loss += float(losses.sum())
            total += float((losses * counts).sum())
            terms += int(counts.sum())
            answers += task.answers(logits)
            right += task.references(batch.targets)
        names: Sequence[str] = task.metrics
        if self._written and written:
            answers, right = task.generate(self._records, self._loaded), self._right
        elif self._written:
            names = (PERPLEXITY,)
        count = len(self._text)
        metrics = values(names, answers, right, total / terms)
        whole = written or not self._written
        return Score(examples=count, loss=loss / count, metrics=metrics, whole=whole)


class Scores:
    """The public scores of a run's rounds, each with its line in metrics.jsonl."""

    def __init__(
        self, loaded: LoadedModel, evaluator: Evaluator, folder: RunFolder, rounds: int
    ) -> None:
        self._loaded, self._evaluator, self._folder = loaded, evaluator, folder
        self._rounds = rounds

    def after(self, number: int, adapter: Tensor, merged: Tensor, *, written: bool) -> Score:
        """Of the adapter (N,) after a round, with what was added to the frozen weights (P,)."""
        model, schema = self._loaded.model, self._loaded.schema
        set_adapter(model, unflatten(adapter, schema.shapes))
        with based_on(model, schema, merged):
            score = self._evaluator.score(written=written)
        self._folder.event(
            "evaluation",
            round=number,
            examples=score.examples,
            loss=round(score.loss, 6),
            metric=score.metric,
            **{name: round(value, 6) for name, value in score.metrics.items()},
        )
        logger.info(
            "round %d of %d: %s %.3f, loss %.3f on %d public records",
            number,
            self._rounds,
            score.metric,
            score.value,
            score.loss,
            score.examples,
        )
        return score


def public_evaluator(loaded: LoadedModel, settings: Settings, folder: Path) -> Evaluator:
    """The evaluator of a federation's own public file.

    Raises:
        ConfideError: ``data.missing-file``, and what ``Evaluator`` raises.
    """
    path = folder / PUBLIC_FILE
    if not path.is_file():
        raise ConfideError(
            "data.missing-file",
            f"There is no {PUBLIC_FILE} in {folder}.",
            "The coordinator needs held-out public text to score each round.",
        )
    return Evaluator(loaded, settings.data, path)
