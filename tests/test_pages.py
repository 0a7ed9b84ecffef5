"""The pages of an explanation and of a search in a real browser, full of hostile words."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.server import explain
from confide.server.explain import Explanation
from confide.simulations import tune_page
from confide.simulations.scenario import load_scenario
from confide.simulations.space import parse_space
from confide.simulations.tune import Outcome, Search, Trial
from tests.browser import CHROMIUM, contrast, look, requests

LEAST_CONTRAST = 4.5
NARROW, WIDE = 500, 1200  # pixels; a headless window is not narrower than 500
BLACK = "rgb(0, 0, 0)"
HOSTILE = '<img src="http://example.invalid/x.png">'
LONG = "a-model-of-a-name-that-is-longer-than-any-screen-of-a-telephone/" * 2
SPACE = ["train.lr=0.25..25 log", f"model.name=small,{LONG}"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


def explanation() -> str:
    words = ("The", "speech", "was", "kind", HOSTILE, "x" * 300, "and", "cruel")
    return explain.render(
        Explanation(
            answer="negative",
            measure="log-odds of negative",
            words=words,
            shares=(0.0, 0.01, 0.0, -0.6, 0.3, 0.2, 0.0, 0.9),
            score=1.3,
            baseline=0.1,
            gap=0.002,
            cut=True,
        )
    )


def search() -> str:
    scenario = load_scenario("nyt")
    trials = tuple(
        Trial(
            number=n,
            values={"train.lr": 0.3 * (n + 1), "model.name": ("small", LONG)[n % 2]},
            state=("complete", "complete", "pruned", "failed")[n % 4],
            measure=None if n % 4 == 3 else 0.6 + 0.01 * n,
            curve=(),
            facts={"code": HOSTILE, "seconds": 3.5, "megabytes": 800.0},
        )
        for n in range(12)
    )
    space = tuple(parse_space(SPACE, scenario))
    chosen = Search(scenario=scenario, space=space, folder=Path("runs"))
    return tune_page.render(Outcome(search=chosen, trials=trials, epsilon=60.0, delta=1e-5))


PAGES = {"explanation": explanation, "search": search}


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


def test_the_page_makes_no_request(page: Path, tmp_path: Path) -> None:
    assert "example.invalid" in page.read_text(), "the hostile word must be on it"
    assert requests(page, tmp_path) == []


@pytest.mark.parametrize(("width", "dark"), [(NARROW, False), (WIDE, True)])
def test_every_word_can_be_read(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = look(page, tmp_path, width=width, dark=dark)
    assert len(found["pairs"]) >= 2
    assert [pair for pair in found["pairs"] if contrast(*pair) < LEAST_CONTRAST] == []
    assert found["wide"] <= found["screen"] == width, "what is wide scrolls by itself"
    assert all((contrast(BLACK, ground) < 2) == dark for _, ground in found["pairs"])
