"""The README's commands are run as they stand, its figures are those of docs/benchmarks.md, and it
fits on two screens.

Before every fenced block stands an HTML comment that says what becomes of it: ``<!-- test -->``
runs it, ``<!-- skip: reason -->`` does not. Commands run here, in the order of the document and in
one folder, so that a later one may use what an earlier one made; Python runs in test_blocks.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LANGUAGES = {"sh", "python"}
# Languages that show something and run nothing.
SHOWN_ONLY = {"text", "toml", "json"}
SECONDS = 300
LINES, WIDTH = 100, 120  # two screens; a mark or a row of a table may be wider
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- (test|skip: \S.*) -->\n+\Z")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: where it starts, its language, its text, and its mark."""

    line: int
    language: str
    text: str
    mark: str


def blocks_of(document: str) -> list[Block]:
    blocks = []
    for fence in FENCE.finditer(document):
        before = document[: fence.start()]
        mark = MARK.search(before)
        blocks.append(
            Block(
                line=before.count("\n") + 1,
                language=fence[1],
                text=fence[2],
                mark=mark[1] if mark else "",
            )
        )
    return blocks


@pytest.fixture(scope="module")
def blocks(root: Path) -> list[Block]:
    return blocks_of((root / "README.md").read_text(encoding="utf-8"))


def test_every_block_of_the_readme_is_run_or_says_why_not(blocks: list[Block]) -> None:
    runnable = [block for block in blocks if block.language not in SHOWN_ONLY]
    assert runnable
    assert [block for block in runnable if block.language not in LANGUAGES] == []
    assert [f"README.md:{block.line}" for block in runnable if not block.mark] == []


@pytest.mark.timeout(2 * SECONDS)
def test_the_blocks_of_the_readme_run_in_order(
    blocks: list[Block], tmp_path: Path, real_cache_dir: Path
) -> None:
    marked = [block for block in blocks if block.mark == "test" and block.language == "sh"]
    assert marked
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["CONFIDE_CACHE"] = str(real_cache_dir)
    for block in marked:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"README.md:{block.line}\n{done.stdout}{done.stderr}"


def figures(document: str) -> set[str]:
    """What was measured: every accuracy, with its interval if it has one."""
    return set(re.findall(r"\b0\.\d{3}(?: ± 0\.\d{3})?", document))


def test_every_figure_of_the_readme_is_one_of_the_benchmarks(root: Path) -> None:
    shown = figures((root / "README.md").read_text(encoding="utf-8"))
    measured = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(shown) > 5
    assert sorted(shown - figures(measured)) == []


def test_the_readme_fits_on_two_screens(root: Path) -> None:
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    assert [one for one in lines if len(one) > WIDTH and not one.startswith(("|", "<!--"))] == []


def test_a_block_knows_its_mark_and_its_line() -> None:
    document = "# x\n\n<!-- test -->\n```sh\ntrue\n```\n\n```python\nimport os\n```\n"
    first, second = blocks_of(document)
    assert (first.line, first.language, first.text, first.mark) == (4, "sh", "true\n", "test")
    assert (second.language, second.mark) == ("python", "")


def test_a_skip_needs_a_reason() -> None:
    assert blocks_of("<!-- skip: -->\n```sh\n```\n")[0].mark == ""
    assert blocks_of("<!-- skip: it is slow -->\n```sh\n```\n")[0].mark == "skip: it is slow"
