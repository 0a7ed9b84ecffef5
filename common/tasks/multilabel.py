"""Multi-label classification: one text, any of the declared labels, or none of them.

A record's target is a set of labels: a list in JSON and Parquet (``["spam", "abuse"]``, ``[]`` for
none), in a cell of CSV the labels with commas between (``"spam,abuse"``) or such a list (``[]`` for
none). No label has a comma in it or begins with a bracket, so that a cell has one meaning.

The model has one logit for each label, as Hugging Face's ``multi_label_classification``; a label is
given where its chance, the sigmoid, is above one half. An example's loss is the mean over the
labels of the binary cross entropy, each by its weight: a function of this example alone. A noisy
sum cannot count the labels, since a record with several would move it by more than one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfideError
from ..machine.installed import library
from ..text.rows import in_form
from .example import Prediction
from .labels import check_labels, check_weights, places_of
from .pooled import PooledTask, tf_idf
from .task import Agreed, Described, Refuse

if TYPE_CHECKING:
    from torch import Tensor

    from ..settings import Settings, TaskSpec
    from ..text.readers import Record

_NONE = "none"  # how an empty answer is shown
_AT_LEAST = 0.5  # a chance above it gives a label


class MultiLabel(PooledTask):
    """See the module's docstring."""

    kind = "multilabel"
    takes = ("labels", "class_weights", "word_dropout")
    fewest_labels = 1
    lists = True
    holder_metric = "accuracy"  # every label of a record is right
    known, shown = ("micro-f1", "macro-f1", "accuracy"), 3
    does = "says which of these apply to a text, none or several: {labels}"
    described: ClassVar[Described] = {"multi-label-classification": {}}
    learns_from = ("label sets",)
    explains = True
    problem_type = "multi_label_classification"
    answer_code = (
        f"print([[label for label, chance in zip(labels, row) if chance > {_AT_LEAST}]\n"
        "       for row in logits.sigmoid().tolist()])\n"
    )

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.labels = spec.label_names

    @classmethod
    def check_settings(cls, settings: Settings, refuse: Refuse) -> None:
        check_labels(settings.task, cls.fewest_labels, refuse)
        check_weights(settings.task, refuse, countable=False)
        if bracketed := [name for name in settings.task.label_names if name.startswith("[")]:
            refuse(
                f"task.labels has {bracketed[0]!r:.100}, which a cell could not tell from a list.",
                "Give it a name that does not begin with a bracket, in the text as well.",
            )

    @classmethod
    def labels_in(cls, target: str) -> tuple[str, ...]:
        """Those of a list of JSON, or of a cell with commas between; one that is none, of no
        declared name, where it is neither."""
        if not target.startswith("["):
            return tuple(in_form(name) for name in target.split(","))
        try:
            found = json.loads(target)
        except (ValueError, RecursionError):
            return (target,)
        words = isinstance(found, list) and all(isinstance(one, str) for one in found)
        return tuple(in_form(one) for one in found) if words else (target,)

    @classmethod
    def fits(cls, target: str | None, agreed: Agreed) -> bool:
        return target is not None and _places(cls.labels_in(target), agreed.labels) is not None

    @classmethod
    def in_words(cls, column: str, agreed: Agreed) -> str:
        return f"{column!r} any of {', '.join(agreed.labels)}, or none"

    @classmethod
    def line(cls, text: str, found: Prediction) -> str:
        chances = ", ".join(f"{name} {chance:.2f}" for name, chance in found.probabilities.items())
        return f"{_in_words(found.answer)} ({chances})  {text}"

    @classmethod
    def told(cls, text: str, found: Prediction) -> dict[str, Any]:
        return {"text": text, "labels": found.answer, "probabilities": found.probabilities}

    def targets(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        """A 0 or 1 for each label, of each record.

        Raises:
            ConfideError: ``data.unknown-label``; it names the record's number, never its content.
        """
        out = []
        for number, record in enumerate(records, start=1):
            known = None
            if record.target is not None:
                known = _places(self.labels_in(record.target), self.labels)
            if known is None:
                raise ConfideError(
                    "data.unknown-label",
                    f"The labels of record {number} are not all of {', '.join(self.labels)}.",
                    "Declare every label in task.labels, spelt as in the data; an empty list, [],"
                    " has none.",
                )
            out.append(tuple(int(place in known) for place in range(len(self.labels))))
        return out

    def no_target(self) -> tuple[int, ...]:
        return (0,) * len(self.labels)

    def made_up_target(self, number: int) -> tuple[int, ...]:
        return tuple((number + place) % 2 for place in range(len(self.labels)))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B, L) and (B, L) -> (B,): the mean over an example's own labels of their binary cross
        entropies in nats, weighted as the settings say."""
        import torch

        each = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), targets.float(), reduction="none"
        )
        weights = self.spec.weights
        return (each * torch.tensor(weights, device=each.device) if weights else each).mean(-1)

    def answers(self, logits: Tensor) -> list[tuple[int, ...]]:
        return [tuple(row) for row in (logits.float().sigmoid() > _AT_LEAST).int().tolist()]

    def references(self, targets: Tensor) -> list[tuple[int, ...]]:
        return [tuple(row) for row in targets.tolist()]

    def tell(self, logits: Tensor) -> list[Prediction]:
        """The labels of each text, and every label's own chance."""
        told = []
        for row in logits.float().sigmoid().tolist():
            chances = dict(zip(self.labels, row, strict=True))
            given = tuple(name for name, chance in chances.items() if chance > _AT_LEAST)
            told.append(Prediction(given, chances))
        return told

    def odds(self, scores: Tensor) -> tuple[str, str, Callable[[Tensor], Tensor]]:
        """Those of the most probable label, against it being none of the text's."""
        chosen = int(scores.argmax())
        (found,) = self.tell(scores.unsqueeze(0))
        measure = f"log-odds of {self.labels[chosen]!r}, the likeliest label,"
        return _in_words(found.answer), measure, lambda rows: rows[:, chosen]

    def yardsticks(
        self, train: Sequence[Record], test: Sequence[Record]
    ) -> Mapping[str, tuple[list[Any], list[Any]]]:
        """What most records have of each label, and TF-IDF with a logistic regression for each."""
        logistic = library("sklearn.linear_model").LogisticRegression
        texts, asked = [r.text for r in train], [r.text for r in test]
        columns, most = list[list[int]](), list[list[int]]()
        for column in zip(*self.targets(train), strict=True):
            common = int(2 * sum(column) > len(column))
            most.append([common] * len(asked))
            if len(set(column)) == 1:  # nothing to be told apart
                columns.append(most[-1])
                continue
            model = tf_idf(logistic(max_iter=1000)).fit(texts, column)
            columns.append(model.predict(asked).tolist())
        right = self.targets(test)
        return {
            "Majority of each label": (list(zip(*most, strict=True)), right),
            "TF-IDF + logistic regressions": (list(zip(*columns, strict=True)), right),
        }


def _places(names: Sequence[str], labels: tuple[str, ...]) -> set[int] | None:
    """The places of labels among the declared ones; None if one has none."""
    found = {places_of(labels)(name) for name in names}
    known = {place for place in found if place is not None}
    return known if len(known) == len(found) else None


def _in_words(answer: object) -> str:
    return ", ".join(answer) if isinstance(answer, tuple) and answer else _NONE
