"""The page in a real browser: it asks nothing of any network (PROMISES 28)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from confide.server.report.build import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BROWSERS_OWN = "not an origin"  # what the browser asks for by itself, whatever the page
ELSEWHERE = ("http:", "https:", "ws:", "wss:", "ftp:")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


def requests(page: Path, place: Path) -> list[str]:
    """URLs elsewhere that the browser began to ask for while it drew the page."""
    log, picture = place / "net.json", place / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--disable-default-apps", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={place / 'profile'}", f"--log-net-log={log}"]
    command = [str(CHROMIUM), *options, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert picture.stat().st_size > 0
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    pages = [params for params in asked if params.get("initiator", BROWSERS_OWN) != BROWSERS_OWN]
    return sorted({params["url"] for params in pages if params["url"].startswith(ELSEWHERE)})


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
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={printed}"]
    command = [str(CHROMIUM), *options, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    sheets = re.findall(rb"/Type\s*/Page\b", printed.read_bytes())
    assert 4 <= len(sheets) <= 9
