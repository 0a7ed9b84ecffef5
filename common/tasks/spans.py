"""Span corruption: going on with the pre-training of a T5 on private text.

Spans of a text are replaced by one sentinel each, and are what the decoder has to write (Raffel et
al. 2020, section 3.1.4): a share ``task.mask`` of the tokens, in spans of three on average, drawn
anew each time a record is used, for each record by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfideError
from . import tokens
from .example import Example
from .generation import continued
from .task import PERPLEXITY, T5, Described, Place

if TYPE_CHECKING:
    import torch

    from ..text.readers import Record

_MEAN_SPAN = 3
# Of a short text the sentinels are a larger part: what it takes of the memory is still bounded by
# that of a text so many tokens longer.
_FRAME = 20
_MOST_SPANS = 99  # T5 has 100 sentinels; the last one ends the target
_CODE = """\
batch = tokenizer("The first <extra_id_0>.", return_tensors="pt")
written = model.generate(**batch, max_new_tokens={new}, do_sample=False)
print(tokenizer.decode(written[0]))
"""


class Spans(tokens.PairTask):
    """See the module's docstring."""

    kind = "spans"
    target = "none"
    takes = ("mask", "target_length", "beams")
    known = (PERPLEXITY,)
    hub = "text2text-generation"
    does = "fills in missing spans of a text"
    described: ClassVar[Described] = {"span-corruption": {}}  # the Hub has no name for it
    small_model = T5
    learns_from = ("alone",)
    fixed = False

    @classmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        return _CODE.format(new=told["task.target-length"])

    def check(self, config: Any, tokenizer: Any) -> None:
        tokens.bounds(tokenizer)
        if len(_sentinels(tokenizer)) < 2:
            raise ConfideError(
                "model.tokenizer",
                "The tokenizer has no sentinels such as <extra_id_0>.",
                "Use a T5, or task.kind = 'seq2seq'.",
            )

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids of each record, cut at ``max_length`` with the end that is to come; their
        targets are not drawn yet."""
        _, end = tokens.bounds(tokenizer)
        rows = tokens.bare([record.text for record in records], tokenizer)
        return [Example(tuple(row[: max_length - 1]) or (end,), ()) for row in rows]

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        marks, count = _sentinels(place.tokenizer), len(example.ids)
        _, end = tokens.bounds(place.tokenizer)
        hidden = max(1, round(count * self.spec.mask))
        spans = max(1, min(round(hidden / _MEAN_SPAN), count - hidden, len(marks) - 1, _MOST_SPANS))
        inside = _parts(hidden, spans, generator)
        outside = _parts(count - hidden, spans, generator)
        source, target, at = list[int](), list[int](), 0
        for mark, kept, gone in zip(marks, outside, inside, strict=False):
            source += [*example.ids[at : at + kept], mark]
            target += [mark, *example.ids[at + kept : at + kept + gone]]
            at += kept + gone
        return Example((*source, end), (*target, marks[spans], end))

    def length(self, example: Example, max_length: int) -> int:
        return min(max_length, len(example.ids) + _FRAME)

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """What stands behind each sentinel of the texts, the sentinels included."""
        _, end = tokens.bounds(place.tokenizer)
        found = tokens.bare([record.text for record in records], place.tokenizer)
        if whole:
            tokens.check_lengths(found, place.max_length - 1)
        prompts = [[*ids[: place.max_length - 1], end] for ids in found]
        made = continued(prompts, place, new=self.spec.target_length, beams=self.spec.beams)
        return [str(place.tokenizer.decode(row)).strip() for row in made]

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        """As large as they get; short ones with targets that differ in length more than those of
        short texts do, so that a mean over the batch's tokens shows."""
        out = []
        for length in lengths:
            ids = tokens.random_ids(length, size, generator)
            if length >= place.max_length:
                out.append(self.redraw(Example(ids[1:], ()), place, generator))
            else:
                out.append(Example(ids, tokens.random_ids(length + 1, size, generator)))
        return out


def _sentinels(tokenizer: Any) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as they go."""
    known = []
    for number in range(_MOST_SPANS + 1):
        found = tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>")
        if found is None or found == tokenizer.unk_token_id:
            break
        known.append(found)
    return known


def _parts(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """``total`` as a sum of so many positive numbers, every such sum as likely; all of it in the
    first where there is too little."""
    import torch

    if total < parts:
        return [total, *[0] * (parts - 1)]
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    ends = [*cuts.tolist(), total]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
