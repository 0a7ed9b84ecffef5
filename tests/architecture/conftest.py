"""The tree as the architecture tests see it: the product's files, and a copy that may be spoilt."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOMS = ("confide", "common", "client", "server", "simulations")
TOP_FILES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")


@pytest.fixture(scope="session")
def product_files(root: Path) -> list[Path]:
    """Every Python file of the product, relative to the checkout."""
    return sorted(file.relative_to(root) for room in ROOMS for file in (root / room).rglob("*.py"))


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def tree_copy(root: Path, tmp_path: Path) -> Path:
    """A copy of what is needed to build the wheel and the bundle."""
    copy = tmp_path / "confide-copy"
    copy.mkdir()
    for room in ROOMS:
        shutil.copytree(
            root / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in TOP_FILES:
        shutil.copy(root / name, copy / name)
    return copy
