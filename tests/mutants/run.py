"""Try the mutants: break a copy of the tree, run the tests that are named, expect a failure.

``python tests/mutants/run.py [WORD ...]`` tries those with one of the words in their names. Prints
a table; status 1 when one survives. The checkout itself is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))

# Found by the line above.
from tests.mutants.holder_table import HOLDER_MUTANTS  # noqa: E402
from tests.mutants.promise_table import PROMISE_MUTANTS  # noqa: E402
from tests.mutants.sum_table import SUM_MUTANTS  # noqa: E402
from tests.mutants.table import MUTANTS, Mutant  # noqa: E402
from tests.mutants.task_table import TASK_MUTANTS  # noqa: E402

_LIMIT_SECONDS = 900
_TESTS_FAILED = 1  # pytest's status; any other but 0 says that the tests did not run


def copy_tree(to: Path) -> None:
    """What git knows of the checkout, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (_ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, to / name)


def killed(mutant: Mutant, tree: Path) -> tuple[bool, str]:
    """Whether a test fails on it, and which one does."""
    path = tree / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, _TESTS_FAILED):
        raise RuntimeError(f"{mutant.name}: the tests did not run\n{done.stdout[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    found = lines[0].removeprefix("FAILED ").split(" - ")[0] if lines else ""
    return done.returncode == _TESTS_FAILED, found.rpartition("::")[2]


def main(words: Sequence[str]) -> int:
    """Try them all, or those whose name has one of the words."""
    every = (*MUTANTS, *TASK_MUTANTS, *PROMISE_MUTANTS, *HOLDER_MUTANTS, *SUM_MUTANTS)
    chosen = [m for m in every if not words or any(word in m.name for word in words)]
    survivors = 0
    print("| fault | file | found by | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="confide-mutants-") as scratch:
        copy_tree(Path(scratch))
        for mutant in chosen:
            started = time.monotonic()
            dead, test = killed(mutant, Path(scratch))
            survivors += not dead
            seconds = time.monotonic() - started
            shown = test if dead else "NOT FOUND"
            print(f"| {mutant.name} | {mutant.file} | {shown} | {seconds:.0f} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} faults were found.")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
