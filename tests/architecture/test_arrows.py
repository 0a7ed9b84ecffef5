"""Each arrow of the design is guarded: a planted import in the wrong direction is caught."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOMS = ("common", "client", "server", "simulations")
LAYERS = "simulations -> server and client -> common"
DOOR = "The door opens the command lines of the rooms and nothing else"
PRIVACY = "Privacy stands on errors alone"
WITHIN_COMMON = (
    "Within common: what travels -> models -> settings, methods, tasks, text -> the ground"
)
WITHIN_CLIENT = "Within client: site -> holder -> opening, training, text -> guard"
NETWORK = "What reads the text, trains on it or guards it has no network"
FLOWER = "Of common, only the wire knows Flower"


@pytest.fixture
def linked_tree(tree_copy: Path) -> Path:
    """The rooms under one name, as the Makefile makes them."""
    package = tree_copy / ".typing" / "confide"
    package.mkdir(parents=True)
    for file in (tree_copy / "confide").glob("*.py"):
        (package / file.name).symlink_to(file)
    for room in ROOMS:
        (package / room).symlink_to(tree_copy / room)
    return package.parent


def lint_imports(linked_tree: Path) -> tuple[int, str]:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache", "--config", linked_tree.parent / "pyproject.toml"],
        cwd=linked_tree,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_tree_as_it_stands_keeps_every_arrow(linked_tree: Path) -> None:
    status, shown = lint_imports(linked_tree)
    assert status == 0, shown


def test_every_module_is_in_a_contract_of_its_room(root: Path) -> None:
    """A new folder of common or client must say where it stands; import-linter then refuses."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    of = {c["containers"][0]: c for c in contracts["contracts"] if c["type"] == "layers"}
    assert set(of) == {"confide", "confide.common", "confide.client"}
    assert all(contract["exhaustive"] for contract in of.values())


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("client/guard/scrub.py", "from ...server import aggregation", LAYERS),
        ("server/aggregation/__init__.py", "from ... import client", LAYERS),
        ("common/errors.py", "from .. import server", LAYERS),
        ("server/__init__.py", "from .. import simulations", LAYERS),
        ("confide/__main__.py", "from .common.settings import known_keys", DOOR),
        ("common/privacy/__init__.py", "from ..settings import known_keys", PRIVACY),
        ("common/privacy/noise.py", "from ..machine.paths import cache_dir", PRIVACY),
        ("common/errors.py", "from .settings import known_keys", WITHIN_COMMON),
        ("common/adapter/schema.py", "from ..wire.messages import Task", WITHIN_COMMON),
        ("client/guard/policy.py", "from ..text import corpus", WITHIN_CLIENT),
        ("client/training/trainer.py", "from ..site import gateway", WITHIN_CLIENT),
        ("client/text/corpus.py", "from ..training import trainer", WITHIN_CLIENT),
        ("client/text/corpus.py", "import socket", NETWORK),
        ("client/holder.py", "import grpc", NETWORK),
        ("common/adapter/schema.py", "from flwr.app import Message", FLOWER),
    ],
)
def test_an_import_against_an_arrow_is_caught(
    file: str, line: str, contract: str, linked_tree: Path, tree_copy: Path
) -> None:
    with (tree_copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    status, shown = lint_imports(linked_tree)
    assert status != 0
    assert f"{contract} BROKEN" in " ".join(shown.split()), shown
