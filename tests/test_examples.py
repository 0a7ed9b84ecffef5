"""The examples run as they stand, and each notebook is its script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

# What the last lines of each say of a run that went well.
SAYS = {
    "first_run": ("epsilon = 8.00", "adapter:", "3 of 3 holders give."),
    "own_text": ("epsilon 8: accuracy", "epsilon 1: accuracy", "for epsilon 0.99"),
    "join_as_holder": ("holder-01 said ledger.budget-exhausted", "epsilon 1.99", "2 of 2 holders"),
    "dp_lora_alone": ("epsilon 8.00; accuracy 1.00",),
}


def scripts(root: Path) -> list[Path]:
    return sorted((root / "examples").glob("*.py"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_as_it_stands(
    root: Path, tmp_path: Path, real_cache_dir: Path, name: str
) -> None:
    cache = tmp_path / "cache"  # what an example prepares goes with the test
    cache.mkdir()
    for part in ("models", "text"):
        (cache / part).symlink_to(real_cache_dir / part)
    script = root / "examples" / f"{name}.py"
    env = os.environ | {"CONFIDE_CACHE": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [words for words in SAYS[name] if words not in done.stdout] == []


def test_every_example_is_run_here(root: Path) -> None:
    assert {script.stem for script in scripts(root)} == set(SAYS)


def test_a_notebook_is_its_script(root: Path) -> None:
    """`make notebooks` writes them."""
    for script in scripts(root):
        cells = [
            [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]
            for file in (script, script.with_suffix(".ipynb"))
        ]
        assert cells[0] == cells[1], script.name


def test_the_private_step_alone_takes_twenty_lines(root: Path) -> None:
    """DP-LoRA without a federation: what is not plain PEFT and torch, and the loop."""
    text = (root / "examples" / "dp_lora_alone.py").read_text()
    loop = text.partition("rate, steps")[2].partition("# %%")[0]
    assert len([line for line in loop.splitlines() if line.strip()]) <= 20
