"""What a page does in a real browser: what it asks for, and what its words look like there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_BROWSERS_OWN = "not an origin"  # what the browser asks for by itself, whatever the page
_ELSEWHERE = ("http:", "https:", "ws:", "wss:", "ftp:")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Of every visible word its colour and what it stands on, as they are computed; and the widths.
_LOOK = """<script>addEventListener("load", () => {
const found = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || e.closest("script,title")) continue;
  const style = getComputedStyle(e), own = e instanceof SVGElement ? style.fill : style.color;
  let at = e;
  while (at && getComputedStyle(at).backgroundColor === "rgba(0, 0, 0, 0)") at = at.parentElement;
  found.add(JSON.stringify([own, at ? getComputedStyle(at).backgroundColor : "none"]));
}
const told = {pairs: [...found].map(JSON.parse), wide: document.documentElement.scrollWidth,
  screen: innerWidth};
document.body.innerHTML = "<pre id=told></pre>";
document.getElementById("told").textContent = JSON.stringify(told);
})</script>"""


def browse(place: Path, page: Path, *options: str) -> str:
    """Open a page; returns what the browser prints."""
    command = [str(CHROMIUM), *_QUIET, f"--user-data-dir={place / 'profile'}", *options]
    done = subprocess.run(
        [*command, page.as_uri()], check=True, capture_output=True, text=True, timeout=100
    )
    return done.stdout


def requests(page: Path, place: Path) -> list[str]:
    """URLs elsewhere that the browser began to ask for while it drew the page."""
    log, picture = place / "net.json", place / "page.png"
    browse(place, page, f"--log-net-log={log}", f"--screenshot={picture}")
    assert picture.stat().st_size > 0
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    pages = [params for params in asked if params.get("initiator", _BROWSERS_OWN) != _BROWSERS_OWN]
    return sorted({params["url"] for params in pages if params["url"].startswith(_ELSEWHERE)})


def look(page: Path, place: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """``pairs`` of the colours of words and of what they stand on, ``wide`` the page and
    ``screen`` the window in pixels. A copy of the page is asked, which may run our script."""
    source = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    copy = place / "looked-at.html"
    copy.write_text(source.replace("</body>", f"{_LOOK}</body>"), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    printed = browse(place, copy, "--dump-dom", f"--window-size={width},900", scheme)
    told = re.search(r'<pre id="told">(.*?)</pre>', printed, re.DOTALL)
    assert told is not None
    found: dict[str, Any] = json.loads(unescape(told.group(1)))
    return found


def contrast(one: str, other: str) -> float:
    """Of two colours as a browser tells them, ``rgb(r, g, b)`` (WCAG 2.2, 1.4.3)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(c) / 255) for c in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
