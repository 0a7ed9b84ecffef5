"""What tasks of one target a token share: where a text begins and ends, batches, and the loss.

The loss of an example is the sum over its own targets divided by its own number of targets: never
a mean over the batch's tokens, by which one long record would rescale all others before clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfideError
from .example import IGNORED, Batch, Example, padded
from .task import PERPLEXITY, Place, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TokenTask(Task):
    """A task of one target a token, by the language model's own head."""

    language = True
    by_logits = False
    holder_metric = PERPLEXITY
    transformers_class: ClassVar[str]

    @classmethod
    def model_class(cls, pooling: str) -> str:
        return cls.transformers_class

    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        """(B, U, V), over the tokens that are learnt."""
        return output.logits.float()  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return token_losses(logits, targets)

    def counts(self, targets: Tensor) -> Tensor:
        return token_counts(targets)


class PairTask(TokenTask):
    """A task whose target is a text of its own, which a decoder writes."""

    transformers_class = "AutoModelForSeq2SeqLM"

    def peft_task_type(self) -> str:
        return "SEQ_2_SEQ_LM"

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        return pair_batch(examples, place)


def bounds(tokenizer: Any) -> tuple[int, int]:
    """The token that a text begins behind, and the one that ends it.

    Raises:
        ConfideError: ``model.tokenizer``.
    """
    t = tokenizer
    end = _first(t.eos_token_id, t.sep_token_id)
    begin = _first(t.bos_token_id, t.cls_token_id, end)
    if end is None or begin is None:
        raise ConfideError(
            "model.tokenizer",
            "The tokenizer has no token that ends a text, which generation needs.",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    return begin, end


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def bare(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of texts, without any frame."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) for ids in found]


def token_batch(examples: Sequence[Example], place: Place) -> Batch:
    """Examples with a target for each of their ids."""
    import torch

    ids, mask = padded([e.ids for e in examples], place.tokenizer.pad_token_id or 0)
    targets, own = padded([_targets(e) for e in examples], IGNORED)
    if not torch.equal(own, mask):
        raise ValueError("an example has not one target for each token: it was not drawn")
    return Batch({"input_ids": ids}, mask, targets)


def pair_batch(examples: Sequence[Example], place: Place) -> Batch:
    """Examples whose target is a text of its own, read by the decoder one to the right."""
    pad = place.tokenizer.pad_token_id or 0
    ids, mask = padded([e.ids for e in examples], pad)
    targets, _ = padded([_targets(e) for e in examples], IGNORED)
    seen = _one_to_the_right(targets, place, pad)
    return Batch({"input_ids": ids, "decoder_input_ids": seen}, mask, targets)


def _one_to_the_right(targets: Tensor, place: Place, pad: int) -> Tensor:
    """What the decoder reads, (B, U): by the model's own rule, where it has one (mBART begins with
    the language that stands at the end of the target)."""
    import torch

    model = getattr(place.model, "get_base_model", lambda: place.model)()
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        shifted: Tensor = own(labels=targets)
        return shifted
    start = model.config.decoder_start_token_id
    before = torch.full_like(targets[:, :1], pad if start is None else start)
    return torch.cat([before, targets[:, :-1].masked_fill(targets[:, :-1] == IGNORED, pad)], 1)


def _targets(example: Example) -> tuple[int, ...]:
    if not isinstance(example.target, tuple):
        raise TypeError("the example has no target for each token")
    return example.target


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T, V) and (B, T) -> (B,): the mean over an example's own targets, in nats."""
    from torch.nn.functional import cross_entropy

    # Flat, since turning (B, V, T) round takes longer than a large vocabulary's loss itself.
    each = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return each.view_as(targets).sum(1) / token_counts(targets)


def token_counts(targets: Tensor) -> Tensor:
    """How many targets each example has, (B,)."""
    return (targets != IGNORED).sum(1)


def vocabulary(place: Place) -> int:
    """How many token ids tokenizer and model both know."""
    known = getattr(place.model.config, "vocab_size", None)
    size = len(place.tokenizer)
    return min(size, known) if isinstance(known, int) else size


def random_ids(length: int, size: int, generator: torch.Generator) -> tuple[int, ...]:
    """Made-up tokens; 0, which is often padding, is none of them."""
    import torch

    return tuple(torch.randint(1, size, (length,), generator=generator).tolist())


def check_lengths(prompts: Sequence[Sequence[int]], most: int) -> None:
    """Refuse a text that would have to be cut.

    Raises:
        ConfideError: ``data.too-long``, by the text's number; it quotes nothing.
    """
    for number, ids in enumerate(prompts, start=1):
        if len(ids) > most:
            raise ConfideError(
                "data.too-long",
                f"Text {number} has {len(ids)} tokens, but the model reads {most} of a text.",
                "Shorten it, or train with a larger train.max-length.",
            )


def targets_of(targets: Sequence[str | None]) -> list[str]:
    """The texts to be learnt.

    Raises:
        ConfideError: ``data.missing-target``, by the record's number.
    """
    for number, target in enumerate(targets, start=1):
        if target is None:
            raise ConfideError(
                "data.missing-target",
                f"Record {number} has no target.",
                "Name the column in data.target; a .txt file has none.",
            )
    return [target for target in targets if target is not None]
