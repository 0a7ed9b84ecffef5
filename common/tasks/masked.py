"""Masked language modelling: going on with the pre-training of an encoder on private text.

Which tokens are masked is drawn anew each time a record is used, for each record by itself (Liu et
al. 2019, dynamic masking): of its own words each with the chance ``task.mask``, and at least one.
Of those, 8 in 10 become the mask, 1 in 10 another token, 1 in 10 stay (Devlin et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfideError
from . import pooled, tokens
from .example import IGNORED, Batch, Example
from .task import PERPLEXITY, Described, Place

if TYPE_CHECKING:
    import torch

    from ..text.readers import Record

_BECOME_MASK, _BECOME_OTHER = 0.8, 0.9  # the rest stays
_FILLS = """\
text = f"The first {tokenizer.mask_token}."
batch = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    best = model(**batch).logits[0].argmax(-1)
print([tokenizer.decode(b) for b, i in zip(best, batch["input_ids"][0])
       if i == tokenizer.mask_token_id])
"""


class Masked(tokens.TokenTask):
    """See the module's docstring."""

    kind = "masked"
    target = "none"
    takes = ("mask",)
    known = (PERPLEXITY,)
    hub = "fill-mask"
    does = "fills in masked words"
    described: ClassVar[Described] = {"fill-mask": {}}
    small_model = "distilbert/distilbert-base-uncased"
    learns_from = ("alone",)
    transformers_class = "AutoModelForMaskedLM"
    fixed = False

    @classmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        return _FILLS

    @classmethod
    def pipeline_tag(cls, told: Mapping[str, Any], *, merged: bool) -> str | None:
        return cls.hub

    def peft_task_type(self) -> None:
        """PEFT has no name for it: a plain PeftModel, without a head of its own."""

    def check(self, config: Any, tokenizer: Any) -> None:
        if config.is_encoder_decoder or getattr(config, "is_decoder", False):
            raise ConfideError(
                "task.model",
                f"task.kind = 'masked' needs an encoder, which {config.model_type!r:.100} is not.",
                "Use a model such as BERT, or task.kind = 'spans' for T5.",
            )
        if tokenizer.mask_token_id is None:
            raise ConfideError(
                "model.tokenizer",
                "The tokenizer has no mask token.",
                "Use a model that was made by masking words, such as BERT.",
            )

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids of each record, cut at ``max_length``; their targets are not drawn yet."""
        texts = [record.text for record in records]
        return [Example(ids, ()) for ids in pooled.token_ids(texts, tokenizer, max_length)]

    def redraw(self, example: Example, place: Place, generator: torch.Generator) -> Example:
        import torch

        ids, size = list(example.ids), tokens.vocabulary(place)
        frame = set(place.tokenizer.all_special_ids)
        words = [i for i, token in enumerate(ids) if token not in frame] or list(range(len(ids)))
        chances = torch.rand(len(words), generator=generator).tolist()
        hidden = {w for w, chance in zip(words, chances, strict=True) if chance < self.spec.mask}
        if not hidden:
            hidden.add(words[min(range(len(words)), key=chances.__getitem__)])
        fates = torch.rand(len(ids), generator=generator).tolist()
        others = torch.randint(0, size, (len(ids),), generator=generator).tolist()
        targets = [token if i in hidden else IGNORED for i, token in enumerate(ids)]
        for i in hidden:
            if fates[i] < _BECOME_MASK:
                ids[i] = place.tokenizer.mask_token_id
            elif fates[i] < _BECOME_OTHER:
                ids[i] = others[i]
        return Example(tuple(ids), tuple(targets))

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return tokens.token_batch(examples, place)

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The texts with each mask in them replaced by the most probable token.

        Raises:
            ConfideError: ``data.no-mask`` for a text that has none.
        """
        import torch

        mask, out, texts = place.tokenizer.mask_token_id, [], [r.text for r in records]
        if whole:
            tokens.check_lengths(place.tokenizer(texts)["input_ids"], place.max_length)
        found = pooled.token_ids(texts, place.tokenizer, place.max_length)
        for number, ids in enumerate(found, start=1):
            if mask not in ids:
                raise ConfideError(
                    "data.no-mask",
                    f"Text {number} has no {place.tokenizer.mask_token} to be filled in.",
                    f"Write {place.tokenizer.mask_token} where the word is missing.",
                )
            row = torch.tensor([ids], device=place.model.device)
            with torch.no_grad():
                output = place.model(input_ids=row, attention_mask=torch.ones_like(row))
            best = output.logits[0].argmax(-1).tolist()
            filled = [best[i] if token == mask else token for i, token in enumerate(ids)]
            out.append(place.tokenizer.decode(filled, skip_special_tokens=True))
        return out

    def made_up(
        self, lengths: Sequence[int], size: int, generator: torch.Generator, place: Place
    ) -> list[Example]:
        rows = [tokens.random_ids(length, size, generator) for length in lengths]
        return [self.redraw(Example(ids, ()), place, generator) for ids in rows]
