"""An explanation for people: marked words in the terminal, and a page that needs nothing else.

A word's sign stands beside it in figures, and as a solid or a dashed line below it; the colour says
the same once more and carries nothing alone.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rich.text import Text

from .page import page
from .report import escape

if TYPE_CHECKING:
    from .explain import Explanation

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
