"""CONTRIBUTING.md, followed: the modules that it walks through are there, the rooms are one package
as it says, and each paragraph of "How to add" is done as it stands. A task's is in
tests/architecture/test_new_task.py, a method's in tests/common/methods/test_extension.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import confide
from confide.client.training.per_example import PerExample
from confide.client.training.self_check import check_per_example
from confide.common.errors import ConfideError
from confide.common.models import loading
from confide.common.models.loading import load_model
from confide.common.settings import from_flat
from confide.common.text.readers import Record
from confide.simulations import sources
from confide.simulations.scenario import load_scenario, prepare
from confide.simulations.sources import Source, Split
from tests import tiny
from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROOMS = ("common", "client", "server", "simulations")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def paragraph(name: str) -> str:
    """Of "How to add", in one line; what it names of the tree must be there."""
    found = re.search(rf"^\*\*{name}\*\*.*?(?:\n\n|\Z)", section("How to add"), re.M | re.S)
    assert found, name
    return " ".join(found[0].split())


# --- the house ---


@pytest.mark.parametrize("walk", ["The walk of a record", "The walk of an epsilon"])
def test_every_module_of_a_walk_exists_and_a_step_names_one(walk: str) -> None:
    steps = re.findall(r"^\d+\. .*?(?=^\d+\. |\Z)", section(walk), re.M | re.S)
    assert len(steps) >= 8
    for step in steps:
        named = re.findall(r"`((?:common|client|server|simulations)/[\w/]+\.py)`", step)
        assert named, step
        assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_path_that_the_page_names_is_in_the_tree() -> None:
    named = re.findall(r"`((?:confide|common|client|server|simulations|tests)/[\w./]*)`", PAGE)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_target_that_the_page_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for words in re.findall(r"`make ([^`]+)`", PAGE) for target in words.split()}
    assert len(targets) > 10
    assert [one for one in targets if not re.search(rf"(?m)^{re.escape(one)}:", makefile)] == []


def test_the_rooms_become_one_package_as_the_page_says(tree_copy_of_rooms: Path) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    places = pyproject["tool"]["setuptools"]["package-dir"]
    for room in ROOMS:
        assert f"| `{room}/` | `confide.{room}` |" in PAGE
        assert places[f"confide.{room}"] == room
    code = "import confide.common.errors as e; print(e.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree_copy_of_rooms, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == tree_copy_of_rooms / "common" / "errors.py"


@pytest.fixture
def tree_copy_of_rooms(tmp_path: Path) -> Path:
    """The product's code, to be changed."""
    copy = tmp_path / "copy"
    for room in ("confide", *ROOMS):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


# --- how to add ---


def in_copy(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "confide", *arguments],
        cwd=copy,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def test_a_setting_is_one_field_and_its_default_in_the_run_config(tree_copy_of_rooms: Path) -> None:
    for named in ("`common/settings/specs.py`", "[tool.flwr.app.config]", "`confide settings`"):
        assert named in paragraph("A setting")
    specs = tree_copy_of_rooms / "common" / "settings" / "specs.py"
    text, before = specs.read_text("utf-8"), "    max_length: int = number("
    assert text.count(before) == 1
    field = (
        '    toys: int = number(3, "[0, 9]",\n        "How many toys.",\n'
        '        "HF num_toys; Flower toy-share (is a share, ours is a number)")\n'
    )
    specs.write_text(text.replace(before, field + before), "utf-8")

    shown = in_copy(tree_copy_of_rooms, "settings", "num_toys")
    assert shown.returncode == 0, shown.stderr
    for words in ("train.toys = 3", "How many toys.", "in [0, 9]", "HF num_toys"):
        assert words in shown.stdout
    schema = json.loads(in_copy(tree_copy_of_rooms, "settings", "--schema").stdout)
    assert schema["properties"]["train"]["properties"]["toys"] == {
        "type": "integer", "minimum": 0, "maximum": 9, "default": 3,
        "description": "How many toys.",
    }  # fmt: skip
    for wrong, says in (
        ("train.toys=10", ("settings.range", "train.toys = 10", "[0, 9]")),
        ("train.toy-share=0.5", ("settings.unknown-key", "train.toys", "ours is a number")),
    ):
        refused = in_copy(tree_copy_of_rooms, "doctor", "nyt", "--no-model", "--set", wrong)
        assert refused.returncode == 1
        assert [words for words in says if words not in refused.stderr] == [], refused.stderr


def test_a_source_is_a_function_and_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("`simulations/sources/`", "`Split`", "`SOURCES`", 'federation.source = "NAME"'):
        assert named in paragraph("A source of text")

    def read() -> Split:
        rows = tiny.rows(40, seed=1)
        return Split([Record(r["text"], r["label"], str(n)) for n, r in enumerate(rows)], [])

    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.SOURCES, "toys", Source(assets=(), read=read, training=40))  # type: ignore[arg-type]
    file = tmp_path / "toys.toml"
    file.write_text(
        '[federation]\nsource = "toys"\nholders = 2\n[model]\nname = "some/model"\n'
        '[task]\nlabels = "negative,positive"\n'
    )
    folder = prepare(load_scenario(str(file)))
    lines = [len(f.read_text().splitlines()) for f in sorted(folder.glob("*.jsonl"))]
    assert len(lines) == 3, "two holders and the public text"
    assert sum(lines) == 40


class Toy(nn.Module):
    """A layer that nothing in confide knows: it scales each value by a trained one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Mixing(Toy):
    """One that looks at the other examples of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0, keepdim=True)) * self.scale


def checked(model_folder: Path, layer: type[Toy]) -> Any:
    """The check before training, of a tiny model with this layer below its head."""
    loading._load.cache_clear()
    loaded = load_model(from_flat(tiny.config(model_folder, model_folder, model_folder)))
    head = next(m for name, m in loaded.model.named_modules() if name.endswith("modules_to_save"))
    ((name, linear),) = head.items()  # type: ignore[operator]
    head[name] = nn.Sequential(layer(linear.in_features), linear)  # type: ignore[index]
    engine = PerExample(loaded.model)
    assert any(p is head[name][0].scale for p in engine.trained)  # type: ignore[index]
    check_per_example(engine, loaded)
    loading._load.cache_clear()


def test_a_layer_that_is_not_known_needs_nothing_and_is_checked(tiny_model: Path) -> None:
    for named in (
        "`client/training/per_example/engine.py`",
        "`client/training/self_check.py`",
        "`SAMPLED`",
    ):
        assert named in paragraph("A layer with per-example gradients")
    checked(tiny_model, Toy)
    with pytest.raises(ConfideError, match=r"train\."):
        checked(tiny_model, Mixing)
    loading._load.cache_clear()


def test_a_task_and_a_method_have_their_paragraphs_elsewhere() -> None:
    for name, link in (
        ("A task", "(docs/how-it-works.md#tasks)"),
        ("A method of aggregation", "(docs/aggregation.md#how-to-add-a-method)"),
    ):
        assert link in paragraph(name)


# --- habits ---


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_hook_stops_a_commit_that_a_check_refuses(tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        home = {"HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": os.devnull}
        named = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER")
                 for what in ("NAME", "EMAIL")}  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.run(
            command, cwd=tmp_path, env=clean | home | named, capture_output=True, text=True
        )

    assert run("git", "init", "-q").returncode == 0
    shutil.copytree(ROOT / ".githooks", tmp_path / ".githooks")
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    assert run("make", "hooks").returncode == 0
    stub = "lint:\n\t@echo lint\ntypes:\n\t@exit $(STATUS)\narrows:\n\t@echo arrows\n"
    (tmp_path / "Makefile").write_text("STATUS = 1\n" + stub)
    assert run("git", "add", ".").returncode == 0
    assert run("git", "commit", "-qm", "x").returncode != 0
    (tmp_path / "Makefile").write_text("STATUS = 0\n" + stub)
    done = run("git", "commit", "-qm", "x")
    assert done.returncode == 0, done.stderr
    assert "arrows" in done.stdout + done.stderr


def test_the_citation_is_of_this_version_and_has_what_its_schema_requires() -> None:
    """The keys of the Citation File Format 1.2.0 that are used here, and the four it requires."""
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(said)
    assert set(said) <= {"cff-version", "message", "title", "authors", "type", "abstract",
                         "version", "license", "keywords"}  # fmt: skip
    assert (said["cff-version"], said["type"]) == ("1.2.0", "software")
    assert (said["version"], said["license"]) == (confide.__version__, "Apache-2.0")
    assert said["authors"]
    assert all(set(one) == {"name"} for one in said["authors"]), "an entity has a name"
    assert all(isinstance(one, str) for one in (*said["keywords"], said["abstract"]))


def test_the_version_stands_at_one_value_and_a_tag_of_this_commit_is_it() -> None:
    """It is written down rather than made from tags: Flower refuses to build an app whose
    ``project.version`` is not in its file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == confide.__version__
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        here = (git, "-C", str(ROOT), "tag", "--points-at", "HEAD", "--list", "v*")
        tags = subprocess.run(here, capture_output=True, text=True, check=True).stdout.split()
        assert set(tags) <= {f"v{confide.__version__}"}


def test_the_page_about_security_names_a_private_way_and_invents_no_address() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "private security advisory" in page
    assert "docs/privacy.md#what-is-not-promised" in page
    assert not re.search(r"[\w.]+@[\w.]+|https?://", page)
