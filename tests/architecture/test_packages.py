"""What an install and an app bundle contain, and whose code runs from a foreign folder."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

PRIVATE = "a private sentence of a data holder"
PLANTED = (
    "client/private.jsonl",
    "common/records.json",
    "common/text/letters.txt",
    "data/people.csv",
    "data/config.toml",
    "docs/patients.md",
    "notes.yaml",
    "runs/20260101-000000-demo/report.json",
    "secret.toml",
    "simulations/scenarios/holder.jsonl",
    "train.parquet",
)
FOREIGN_MODULE = "raise RuntimeError('a foreign module was imported')\n"
SHOW_ORIGIN = """
import sys
import confide.common.errors, confide.client, confide.server, confide.simulations
for name in ("confide", "confide.common.errors", "confide.client", "confide.server"):
    print(sys.modules[name].__file__)
print(sorted({"common", "client", "server", "simulations"} & set(sys.modules)))
"""


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """Somebody else's project, with rooms of the same names."""
    folder = tmp_path / "foreign"
    for room in ("client", "common", "server", "simulations"):
        (folder / room).mkdir(parents=True)
        for module in ("__init__", "errors", "app", "cli"):
            (folder / room / f"{module}.py").write_text(FOREIGN_MODULE)
    return folder


def installed_name(file: Path) -> str:
    """Where a file of the checkout lies in an install."""
    return file.as_posix() if file.parts[0] == "confide" else f"confide/{file.as_posix()}"


def run_python(code: str, folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bundle_names(bundle: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_tree_and_nothing_else(
    root: Path, tree_copy: Path, product_files: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(command, cwd=tree_copy, check=True, timeout=100, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tables = [f.relative_to(root) for f in (root / "simulations").rglob("*.toml")]
    expected = {installed_name(file) for file in [*product_files, *tables]}
    assert names == expected | {"confide/py.typed"}


def test_the_bundle_holds_the_allow_list_and_no_data_file(
    tree_copy: Path, product_files: list[Path]
) -> None:
    tables = {
        file.relative_to(tree_copy).as_posix()
        for file in (tree_copy / "simulations").rglob("*.toml")
    }
    for name in PLANTED:
        file = tree_copy / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PRIVATE)
    bundle = build_fab_from_disk(tree_copy)
    expected = {file.as_posix() for file in product_files} | tables
    expected |= {"pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"}
    assert bundle_names(bundle) == expected
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        texts = [archive.read(name) for name in archive.namelist()]
    assert not any(PRIVATE.encode() in text for text in texts)


def test_the_command_flwr_build_accepts_the_app(tree_copy: Path) -> None:
    flwr = Path(sys.executable).with_name("flwr")
    done = subprocess.run(
        [flwr, "build", "--app", "."],
        cwd=tree_copy,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tree_copy.glob("*.fab")
    assert "confide/__init__.py" in bundle_names(bundle.read_bytes())


def test_an_install_is_ours_in_a_folder_with_rooms_of_its_own(
    root: Path, foreign_folder: Path
) -> None:
    *origins, strangers = run_python(SHOW_ORIGIN, foreign_folder)
    assert [Path(origin).is_relative_to(root) for origin in origins] == [True] * len(origins)
    assert strangers == "[]"


def test_a_bundle_is_ours_in_a_folder_with_rooms_of_its_own(
    tree_copy: Path, foreign_folder: Path, tmp_path: Path
) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tree_copy))) as archive:
        archive.extractall(unpacked)
    *origins, strangers = run_python(SHOW_ORIGIN, foreign_folder, PYTHONPATH=str(unpacked))
    assert [Path(origin).is_relative_to(unpacked) for origin in origins] == [True] * len(origins)
    assert strangers == "[]"


def test_the_command_line_starts_in_a_folder_with_rooms_of_its_own(foreign_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "confide", "--version"],
        cwd=foreign_folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("confide ")
