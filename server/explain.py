"""Which words drove the answer: integrated gradients over the embeddings of a text's tokens.

Each word gets a share of the difference between the answer's score for the text and for a blank one
of the same length, whose every token is the mean of the vocabulary's embeddings (special tokens are
kept); the shares add up to it, but for ``gap``. Zero would be no blank text: a model that begins
with a division by the norm has a pole there. The score of a label is its log-odds, that of a
written answer its log-probability. It is computed in float32, on text that the coordinator typed
itself: no private text comes here, and an explanation of a private record would be a release.

For people: marked words in the terminal, and a page that needs nothing else. A word's sign stands
beside it in figures, and as a solid or a dashed line below it; the colour says the same once more
and carries nothing alone.

Sources: Sundararajan et al. 2017 (integrated gradients, completeness); Captum.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ..common.errors import ConfideError
from ..common.machine.installed import library
from ..common.tasks import TASKS, Place, Task
from .predict import open_run
from .report import escape
from .report.style import page
from .run_folder import run_settings

# More steps until the shares add up to the difference within this part of it.
TOLERANCE = 0.01
_STEPS = (32, 64, 128, 256, 512)
_AT_ONCE = 16
# Nats below which no difference matters.
_SMALL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer and what each word of the text added to its score.

    Attributes:
        answer: the label, or the text that was written.
        measure: what the score is of, in words.
        words: those that the model read, in order.
        shares: of ``score - baseline``, one for each word, in nats.
        score, baseline: for the text, and for the blank one.
        gap: how far the sum of all shares is from ``score - baseline``.
        cut: whether the text was longer than what the model reads.
    """

    answer: str
    measure: str
    words: tuple[str, ...]
    shares: tuple[float, ...]
    score: float
    baseline: float
    gap: float
    cut: bool


def explain(folder: Path, text: str) -> Explanation:
    """Explain what the model of the run in ``folder`` answers to ``text``.

    Raises:
        ConfideError: ``data.empty`` for a blank text, ``extra.missing`` without Captum,
            ``explain.task`` for a task that has no answer to explain, ``run.missing`` or
            ``adapter.missing`` for a folder that is no finished run.
    """
    kind = run_settings(folder).task.kind
    if not TASKS[kind].explains:
        others = " or ".join(name for name, task in TASKS.items() if task.explains)
        raise ConfideError(
            "explain.task",
            f"task.kind = {kind!r} has no answer whose words could be weighed.",
            f"Explain a run of {others}.",
        )
    _, loaded = open_run(folder)
    loaded.model.to("cpu")  # one text: the processor does, wherever the model was trained
    return explained(loaded.task, loaded, text)


def explained(task: Task, place: Place, text: str) -> Explanation:
    """Explain what the model answers to ``text`` in a task that ``explains``."""
    tokens = _tokens(place.tokenizer, task.asked(text), place.max_length)
    with _quiet():
        found = task.weighed(tokens.ids, place)
    return _explained(place.model, tokens, found.score, found.answer, found.measure)


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Token ids (1, T), each token's word (None for a special token), the words, and how many
    tokens there are in the vocabulary."""

    ids: Tensor
    vocabulary: int
    of_word: tuple[int | None, ...]
    words: tuple[str, ...]
    cut: bool


def _tokens(tokenizer: Any, text: str, max_length: int) -> _Tokens:
    if not text.strip():
        raise ConfideError("data.empty", "The text is blank.", "Give it some words.")
    options = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
    found = tokenizer(
        text,
        truncation=True,
        max_length=max_length,
        return_special_tokens_mask=True,
        **options,
    )
    ids, special = found["input_ids"], found["special_tokens_mask"]
    if tokenizer.is_fast:
        read, starts = text, [start for start, _ in found["offset_mapping"]]
    else:
        read, starts = _decoded(tokenizer, ids)
    words = list(re.finditer(r"\S+", read))
    ends = [word.end() for word in words]
    # A token may begin with the space before its word, and one of a space alone goes with the next.
    at = [min(bisect_right(ends, start), len(words) - 1) for start in starts]
    of_word = tuple(None if is_special else w for w, is_special in zip(at, special, strict=True))
    last = max((w for w in of_word if w is not None), default=-1)
    whole = tokenizer(text)["input_ids"]
    return _Tokens(
        ids=torch.tensor([ids]),
        vocabulary=len(tokenizer),
        of_word=of_word,
        words=tuple(word.group() for word in words[: last + 1]),
        cut=len(whole) > len(ids),
    )


def _decoded(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of tokens that do not know their place in it, and where each begins."""
    starts = [len(tokenizer.decode(ids[:i], skip_special_tokens=True)) for i in range(len(ids))]
    return tokenizer.decode(ids, skip_special_tokens=True), starts


def _embed(model: Any, ids: Tensor) -> Tensor:
    """Embeddings (..., H) of token ids (...)."""
    return model.get_input_embeddings()(ids).detach()  # type: ignore[no-any-return]


def _explained(
    model: Any, tokens: _Tokens, score: Callable[[Tensor], Tensor], answer: str, measure: str
) -> Explanation:
    embedded = _embed(model, tokens.ids)
    mean = _embed(model, torch.arange(tokens.vocabulary)).mean(0)  # (H,)
    kept = torch.tensor([[word is None] for word in tokens.of_word])  # (T, 1)
    blank = torch.where(kept, embedded, mean)
    with torch.no_grad(), _quiet():
        there, nowhere = float(score(embedded)), float(score(blank))
    shares = _integrated(score, embedded, blank, there - nowhere)  # (T,)
    by_word = [0.0] * len(tokens.words)
    for share, word in zip(shares.tolist(), tokens.of_word, strict=True):
        if word is not None:
            by_word[word] += share
    return Explanation(
        answer=answer,
        measure=measure,
        words=tokens.words,
        shares=tuple(by_word),
        score=there,
        baseline=nowhere,
        gap=abs(sum(by_word) - (there - nowhere)),
        cut=tokens.cut,
    )


def _integrated(
    score: Callable[[Tensor], Tensor], embedded: Tensor, blank: Tensor, difference: float
) -> Tensor:
    """Each token's share (T,), with as many steps as it takes."""
    method = library("captum.attr").IntegratedGradients(score)
    shares = torch.zeros(embedded.shape[1])
    for steps in _STEPS:
        with _quiet():
            found = method.attribute(embedded, blank, n_steps=steps, internal_batch_size=_AT_ONCE)
        shares = found.detach()[0].sum(-1)
        if abs(float(shares.sum()) - difference) <= TOLERANCE * max(abs(difference), _SMALL):
            break
    return shares


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remark that it finds no padding in embeddings: there is none."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


# A word with less than this part of the largest share is shown without a figure.
_WORTH_A_FIGURE = 0.1
_STYLE = """
.words{line-height:2.5;font-size:1.1rem;overflow-wrap:anywhere}
.words b{font-weight:600;padding-bottom:.12em;border-bottom:3px solid}
.words b small{font-weight:500;font-size:.72em;margin-left:.25em;font-variant-numeric:tabular-nums}
.words .for{color:var(--good);border-bottom-style:solid}
.words .against{color:var(--bad);border-bottom-style:dashed}
"""


def signed(share: float) -> str:
    """With a sign, always, and a minus that is as wide as the plus."""
    return f"{share:+.2f}".replace("-", "\N{MINUS SIGN}")


def marked(found: Explanation) -> list[tuple[str, float | None]]:
    """Words, and the shares that are worth a figure."""
    least = _WORTH_A_FIGURE * max((abs(share) for share in found.shares), default=0.0)
    return [
        (word, share if share and abs(share) >= least else None)
        for word, share in zip(found.words, found.shares, strict=True)
    ]


def summary(found: Explanation) -> str:
    """What the shares add up to, and how exactly."""
    cut = (
        " The text is longer than what the model reads; the rest is not shown." if found.cut else ""
    )
    return (
        f"The {found.measure} is {found.score:.2f}, and {found.baseline:.2f} for a blank text."
        f" The words' shares add up to the difference within {found.gap:.3f}.{cut}"
    )


def terminal(found: Explanation) -> Text:
    """The text with signed figures, for a terminal."""
    out = Text()
    for word, share in marked(found):
        if share is None:
            out.append(f"{_plain(word)} ")
            continue
        style = "bold green" if share > 0 else "bold red underline"
        out.append(f"{_plain(word)}[{signed(share)}]", style=style)
        out.append(" ")
    return out


def render(found: Explanation) -> str:
    """The page."""
    words = " ".join(
        escape(word)
        if share is None
        else f'<b class="{"for" if share > 0 else "against"}">{escape(word)}'
        f"<small>{signed(share)}</small></b>"
        for word, share in marked(found)
    )
    body = (
        f'<header><h1>Which words drove the answer</h1><p class="claim">{escape(found.answer)}</p>'
        f'</header><section><h2>The text</h2><div class="body"><p class="words">{words}</p>'
        '<p class="note">A plus and a solid line: the word speaks for the answer. A minus and a'
        " dashed line: against it. Words without a figure matter little.</p>"
        f"<p>{escape(summary(found))}</p></div></section>"
    )
    return page(f"Explanation: {found.answer}", body, _STYLE)


def _plain(word: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(c for c in word if unicodedata.category(c) not in ("Cc", "Cf"))
