"""Models that are made here are made once, by their recipe, out of checked assets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.simulations import assets, cli, made
from confide.simulations.assets import Asset, Package
from confide.simulations.made import MADE, Made, is_made, make

Calls = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def flour(monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset whose fetch always works."""
    asset = Asset(
        name="flour",
        title="flour",
        package=Package(name="flour", version="1", sha256="0" * 64, wheel=True),
        target="text/flour",
        root="flour",
        files={"flour.txt": "1" * 64},
        licence="MIT",
        source="the mill",
    )

    def fetch(wanted: Asset) -> bool:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        (wanted.folder / "flour.txt").write_text("flour")
        return True

    monkeypatch.setattr(made, "ASSETS", {"flour": asset})
    monkeypatch.setattr(assets, "ASSETS", {"flour": asset})
    monkeypatch.setattr(made, "fetch", fetch)
    return asset


def bread(bake: Callable[[Path, Path], dict[str, float]], **recipe: Any) -> Made:
    return Made(
        name="bread",
        title="bread",
        target="models/bread",
        needs="flour",
        recipe={"schema": 1, **recipe},
        make=bake,
        licence="MIT",
        source="the oven",
    )


def bake(asset: Path, folder: Path) -> dict[str, float]:
    (folder / "crumbs").mkdir()
    (folder / "crumbs" / "bread.bin").write_text((asset / "flour.txt").read_text() * 2)
    return {"grams": 750.0}


def refuse(asset: Path, folder: Path) -> dict[str, float]:
    raise AssertionError("made again")


def test_a_model_is_made_once(flour: Asset, cache: Path) -> None:
    assert make(bread(bake))
    assert (cache / "models/bread/crumbs/bread.bin").read_text() == "flourflour"
    assert is_made(bread(bake))
    assert not make(bread(refuse))
    written = json.loads((cache / "models/bread/made.json").read_text())
    assert written["measured"] == {"grams": 750.0}


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_model_is_made_again(flour: Asset, cache: Path, damage: str) -> None:
    make(bread(bake))
    file = cache / "models/bread/crumbs/bread.bin"
    file.unlink() if damage == "gone" else file.write_text("stone")
    assert not is_made(bread(bake))
    assert make(bread(bake))
    assert file.read_text() == "flourflour"


def test_another_recipe_or_other_ingredients_make_it_again(
    flour: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(bread(bake))
    assert not is_made(bread(bake, schema=2))
    assert not is_made(bread(bake, minutes=40))
    other = replace(flour, files={"flour.txt": "2" * 64})
    monkeypatch.setattr(made, "ASSETS", {"flour": other})
    assert not is_made(bread(bake))


def test_a_model_that_could_not_be_made_leaves_what_was_there(flour: Asset, cache: Path) -> None:
    make(bread(bake))

    def burn(asset: Path, folder: Path) -> dict[str, float]:
        (folder / "half").touch()
        raise ConfideError("assets.gguf", "burnt", "again")

    with pytest.raises(ConfideError, match="burnt"):
        make(bread(burn, schema=2))
    assert is_made(bread(bake))
    assert [path.name for path in (cache / "models").iterdir()] == ["bread"]


def test_the_table_names_assets_that_there_are() -> None:
    for name, entry in MADE.items():
        assert entry.name == name not in assets.ASSETS
        assert entry.needs in assets.ASSETS
        assert entry.licence
        assert entry.source
        assert json.loads(json.dumps(entry.sealed_recipe())) == entry.sealed_recipe()


def test_the_commands_make_and_list_it(flour: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "MADE", {"bread": bread(bake)})

    def run(*arguments: str) -> Any:
        app = typer.Typer()
        cli.add_commands(app)
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        return json.loads(result.output)

    path = str(bread(bake).folder)
    for expected in (True, False):
        printed = run("assets", "fetch", "bread")["assets"]
        assert printed == [{"name": "bread", "path": path, "fetched": expected}]
    assert {row["name"]: row["fetched"] for row in run("assets", "list")} == {
        "flour": False,
        "bread": True,
    }
