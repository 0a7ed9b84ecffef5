"""pyproject.toml and constraints.txt say the same as the code."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import confide
from confide.common.settings import from_flat, known_keys


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    """Name -> version; every line that is not a comment must be an exact version."""
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    return pins


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, the way Flower reads them."""
    keys: dict[str, Any] = {}
    for key, value in table.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return keys


def test_the_run_config_names_every_setting_and_no_other(pyproject: dict[str, Any]) -> None:
    assert list(flat(pyproject["tool"]["flwr"]["app"]["config"])) == known_keys()


def test_the_run_config_is_accepted_as_it_stands(pyproject: dict[str, Any]) -> None:
    config = flat(pyproject["tool"]["flwr"]["app"]["config"])
    assert from_flat(config).to_flat() == config


def test_the_package_has_one_version(pyproject: dict[str, Any]) -> None:
    """Flower wants it to stand in pyproject.toml as it is, and a pinned bundle holds it, so that no
    build makes it up from the history; a tag has to say the same."""
    assert pyproject["project"]["version"] == confide.__version__


def test_a_tagged_commit_has_the_version_of_its_tag(root: Path) -> None:
    listed = ["git", "tag", "--points-at", "HEAD", "v*"]
    done = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) <= {f"v{confide.__version__}"}


def test_the_metadata_says_what_is_tested(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in project["classifiers"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        if requirement.name in ("torch", "transformers", "peft", "opacus", "flwr"):
            assert any(s.operator == "<" for s in requirement.specifier), line


def test_constraints_pin_every_requirement_to_a_version_that_fits(
    pyproject: dict[str, Any], pins: dict[str, str]
) -> None:
    extras = pyproject["project"]["optional-dependencies"].values()
    lines = pyproject["project"]["dependencies"] + [line for extra in extras for line in extra]
    lines += pyproject["build-system"]["requires"]
    requirements = [r for r in map(Requirement, lines) if r.name != "confide"]
    unmet = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert requirements
    assert unmet == []


def test_every_folder_with_code_is_a_declared_package(
    pyproject: dict[str, Any], product_files: list[Path]
) -> None:
    folders = {file.parent.as_posix().replace("/", ".") for file in product_files}
    expected = {name if name == "confide" else f"confide.{name}" for name in folders}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == expected
