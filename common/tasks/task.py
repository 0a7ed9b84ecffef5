"""What every task follows: its facts, which are known without torch, and what it makes of records.

All in which one task differs from another stands in its own module, as a class below ``Task``:
settings, check-data, contract, card, Hub and `confide predict` ask it. Importing it needs no torch,
so that settings and the command line start without; what computes imports torch where it does.

``perplexity`` is made here from the losses: exp of the mean over all target tokens. Every other
metric is one of ``common.metrics``.

``literal`` and ``writing`` are pieces of the code on a model's card: plain transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from .example import Batch, Example, Prediction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..settings import Settings, TaskSpec
    from ..text.readers import Record
import math
from typing import TYPE_CHECKING

from ..errors import ConfideError, nearest
from ..metrics import compute

if TYPE_CHECKING:
    from ..settings import TaskSpec
import json

TEXTS = '["The first text.", "Another, somewhat longer text."]'
_WRITES = f"""\
template = {{template}}
texts = [template.replace("{{{{text}}}}", text) for text in {TEXTS}]
for text in texts:
    batch = tokenizer({{given}}, return_tensors="pt"{{bare}})
    written = model.generate(**batch, max_new_tokens={{new}}, num_beams={{beams}}, do_sample=False)
    print(tokenizer.decode(written[0{{rest}}], skip_special_tokens=True))
"""


def literal(value: Any) -> str:
    """Text, or a list of it, as Python that can be read: letters as they are, and whatever is not
    to be seen, or would end the block of a card, by its number."""
    shown = json.dumps(value, ensure_ascii=False).replace("```", "\\u0060" * 3)
    return "".join(x if x.isprintable() else json.dumps(x)[1:-1] for x in shown)


def writing(template: Any, *, new: Any, beams: Any, alone: bool) -> str:
    """Code that lets the model write; ``alone``: a decoder, whose answer follows its prompt."""
    begin = "begin = tokenizer.bos_token or tokenizer.cls_token or tokenizer.eos_token\n"
    return (begin if alone else "") + _WRITES.format(
        template=literal(template),
        given="begin + text" if alone else "text",
        bare=", add_special_tokens=False" if alone else "",
        rest=', batch["input_ids"].shape[1]:' if alone else "",
        new=new,
        beams=beams,
    )


PERPLEXITY = "perplexity"


def chosen(spec: TaskSpec, known: Sequence[str], *, shown: int) -> tuple[str, ...]:
    """The metrics of a task, the main one first: ``task.metric``, or else the first of ``known``;
    then as many of these as are shown without being asked for.

    Raises:
        ConfideError: ``settings.combination`` for a metric that the task does not have.
    """
    if spec.metric and spec.metric not in known:
        raise ConfideError(
            "settings.combination",
            f"task.metric = {spec.metric!r:.100}, but task.kind = {spec.kind!r} has"
            f" {', '.join(known)}.",
            nearest(spec.metric[:100], known),
        )
    return tuple(dict.fromkeys([spec.metric or known[0], *known[:shown]]))


def needs_answers(metrics: Sequence[str]) -> bool:
    """Whether the losses alone are not enough."""
    return any(name != PERPLEXITY for name in metrics)


def values(
    metrics: Sequence[str], answers: Sequence[Any], references: Sequence[Any], token_loss: float
) -> dict[str, float]:
    """Each metric's value; ``token_loss`` is the mean loss of a target token in nats."""
    return {
        name: perplexity(token_loss) if name == PERPLEXITY else compute(name, answers, references)
        for name in metrics
    }


def perplexity(token_loss: float) -> float:
    """exp of the loss; a loss too large for a float gives infinity."""
    try:
        return math.exp(token_loss)
    except OverflowError:
        return math.inf


Refuse = Callable[[str, str], None]  # a message, and what to do instead
Described = Mapping[str, Mapping[str, str]]  # name -> flat settings
Shape = Literal["messages", "alone", "scale", "labels", "label sets", "texts"]
# Small models of the kind that a task needs, for whoever names none.
ENCODER, DECODER, T5 = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "google-t5/t5-small",
)


class Place(Protocol):
    """A tokenizer and a model, as ``common.models.loading.LoadedModel`` has them."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def max_length(self) -> int: ...


class Agreed(Protocol):
    """What was said of a text's targets, as a holder's contract has it."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Weighed:
    """An answer whose words can be weighed: in words, what its score is of, and the score (B,) of
    embeddings (B, T, H) of the text's tokens."""

    answer: str
    measure: str
    score: Callable[[Tensor], Tensor]


class Task(ABC):
    """What a record means. Everything is per example: nothing that one example's loss or gradient
    is made of may depend on the others of its batch.

    Attributes:
        kind: its name, the value of ``task.kind``, and that of its module.
        target: whether each record needs a target beside its text, may have one, or has none.
        language: whether its answers are text, by the model's own head.
        takes: the ``task.`` settings that change what is learnt and that it has a use for, by
            their names in ``TaskSpec``; such a one is refused beside another task.
        fewest_labels: how many labels it needs at least; 0: it has none.
        scale: whether its targets are numbers from ``task.low`` to ``task.high``.
        lists: whether a target may be a list.
        countable: whether a noisy sum may count its classes: a record has one of them.
        holder_metric: what holders measure by a sum over their records; empty where none has a
            bound that means something (the errors of a regression).
        known, shown: names of ``common.metrics``, or ``perplexity``, the first the main one; and
            how many are shown without being asked for.
        shares_of_records: those of its metrics that are a share of all records, which has an
            interval.
        hub: the Hub's name of the task.
        does: what an adapter for it does, with {labels}, {low:g} and {high:g} to be filled in.
        described: the names by which a task description asks for it, with the settings that
            each settles beside kind and model.
        problem_type: transformers' name of what the scores of its own head are.
        small_model: for whoever names none.
        learns_from: what a file looks like that it is proposed for.
        explains: whether the words of its answers can be weighed.
        fixed: whether a record gives the same inputs each time it is used, so that frozen layers
            can be computed once.
        by_logits: whether the answer is read off the logits; otherwise ``generate`` makes it.
        metrics: those of a run, the main one first.
    """

    kind: ClassVar[str]
    target: ClassVar[Literal["needed", "allowed", "none"]]
    language: ClassVar[bool]
    by_logits: ClassVar[bool]
    takes: ClassVar[tuple[str, ...]] = ()
    fewest_labels: ClassVar[int] = 0
    scale: ClassVar[bool] = False
    lists: ClassVar[bool] = False
    countable: ClassVar[bool] = False
    holder_metric: ClassVar[str] = ""
    known: ClassVar[tuple[str, ...]]
    shown: ClassVar[int] = 1
    shares_of_records: ClassVar[tuple[str, ...]] = ("accuracy", "exact-match")
    hub: ClassVar[str]
    does: ClassVar[str]
    described: ClassVar[Described]
    small_model: ClassVar[str]
    learns_from: ClassVar[tuple[Shape, ...]]
    explains: ClassVar[bool] = False
    problem_type: ClassVar[str] = ""

    spec: TaskSpec
    metrics: tuple[str, ...]
    fixed: bool = True

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.metrics = chosen(spec, self.metrics_of(spec), shown=self.shown_of(spec))

    # --- without torch: settings, contract, files ---

    @classmethod
    def metrics_of(cls, spec: TaskSpec) -> tuple[str, ...]:
        """The metrics that it has, the main one first."""
        return cls.known

    @classmethod
    def shown_of(cls, spec: TaskSpec) -> int:
        """How many of these are shown without being asked for."""
        return cls.shown

    @classmethod  # noqa: B027 - most tasks refuse nothing
    def check_settings(cls, settings: Settings, refuse: Refuse) -> None:
        """Refuse settings that are in range one by one and make no sense for this task."""

    @classmethod
    def writes(cls, spec: TaskSpec) -> bool:
        """Whether a metric is of text that the model writes."""
        return False

    @classmethod
    def labels_in(cls, target: str) -> tuple[str, ...]:
        """The labels that a record's target names; none for a task without."""
        return ()

    @classmethod
    def fits(cls, target: str | None, agreed: Agreed) -> bool:
        """Whether a target is what was agreed."""
        return True

    @classmethod
    def in_words(cls, column: str, agreed: Agreed) -> str:
        """What the column of targets holds, for people; empty where that says nothing."""
        return ""

    # --- without torch: the head, the card, the Hub, answers on a screen ---

    @classmethod
    @abstractmethod
    def model_class(cls, pooling: str) -> str:
        """transformers' Auto class of the model with its head."""

    @classmethod
    def head_labels(cls, spec: TaskSpec) -> tuple[str, ...]:
        """The labels of a head of its own, in the order of its rows; none where it has none."""
        return ()

    @classmethod
    def begins_at(cls, spec: TaskSpec) -> float:
        """Where the bias of a new head begins."""
        return 0.0

    @classmethod
    def rows_in_code(cls) -> str:
        """How the card's code says how many rows the head has; empty where it has none."""
        return ""

    @classmethod
    @abstractmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        """Python for the card that uses ``model`` and ``tokenizer``; ``told`` are flat settings,
        whose texts may be anybody's."""

    @classmethod
    def card_words(cls, told: Mapping[str, Any], *, merged: bool) -> str:
        """What somebody has to know who reads that code; empty where it speaks for itself."""
        return ""

    @classmethod
    def pipeline_tag(cls, told: Mapping[str, Any], *, merged: bool) -> str | None:
        """The Hub's name of the task, where ``pipeline`` with that name gives the answers."""
        return None

    @classmethod
    def line(cls, text: str, found: Prediction) -> str:
        """An answer on a line of `confide predict`."""
        return str(found.answer)

    @classmethod
    def told(cls, text: str, found: Prediction) -> dict[str, Any]:
        """An answer as `confide predict` prints it as JSON."""
        return {"text": text, "answer": found.answer}

    # --- the model ---

    def auto_class(self) -> Any:
        """transformers' Auto class of the model with its head."""
        import transformers

        return getattr(transformers, self.model_class(self.spec.pooling))

    @abstractmethod
    def peft_task_type(self) -> str | None:
        """PEFT's name of the task; None where it has none."""

    def check(self, config: Any, tokenizer: Any) -> None:  # noqa: B027 - most refuse nothing
        """Refuse a model that the task does not fit, though it has the class of ``auto_class``.

        Raises:
            ConfideError: ``task.model`` or ``model.tokenizer``.
        """

    # --- records ---

    @abstractmethod
    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """The records as examples. ``labelled = False`` needs no target, and has none.

        Raises:
            ConfideError: ``data.``...; it names the record's number, never its content.
        """

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        """The example as it is used this time; the same one where ``fixed``. Called for one
        example at a time, and never for one that comes from here."""
        return example

    @abstractmethod
    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        """Examples in one padded batch, in their order."""

    def length(self, example: Example, max_length: int) -> int:
        """What batches are cut by: at most ``max_length``, and no tensor of the example is longer
        than this share of what it is in an example of that length."""
        return len(example.ids)

    @abstractmethod
    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """(B, ...) in float32 from the model's output."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example (B,), in nats where it is a likelihood."""

    @abstractmethod
    def counts(self, targets: Tensor) -> Tensor:
        """Of how many terms each loss is the mean, (B,)."""

    @abstractmethod
    def made_up(
        self,
        lengths: Sequence[int],
        size: int,
        generator: torch.Generator,
        place: Place,
    ) -> list[Example]:
        """Examples of so many tokens below ``size``, without any text, ready to be used."""

    # --- answers ---

    def answers(self, logits: Tensor) -> list[Any]:
        """What the metrics compare with ``references``, where ``by_logits``."""
        return []

    def references(self, targets: Tensor) -> list[Any]:
        """The right answers, where ``by_logits``."""
        return []

    def tell(self, logits: Tensor) -> list[Prediction]:
        """The answers in words, where ``by_logits``."""
        return []

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The model's own text for each record, where not ``by_logits``. Too long a text is cut as
        ``encode`` cuts it, or refused where it must be taken ``whole``.

        Raises:
            ConfideError: ``data.too-long``, by the record's number.
        """
        raise TypeError(f"task.kind = {self.kind!r} makes no text")

    def asked(self, text: str) -> str:
        """A text as the model reads it, where its words can be weighed."""
        return text

    def weighed(self, ids: Tensor, place: Place) -> Weighed:
        """The answer to a text of tokens (1, T), where ``explains``."""
        raise TypeError(f"task.kind = {self.kind!r} explains nothing")

    def yardsticks(
        self, train: Sequence[Record], test: Sequence[Record]
    ) -> Mapping[str, tuple[list[Any], list[Any]]]:
        """What others answer to ``test`` that are no language models, of all text and without
        privacy: by name, the answers and the right ones."""
        return {}
