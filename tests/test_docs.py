"""The documentation as a whole: every page is in the index, every link leads somewhere, every test
that a page names exists, and every name that a page takes from the code is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_TEST = re.compile(r"`(?:pytest [^`]*?)?(tests/[\w/.]+)(?:::(\w+))?`")
FENCE = re.compile(r"^```.*?^```\s*$", re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            found.append(link)
    return found


def missing_tests(text: str) -> list[str]:
    gone = []
    for path, name in NAMED_TEST.findall(text):
        target = ROOT / path
        if not target.exists():
            gone.append(path)
        elif name and not re.search(rf"^(async )?def {name}\(", target.read_text(), re.MULTILINE):
            gone.append(f"{path}::{name}")
    return gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_named_test_is_there(page: Path) -> None:
    assert broken_links(page) == []
    assert missing_tests(page.read_text(encoding="utf-8")) == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text(encoding="utf-8"))
    }
    assert sorted(str(page) for page in {*PAGES, index} - {index} - linked) == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head, and more\n[a](#a-head-and-more) [b](#b) [c](other.md)\n")
    assert broken_links(page) == ["#b", "other.md"]
    assert missing_tests("`tests/nowhere.py` `tests/test_docs.py::test_x`") == [
        "tests/nowhere.py",
        "tests/test_docs.py::test_x",
    ]
