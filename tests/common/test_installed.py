"""The hash of the installed code: the same however it is installed, and another for other code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.machine.installed import code_hash, listed_hash

ROOMS = ("client", "common", "server", "simulations")
SAY = "from confide.common.machine.installed import code_hash; print(code_hash())"
# As docs/deploy.md tells an auditor to make it.
BY_HAND = "find . -name '*.py' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"


@pytest.fixture
def installed(root: Path, tmp_path: Path) -> Path:
    """The folder of an install: the rooms below the door."""
    ours = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(root / "confide", tmp_path / "site" / "confide", ignore=ours)
    for room in ROOMS:
        shutil.copytree(root / room, package / room, ignore=ours)
    return package


def said_of(package: Path) -> str:
    folder = str(package.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {SAY}", folder],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_checkout_and_an_install_of_it_have_one_hash_which_anybody_can_make(
    installed: Path,
) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", BY_HAND], cwd=installed, capture_output=True, text=True, check=True
    )
    assert code_hash() == said_of(installed) == done.stdout.split()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda package: (package / "client" / "holder.py").write_text("# nothing\n"),
        lambda package: (package / "simulations" / "new.py").touch(),
        lambda package: (package / "common" / "plans.py").rename(package / "common" / "plan.py"),
        lambda package: (package / "__main__.py").unlink(),
    ],
)
def test_any_other_code_has_another_hash(installed: Path, change: Callable[[Path], object]) -> None:
    change(installed)
    assert said_of(installed) != code_hash()


def test_what_is_no_code_changes_nothing(installed: Path) -> None:
    (installed / "client" / "__pycache__").mkdir()
    (installed / "client" / "__pycache__" / "holder.pyc").write_bytes(b"x")
    (installed / "notes.txt").touch()
    assert said_of(installed) == code_hash()


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        listed_hash({"a.py": tmp_path / "a.py"})
    assert caught.value.code == "code.unreadable"
