"""One page that needs nothing else, neither network nor script nor font, in the report's look.

Whoever fills it escapes every word that is not confide's own. The colours are the report's, whose
contrast is at least 4.5:1 on each of its grounds (WCAG 2.2, 1.4.3); a mark never speaks by its
colour alone.
"""

from __future__ import annotations

from .report import escape
from .report.style import STYLE
from .report.svg import DARK, LIGHT


def page(title: str, body: str, style: str = "") -> str:
    """The whole page around ``body``; ``style`` goes behind the report's own style sheet."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette.items())
        for palette in (LIGHT, DARK)
    )
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{colours}{STYLE}{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
