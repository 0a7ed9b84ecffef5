"""What tasks of a whole text share: one vector of scores for a whole text.

``pooling = mean`` averages a linear layer's logits over a record's own tokens, which is a linear
layer on the mean-pooled hidden states. It is expressed as token classification, a class that
transformers has for every encoder, so the adapter loads without confide; sentence encoders carry
their meaning in the mean, and frozen BERT poolers are a poor start under noise (docs/benchmarks).
``pooling = model`` is the model's own sequence classification head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..machine.installed import library
from .example import Batch, Example, padded
from .task import ENCODER, TEXTS, Place, Task, Weighed
from .tokens import random_ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..settings import TaskSpec
    from ..text.readers import Record

_BATCH = f"""\
texts = {TEXTS}
batch = tokenizer(texts, padding=True, truncation=True, max_length={{length}}, return_tensors="pt")
with torch.no_grad():
"""
_MEAN = """\
    token_logits = model(**batch).logits  # (texts, tokens, {what})
mask = batch["attention_mask"].unsqueeze(-1)
logits = (token_logits * mask).sum(1) / mask.sum(1)  # the mean over the tokens of each text
"""
_OWN = "    logits = model(**batch).logits  # (texts, {what})\n"


class PooledTask(Task):
    """A task of one vector of scores for a whole text, by a head of its own.

    Attributes:
        answer_code: of the card: what is printed of ``logits``.
    """

    target = "needed"
    language = False
    by_logits = True
    small_model = ENCODER
    hub = "text-classification"
    answer_code: ClassVar[str]

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.fixed = spec.word_dropout == 0

    @classmethod
    def model_class(cls, pooling: str) -> str:
        mean = pooling == "mean"
        return "AutoModelForTokenClassification" if mean else "AutoModelForSequenceClassification"

    @classmethod
    def head_labels(cls, spec: TaskSpec) -> tuple[str, ...]:
        return spec.label_names

    @classmethod
    def rows_in_code(cls) -> str:
        return "len(labels)" if cls.fewest_labels else "1"

    @classmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        head = _MEAN if told["task.pooling"] == "mean" else _OWN
        what = "labels" if cls.fewest_labels else "1"
        batch = _BATCH.format(length=told["train.max-length"])
        return batch + head.format(what=what) + cls.answer_code

    @classmethod
    def card_words(cls, told: Mapping[str, Any], *, merged: bool) -> str:
        way = "" if merged else "; `confide export` writes a whole model"
        if told["task.pooling"] == "model":
            return "" if merged else f"`pipeline` needs a whole model, with the labels{way[1:]}."
        return (
            "The head scores every token, and the scores of a text are averaged over its tokens, as"
            " below. `pipeline` has no such class, and must not be used: a text classifier of the"
            f" same family would read the first token with this head{way}."
        )

    @classmethod
    def pipeline_tag(cls, told: Mapping[str, Any], *, merged: bool) -> str | None:
        return cls.hub if merged and told["task.pooling"] == "model" else None

    def peft_task_type(self) -> str:
        """PEFT's name of the class: it decides which head is trained and saved."""
        return "TOKEN_CLS" if self.spec.pooling == "mean" else "SEQ_CLS"

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids and target of each record; longer texts are cut at ``max_length`` tokens."""
        targets = self.targets(records) if labelled else [self.no_target()] * len(records)
        ids = token_ids([record.text for record in records], tokenizer, max_length)
        return [Example(i, t) for i, t in zip(ids, targets, strict=True)]

    @abstractmethod
    def targets(self, records: Sequence[Record]) -> list[Any]:
        """The target of each record.

        Raises:
            ConfideError: ``data.``...; it names the record's number, never its content.
        """

    @abstractmethod
    def no_target(self) -> Any:
        """In the place of a target that nobody knows."""

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        return without_words(example, self.spec.word_dropout, place, generator)

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return collate(examples, place)

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """The scores of each text, (B, L)."""
        return logits(self.spec, output, attention_mask)

    def counts(self, targets: Tensor) -> Tensor:
        import torch

        return torch.ones(len(targets), dtype=torch.long, device=targets.device)

    @abstractmethod
    def made_up_target(self, number: int) -> Any:
        """Of the made-up example of that number."""

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        return [
            Example(made_up_ids(length, size, generator, place), self.made_up_target(number))
            for number, length in enumerate(lengths)
        ]

    def weighed(self, ids: Tensor, place: Place) -> Weighed:
        import torch

        def scores(embedded: Tensor) -> Tensor:  # (B, T, H) -> (B, L)
            mask = embedded.new_ones(embedded.shape[:2], dtype=torch.long)
            output = place.model(inputs_embeds=embedded, attention_mask=mask)
            return self.logits(output, mask).float()

        with torch.no_grad():
            found = scores(place.model.get_input_embeddings()(ids).detach())
        answer, measure, odds = self.odds(found[0])
        return Weighed(answer, measure, lambda embedded: odds(scores(embedded)))

    def odds(self, scores: Tensor) -> tuple[str, str, Callable[[Tensor], Tensor]]:
        """Of a text's scores (L,): the answer, what its score is of, and that score (B,) of scores
        (B, L); where ``explains``."""
        raise TypeError(f"task.kind = {self.kind!r} explains nothing")


def token_ids(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[tuple[int, ...]]:
    """Token ids of each text with the tokenizer's own frame, cut at ``max_length``."""
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
    # A text of which the tokenizer leaves nothing is one token long: no mean is over nothing.
    blank = (tokenizer.pad_token_id or 0,)
    return [tuple(i) or blank for i in ids]


def collate(examples: Sequence[Example], place: Place) -> Batch:
    """Examples with one target each: a class, a number, or a row of numbers."""
    import torch

    ids, mask = padded([e.ids for e in examples], place.tokenizer.pad_token_id or 0)
    targets = torch.tensor([e.target for e in examples])
    return Batch({"input_ids": ids}, mask, targets)


def logits(spec: TaskSpec, output: Any, attention_mask: Tensor) -> Tensor:
    """(B, L) from the model's output."""
    scores: Tensor = output.logits.float()  # a mean over tokens is no sum for bfloat16
    if spec.pooling == "mean":  # (B, T, L) -> (B, L), over the record's own tokens
        weight = attention_mask.unsqueeze(-1).to(scores.dtype)
        scores = (scores * weight).sum(1) / weight.sum(1)
    return scores


def made_up_ids(
    length: int, size: int, generator: torch.Generator, place: Place
) -> tuple[int, ...]:
    """Made-up words in the tokenizer's own frame: some heads look for the token that ends a
    text, and find one in each."""
    t = place.tokenizer
    frame = list(t("")["input_ids"])[:length]
    behind = [token for token in frame if token in (t.eos_token_id, t.sep_token_id)]
    ahead = [token for token in frame if token not in behind]
    special = set(t.all_special_ids)
    word = next(token for token in range(size) if token not in special)
    words = [
        word if token in special else token
        for token in random_ids(length - len(frame), size, generator)
    ]
    return (*ahead, *words, *behind)


def without_words(
    example: Example, rate: float, place: Place, generator: torch.Generator
) -> Example:
    """The example without some of its tokens, each left out with this chance; those of the frame
    stay, and so does one other."""
    import torch

    frame = set(place.tokenizer.all_special_ids)
    words = [position for position, token in enumerate(example.ids) if token not in frame]
    chances = torch.rand(len(words), generator=generator).tolist()
    gone = {w for w, chance in zip(words, chances, strict=True) if chance < rate}
    if words and len(gone) == len(words):
        gone.remove(words[max(range(len(words)), key=chances.__getitem__)])
    ids = tuple(token for position, token in enumerate(example.ids) if position not in gone)
    return Example(ids, example.target)


def tf_idf(model: Any) -> Any:
    """A model of scikit-learn's over TF-IDF of words and pairs of words."""
    text = library("sklearn.feature_extraction.text")
    words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return library("sklearn.pipeline").make_pipeline(words, model)
