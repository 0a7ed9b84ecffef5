"""The page in a real browser: it asks nothing of any network (PROMISES 28)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from confide.server.report.build import write_report
from tests.browser import CHROMIUM, browse, contrast, look, requests

LEAST_CONTRAST = 4.5

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


def test_the_page_makes_no_request(run_folder: Path, tmp_path: Path) -> None:
    write_report(run_folder, prv=False)
    found = requests(run_folder / "report.html", tmp_path)
    assert found == []


def test_a_page_that_asks_is_found(tmp_path: Path) -> None:
    page = tmp_path / "asks.html"
    page.write_text('<!doctype html><img src="http://example.invalid/x.png">')
    assert requests(page, tmp_path) == ["http://example.invalid/x.png"]


def test_the_page_can_be_printed(run_folder: Path, tmp_path: Path) -> None:
    """On some sheets of paper, not on one endless or dozens of broken ones."""
    write_report(run_folder, prv=False)
    printed, page = tmp_path / "page.pdf", run_folder / "report.html"
    browse(tmp_path, page, f"--print-to-pdf={printed}")
    sheets = re.findall(rb"/Type\s*/Page\b", printed.read_bytes())
    assert 4 <= len(sheets) <= 9


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_word_can_be_read(run_folder: Path, tmp_path: Path, dark: bool) -> None:
    write_report(run_folder, prv=False)
    found = look(run_folder / "report.html", tmp_path, width=500, dark=dark)
    assert len(found["pairs"]) > 3
    assert [pair for pair in found["pairs"] if contrast(*pair) < LEAST_CONTRAST] == []
    assert found["wide"] <= found["screen"]


def test_a_word_that_cannot_be_read_is_found(tmp_path: Path) -> None:
    page = tmp_path / "pale.html"
    page.write_text(
        '<!doctype html><body style="background:#fff"><p style="color:#999">pale</p>'
        '<div style="width:3000px">wide</div></body>'
    )
    found = look(page, tmp_path, width=500)
    assert [round(contrast(*pair), 1) for pair in found["pairs"]] == [2.8, 21.0]
    assert found["wide"] > found["screen"]
