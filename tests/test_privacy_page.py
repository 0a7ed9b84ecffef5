"""docs/privacy.md: behind every statement stands a test that exists, or the word that none does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = "docs/privacy.md"
NAMED = re.compile(r"`(tests/[\w/.]+\.py)::(\w+)`")
NO_TEST = re.compile(r"\bno test\b")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / PAGE).read_text(encoding="utf-8")


def missing(page: str, root: Path) -> list[str]:
    """Named tests that no file defines."""
    gone = []
    for path, name in sorted(set(NAMED.findall(page))):
        file = root / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE):
            gone.append(f"{path}::{name}")
    return gone


def rows(page: str) -> list[list[str]]:
    """The cells of each statement, one a row of a table."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [
        line.strip("| ").split(" | ") for line in lines if line != "| statement | rests on | test |"
    ]


def unsupported(page: str) -> list[str]:
    """Statements whose last cell names no test, nor says that there is none."""
    return [
        row[0] for row in rows(page) if not (NAMED.search(row[-1]) or NO_TEST.fullmatch(row[-1]))
    ]


def test_every_named_test_exists(page: str, root: Path) -> None:
    assert len(set(NAMED.findall(page))) > 60
    assert missing(page, root) == []


def test_every_statement_has_its_test_or_says_that_it_has_none(page: str) -> None:
    assert len(rows(page)) > 60
    assert all(len(row) == 3 and row[1] for row in rows(page))
    assert [statement[:80] for statement in unsupported(page)] == []


def test_the_page_speaks_of_all_that_is_to_be_evaluated(page: str) -> None:
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    words = " ".join(headings).lower()
    for asked in ("unit", "neighbouring", "parameters", "trust", "mechanism", "accounting",
                  "hazards of implementation", "assumptions", "not promised"):  # fmt: skip
        assert asked in words


def test_the_page_can_be_found(root: Path) -> None:
    for place, link in (("README.md", "docs/privacy.md"), ("docs/how-it-works.md", "privacy.md")):
        assert f"]({link})" in (root / place).read_text(encoding="utf-8"), place


def test_a_name_that_is_gone_and_a_statement_without_a_test_are_noticed(root: Path) -> None:
    wrong = "| A. | - | `tests/test_privacy_page.py::test_that_is_not_there` |\n"
    assert missing(wrong, root) == ["tests/test_privacy_page.py::test_that_is_not_there"]
    assert missing("`tests/nowhere.py::test_x`", root) == ["tests/nowhere.py::test_x"]
    assert unsupported("| B. | a theorem | - |\n| C. | - | no test |\n" + wrong) == ["B."]
