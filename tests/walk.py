"""The walk of one request through the house: which modules it visits, and how often it changes from
one to another. `make walk` prints it.

One holder, one round that asks for a gradient, a tiny BERT with LoRA, classification: from the
coordinator's hand to the reply's bytes and back. A change is a call whose function lies in another
module than the one called before it.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests import tiny

ROOMS = ("common", "client", "server", "simulations")


class Walk:
    """What is called between ``begin`` and ``end``, by module in order."""

    def __init__(self, root: Path) -> None:
        self._places = [f"{root / room}/" for room in ROOMS]
        self._root = root
        self.calls: list[str] = []
        self.functions: set[str] = set()

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(tuple(self._places)):
            module = str(Path(code.co_filename).relative_to(self._root))
            self.calls.append(module)
            self.functions.add(f"{module}:{code.co_qualname}")

    def begin(self) -> None:
        sys.setprofile(self._see)

    def end(self) -> None:
        sys.setprofile(None)

    @property
    def modules(self) -> Counter[str]:
        return Counter(self.calls)

    @property
    def switches(self) -> int:
        return sum(one != other for one, other in zip(self.calls, self.calls[1:], strict=False))


def walk_of_a_request() -> Walk:
    """A run of one round with one holder, of which the request is followed."""
    from confide.server.run import run
    from confide.simulations.inprocess import federation

    root = Path(__file__).resolve().parent.parent
    seen = Walk(root)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model, text = tiny.save_model(place / "model"), tiny.save_federation(place / "text", 1)
        once: Any = {"round__min_holders": 1, "round__count": 1, "round__mode": "gradient"}
        config = tiny.config(model, text, place / "runs", **once)
        inner = federation(sorted(text.glob("holder-*.jsonl")), place / "ledgers")
        ask = inner.ask

        def followed(*given: Any) -> Any:
            seen.begin()
            try:
                return ask(*given)
            finally:
                seen.end()

        inner.ask = followed  # type: ignore[method-assign]
        run(config, inner)
    return seen


def main() -> None:
    seen = walk_of_a_request()
    for module, count in sorted(seen.modules.items(), key=lambda one: -one[1]):
        print(f"{count:6}  {module}")
    print(
        f"{len(seen.calls)} calls of {len(seen.functions)} functions in {len(seen.modules)}"
        f" modules; {seen.switches} switches between modules"
    )


if __name__ == "__main__":
    main()
