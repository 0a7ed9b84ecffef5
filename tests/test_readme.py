"""The README's commands and code are run as they stand.

Before every fenced block stands an HTML comment that says what becomes of it: ``<!-- test -->``
runs it, ``<!-- skip: reason -->`` does not. Blocks run in the order of the document and in one
folder, so that a later one may use what an earlier one made.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RUNNERS = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
# Languages that show something and run nothing.
SHOWN_ONLY = {"text", "toml", "json"}
SECONDS = 300
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
    assert [block for block in runnable if block.language not in RUNNERS] == []
    assert [f"README.md:{block.line}" for block in runnable if not block.mark] == []


@pytest.mark.timeout(2 * SECONDS)
def test_the_blocks_of_the_readme_run_in_order(
    blocks: list[Block], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    marked = [block for block in blocks if block.mark == "test" and block.language in RUNNERS]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if marked:
        environment["CONFIDE_CACHE"] = str(request.getfixturevalue("real_cache_dir"))
    for block in marked:
        done = subprocess.run(
            [*RUNNERS[block.language], block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"README.md:{block.line}\n{done.stdout}{done.stderr}"


def test_a_block_knows_its_mark_and_its_line() -> None:
    document = "# x\n\n<!-- test -->\n```sh\ntrue\n```\n\n```python\nimport os\n```\n"
    first, second = blocks_of(document)
    assert (first.line, first.language, first.text, first.mark) == (4, "sh", "true\n", "test")
    assert (second.language, second.mark) == ("python", "")


def test_a_skip_needs_a_reason() -> None:
    assert blocks_of("<!-- skip: -->\n```sh\n```\n")[0].mark == ""
    assert blocks_of("<!-- skip: it is slow -->\n```sh\n```\n")[0].mark == "skip: it is slow"
