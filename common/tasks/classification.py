"""Sequence classification: one text, one of the declared labels.

An example's loss may be weighted by its class and focused on what the model gets wrong (Lin et al.
2017); both are the coordinator's choice, never counted from the text, and scale the example's own
gradient before it is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfideError
from ..machine.installed import library
from ..text.rows import label_places
from .example import Prediction
from .labels import check_labels, check_weights, places_of
from .pooled import PooledTask, tf_idf
from .task import Agreed, Described, Refuse

if TYPE_CHECKING:
    from torch import Tensor

    from ..settings import Settings, TaskSpec
    from ..text.readers import Record

_MANY = ("accuracy", "macro-f1", "micro-f1", "mcc")
_TWO = ("accuracy", "f1", "macro-f1", "micro-f1", "mcc")


def class_indices(records: Sequence[Record], labels: Sequence[str]) -> list[int]:
    """The class of each record, by its place among the labels.

    Raises:
        ConfideError: ``data.unknown-label``; it names the record's number, never its content.
    """
    place_of, found = label_places(labels), list[int]()
    for number, record in enumerate(records, start=1):
        place = None if record.target is None else place_of(record.target)
        if place is None:
            raise ConfideError(
                "data.unknown-label",
                f"The label of record {number} is not one of {', '.join(labels)}.",
                "Declare every label in task.labels, spelt as in the data.",
            )
        found.append(place)
    return found


class Classification(PooledTask):
    """See the module's docstring."""

    kind = "classification"
    takes = ("labels", "loss", "gamma", "class_weights", "class_rates", "word_dropout")
    fewest_labels = 2
    countable = True
    holder_metric = "accuracy"
    shown = 2
    shares_of_records = ("accuracy", "micro-f1")
    does = "sorts a text into: {labels}"
    described: ClassVar[Described] = {"text-classification": {}}
    learns_from = ("labels",)
    explains = True
    problem_type = "single_label_classification"
    answer_code = "print([labels[i] for i in logits.argmax(-1)])\n"

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.labels = spec.label_names

    @classmethod
    def metrics_of(cls, spec: TaskSpec) -> tuple[str, ...]:
        return _TWO if len(spec.label_names) == 2 else _MANY

    @classmethod
    def check_settings(cls, settings: Settings, refuse: Refuse) -> None:
        check_labels(settings.task, cls.fewest_labels, refuse)
        check_weights(settings.task, refuse, countable=True)

    @classmethod
    def labels_in(cls, target: str) -> tuple[str, ...]:
        return (target,)

    @classmethod
    def fits(cls, target: str | None, agreed: Agreed) -> bool:
        return places_of(agreed.labels)(target or "") is not None

    @classmethod
    def in_words(cls, column: str, agreed: Agreed) -> str:
        return f"{column!r} one of {', '.join(agreed.labels)}"

    @classmethod
    def line(cls, text: str, found: Prediction) -> str:
        return f"{found.answer} ({found.probabilities[str(found.answer)]:.2f})  {text}"

    @classmethod
    def told(cls, text: str, found: Prediction) -> dict[str, Any]:
        return {"text": text, "label": found.answer, "probabilities": found.probabilities}

    def targets(self, records: Sequence[Record]) -> list[int]:
        """The class of each record.

        Raises:
            ConfideError: ``data.unknown-label``; it names the record's number, never its content.
        """
        return class_indices(records, self.labels)

    def no_target(self) -> int:
        return 0

    def made_up_target(self, number: int) -> int:
        return number % len(self.labels)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each example (B,) in nats, weighted and focused as the settings say;
        nothing is shared between examples."""
        import torch

        each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        if self.spec.loss == "focal":
            each = (1 - torch.exp(-each)) ** self.spec.gamma * each
        weights = self.spec.weights
        return each * torch.tensor(weights, device=each.device)[targets] if weights else each

    def answers(self, logits: Tensor) -> list[int]:
        return list(logits.argmax(-1).tolist())

    def references(self, targets: Tensor) -> list[int]:
        return list(targets.tolist())

    def tell(self, logits: Tensor) -> list[Prediction]:
        """The most probable label of each text, and every label's probability."""
        told = []
        for shares in logits.float().softmax(-1).tolist():
            by_label = dict(zip(self.labels, shares, strict=True))
            told.append(Prediction(max(by_label, key=lambda name: by_label[name]), by_label))
        return told

    def odds(self, scores: Tensor) -> tuple[str, str, Callable[[Tensor], Tensor]]:
        """Those of the most probable label against all others."""
        chosen = int(scores.argmax())
        others = [index for index in range(len(self.labels)) if index != chosen]

        def log_odds(found: Tensor) -> Tensor:  # (B, L) -> (B,)
            return found[:, chosen] - found[:, others].logsumexp(-1)

        answer = self.labels[chosen]
        return answer, f"log-odds of {answer!r}", log_odds

    def yardsticks(
        self, train: Sequence[Record], test: Sequence[Record]
    ) -> Mapping[str, tuple[list[Any], list[Any]]]:
        """TF-IDF with logistic regression."""
        logistic = library("sklearn.linear_model").LogisticRegression
        model = tf_idf(logistic(max_iter=1000))
        model.fit([r.text for r in train], class_indices(train, self.labels))
        found = model.predict([r.text for r in test]).tolist()
        return {"TF-IDF + logistic regression": (found, class_indices(test, self.labels))}
