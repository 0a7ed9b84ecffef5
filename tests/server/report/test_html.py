from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.server.report.build import build_report
from confide.server.report.claim import strength
from confide.server.report.html import render
from confide.server.report.style import STYLE
from confide.server.report.svg import DARK, GROUNDS, INKS, LIGHT, line_chart
from confide.server.report.terminal import outcome

LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "br", "rect", "line", "circle"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about a tag that is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self._open:
            self.text += data


def luminance(colour: str) -> float:
    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def poisoned(value: Any) -> Any:
    """The report with every word in it replaced by a hostile one."""
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()} | (
            {HOSTILE: HOSTILE} if "confide" in value or "model.name" in value else {}
        )
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_contrast_is_computed_as_the_standard_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") < LEAST_CONTRAST < contrast("#767676", "#ffffff")


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_ink_is_readable_on_every_ground(palette: dict[str, str]) -> None:
    poor = {
        (ink, ground): contrast(palette[ink], palette[ground])
        for ink in INKS
        for ground in GROUNDS
        if contrast(palette[ink], palette[ground]) < LEAST_CONTRAST
    }
    assert poor == {}


def test_every_colour_comes_from_the_palette() -> None:
    used = set(re.findall(r"var\(--(\w+)\)", STYLE))
    assert used <= set(LIGHT) == set(DARK)
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb|hsl", STYLE)
    inked = set(re.findall(r"(?<![-\w])color:var\(--(\w+)\)", STYLE))
    assert inked <= set(INKS)


def test_the_page_needs_nothing_from_anywhere(torch_free_report: dict[str, Any]) -> None:
    source = render(torch_free_report)
    page = Page(source)
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in {"src", "href", "xlink:href"}]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|@font-face", source)
    assert "default-src 'none'" in source


def test_every_word_that_a_run_brings_is_escaped(torch_free_report: dict[str, Any]) -> None:
    source = render(poisoned(copy.deepcopy(torch_free_report)))
    page = Page(source)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "<script" not in source


def test_the_page_tells_its_story_in_order(torch_free_report: dict[str, Any]) -> None:
    page = Page(render(torch_free_report))
    assert page.headings == [
        "What this means for one record",
        "How useful the adapter is",
        "Over the rounds",
        "Holders",
        "What left the holders",
        "What is not protected",
        "Checks",
        "What was looked at besides",
        "Who, for what, and for whom",
        "Settings and versions",
    ]
    assert page.text.index(torch_free_report["claim"]["sentence"]) < page.text.index("What this")
    for word in ("holder-07", "TF-IDF", "policy.rounds", "One person at several holders"):
        assert word in page.text


def test_a_withdrawn_claim_is_in_the_title(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["claim"] |= {
        "private": False,
        "epsilon": None,
        "attacker": [],
        "groups": [],
        "curve": [],
        "strength": None,
        "sentence": "NOT DIFFERENTIALLY PRIVATE. Noise was on: no.",
    }
    source = render(torch_free_report)
    assert "<title>NOT DIFFERENTIALLY PRIVATE" in source
    assert 'class="claim withdrawn"' in source
    assert "NOT DIFFERENTIALLY" not in render(torch_free_report | {"claim": private()})


def private() -> dict[str, Any]:
    return {
        "strength": {"word": "strong", "why": "At most 1."},
        "runs": 1,
        "this_run": {"spent": 0.5, "planned": 1.0},
        "all_runs_by_pld": 1.0,
        "proven_by": ["By its plan."],
        "computational": "It is computational.",
        "private": True,
        "sentence": "A claim.",
        "in_plain_words": "",
        "unit": "record",
        "epsilon": 1.0,
        "delta": 1e-5,
        "planned_epsilon": None,
        "attacker": [],
        "groups": [],
        "curve": [],
    }


def test_a_run_that_measured_nothing_still_has_a_page(torch_free_report: dict[str, Any]) -> None:
    empty = torch_free_report | {"holders": [], "checks": [], "faults": [], "software": {}}
    nothing = {"accuracy": None, "loss": None}
    empty["utility"] = torch_free_report["utility"] | {
        "before": nothing,
        "after": nothing,
        "interval": None,
        "examples": None,
        "rounds": [],
        "yardsticks": [],
    }
    page = Page(render(empty))
    assert "No holder took part." in page.text
    assert "Nothing was measured." in page.text


def test_epsilon_is_rounded_up_and_never_down(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["claim"] |= {"epsilon": 7.9912}
    assert "<dd>8.00<small>" in render(torch_free_report)


def test_a_line_ends_where_its_last_value_is() -> None:
    drawn = line_chart([("it", [(0, 0), (10, 8)], True)], "title", limit=8.0)
    limit = re.search(r'class="limit"[^>]* y1="([\d.]+)%"', drawn)
    dot = re.search(r'<circle[^>]* cy="([\d.]+)%"', drawn)
    assert limit is not None
    assert dot is not None
    assert dot.group(1) == limit.group(1)
    assert 'cx="98.00%"' in drawn


def test_a_long_run_is_thinned_but_keeps_its_end() -> None:
    points = [(float(at), float(at)) for at in range(5000)]
    drawn = line_chart([("it", points, True)], "title")
    assert drawn.count('class="line main"') <= 60
    assert "4999.00" in drawn


def test_an_attacker_never_looks_weaker_than_computed(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["claim"]["attacker"][0]["true_positive_rate"] = 0.25411
    assert "<b>25.5 %</b>" in render(torch_free_report)


def test_a_page_for_persons_speaks_of_no_record(make_run: Callable[..., Path]) -> None:
    page = Page(render(build_report(make_run(privacy__unit="person"), prv=False)))
    assert "one person added or removed" in page.text
    assert "several at the same holder" not in page.text
    assert "A person with several records" not in page.text


def test_what_several_records_of_one_person_cost_is_told(torch_free_report: dict[str, Any]) -> None:
    pair = torch_free_report["claim"]["groups"][0]
    assert pair["records"] == 2
    assert pair["epsilon"] > 2 * torch_free_report["claim"]["epsilon"]
    assert f"with 2 records it is {pair['epsilon']:.1f}" in render(torch_free_report)
    pair["epsilon"] = 700.0
    assert "with 2 records it is above 100" in render(torch_free_report)


def test_a_failed_check_leaves_no_epsilon_at_the_top(make_run: Callable[..., Path]) -> None:
    report = build_report(make_run(privacy__epsilon=7.0), prv=False)
    source = render(report)
    assert "<title>NOT DIFFERENTIALLY PRIVATE" in source
    assert "<dd>–<small>nothing is promised</small></dd>" in source
    assert outcome(report).endswith("NOT DIFFERENTIALLY PRIVATE.")


def test_other_deltas_are_drawn_with_the_claim_on_the_line(
    torch_free_report: dict[str, Any],
) -> None:
    curve = torch_free_report["claim"]["curve"]
    assert [epsilon for _, epsilon in curve] == sorted((e for _, e in curve), reverse=True)
    at_claim = next(e for delta, e in curve if delta == pytest.approx(1e-5))
    assert at_claim == pytest.approx(torch_free_report["claim"]["epsilon"], rel=1e-9)
    assert "8.00 at 1e-05" in render(torch_free_report)


def test_a_holders_failed_self_check_is_told_without_touching_the_claim(
    make_run: Callable[..., Path],
) -> None:
    def broken(lines: list[dict[str, Any]]) -> None:
        lines[4]["left_out"].append({"holder": "holder-03", "code": "train.noise"})

    report = build_report(make_run(broken), prv=False)
    row = next(c for c in report["checks"] if c["name"].startswith("Gradients and noise"))
    assert row["state"] != "passed"
    assert "holder-03, round 2: train.noise" in row["detail"]
    assert not row["hard"]


def test_no_figure_rests_on_not_knowing_who_took_part(make_run: Callable[..., Path]) -> None:
    """The report itself says who did."""

    def drawn(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["event"] == "round":
                line |= {"asked": 10, "connected": 40}

    told = build_report(make_run(drawn, round__holders=10), prv=False)
    assert told["claim"]["epsilon"] == told["claim"]["this_run"]["planned"]
    assert "holder-07" in render(told)


def test_no_control_character_reaches_the_page(torch_free_report: dict[str, Any]) -> None:
    torch_free_report["run"]["name"] = "\x1b[2Ja\x00b\u202ec"
    torch_free_report["holders"][0]["name"] = "\x07\x9b"
    source = render(torch_free_report)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", source)


def test_noise_clip_rate_and_sampling_of_each_holder_are_on_the_page(
    torch_free_report: dict[str, Any],
) -> None:
    """P13: the settings say 0, and the real multiplier stood nowhere."""
    page = Page(render(torch_free_report))
    noise = torch_free_report["holders"][0]["events"][0]["noise_multiplier"]
    assert page.text.count(f"{noise:.4g}") >= 10
    for word in ("Clip norm: 1", "Poisson: in each step", "PRV composes", "RDP keeps moments"):
        assert word in page.text


def test_the_strength_of_the_figure_is_said_with_its_source(
    torch_free_report: dict[str, Any],
) -> None:
    page = Page(render(torch_free_report))
    assert "reasonable; planned: 8" in page.text
    assert "Ponomareva et al. 2023" in page.text
    assert "NIST SP 800-226" in page.text
    assert "1 in 100,000" in page.text


@pytest.mark.parametrize(
    ("epsilon", "word"),
    [(0.5, "strong"), (1.0, "strong"), (1.01, "reasonable"), (10.0, "reasonable"), (10.1, "weak")],
)
def test_the_tiers_end_where_their_source_says(epsilon: float, word: str) -> None:
    told = strength(epsilon)
    assert told is not None
    assert told["word"] == word


def test_what_people_state_is_on_the_page_and_the_rest_is_not_stated(run_folder: Path) -> None:
    (run_folder / "about.toml").write_text('responsible = "<b>Ms Example</b>"\n')
    report = build_report(run_folder, prv=False)
    page = Page(render(report))
    assert "<b>Ms Example</b>" in page.text
    assert list(report["about"].values()).count("not stated") == 7
    assert "Date, signature" in page.text


@pytest.mark.parametrize(
    "text", ["responsible = 3", "epsilon = '0.1'", "no toml", f"contact = '{'x' * 501}'"]
)
def test_statements_that_are_none_are_refused_by_their_file(run_folder: Path, text: str) -> None:
    (run_folder / "about.toml").write_text(text)
    with pytest.raises(ConfideError) as caught:
        build_report(run_folder, prv=False)
    assert caught.value.code == "report.about"
    assert "responsible" in caught.value.hint


@pytest.mark.parametrize("unit", ["record", "person"])
def test_the_heading_is_about_the_unit(make_run: Callable[..., Path], unit: str) -> None:
    page = Page(render(build_report(make_run(privacy__unit=unit), prv=False)))
    assert page.headings[0] == f"What this means for one {unit}"


def test_a_check_that_was_not_made_is_not_told_as_passed(
    torch_free_report: dict[str, Any],
) -> None:
    """P13: a green "passed" beside "no ledger is in the run folder"."""
    (ledgers,) = (c for c in torch_free_report["checks"] if c["name"].startswith("Ledgers agree"))
    assert ledgers["state"] == "not checked"
    assert "Those of the other 8 were not checked" in ledgers["detail"]
    assert '<span class="mark warn">not checked</span>' in render(torch_free_report)
