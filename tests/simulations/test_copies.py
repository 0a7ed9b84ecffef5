"""The copy that a simulation makes of one's own text: private, its own, told, listed, removed."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from confide.__main__ import build_app
from confide.common.errors import ConfideError
from confide.common.text.readers import read_records
from confide.simulations.copies import prepared
from confide.simulations.ready import check_text
from confide.simulations.scenario import load_scenario, prepare, run_config
from tests import tiny

Call = Callable[..., Result]
NAME = "Jos\u00e9"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def call() -> Call:
    return lambda *words: CliRunner().invoke(build_app(), [*map(str, words)])


def described(folder: Path, train: list[Any], held: list[Any], **data: str) -> str:
    """A description called clean.json, and its files beside it."""
    for name, rows in (("train", train), ("val", held)):
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)
    files = {"train": "train.jsonl", "val": "val.jsonl", **data}
    path = folder / "clean.json"
    path.write_text(json.dumps({"task": "text-classification", "data": files, "holders": 2}))
    return str(path)


def test_a_copy_is_for_its_owner_alone_whatever_the_mask(tmp_path: Path) -> None:
    scenario = load_scenario(described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2)))
    before = os.umask(0)
    try:
        folder = prepare(scenario)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    assert run_config(scenario)["data.path"] == folder.name


def test_two_descriptions_of_one_name_keep_their_own_text(tmp_path: Path) -> None:
    kept = {}
    for seed in (1, 3):
        path = described(tmp_path / str(seed), tiny.rows(20, seed), tiny.rows(9, 2))
        kept[seed] = prepare(load_scenario(path))
    assert kept[1] != kept[3]
    for seed, folder in kept.items():
        texts = {r.text for f in folder.glob("holder-*") for r in read_records(f)}
        assert texts == {row["text"] for row in tiny.rows(20, seed)}


def test_a_file_that_was_changed_is_another_text(tmp_path: Path) -> None:
    path = described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2))
    first = prepare(load_scenario(path))
    assert prepare(load_scenario(path)) == first
    described(tmp_path, tiny.rows(21, 1), tiny.rows(9, 2))
    assert prepare(load_scenario(path)) != first


def test_a_copy_is_told_listed_and_removed(call: Call, tmp_path: Path) -> None:
    path = described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2))
    said: list[str] = []
    folder = prepare(load_scenario(path), said.append)
    assert f"confide assets remove {folder.name}" in said[-1]
    assert str(folder) in said[-1]
    shown = call("assets", "list").stdout
    assert f"{folder.name}  A copy of your own text" in shown
    row = next(
        r for r in json.loads(call("assets", "list", "--json").stdout) if r["path"] == str(folder)
    )
    assert row["fetched"]
    wrong = call("assets", "remove", folder.name[:-1])
    assert isinstance(wrong.exception, ConfideError)
    assert folder.name in str(wrong.exception)
    assert str(folder) in call("assets", "remove", folder.name).stdout
    assert not folder.exists()
    assert prepared() == []
    assert tmp_path.joinpath("train.jsonl").is_file()


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../cache", "clean/../x"])
def test_nothing_outside_of_the_cache_is_removed(call: Call, tmp_path: Path, name: str) -> None:
    prepare(load_scenario(described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2))))
    assert isinstance(call("assets", "remove", name).exception, ConfideError)
    assert len(prepared()) == 1


def test_a_copy_of_an_earlier_version_is_listed_as_one(cache: Path) -> None:
    old = cache / "federations" / "clean-4"
    old.mkdir(parents=True)
    (old / "federation.json").write_text('{"holders": 4, "files": ["a", "b"]}')
    other = cache / "federations" / "nyt-10"
    other.mkdir()
    (other / "federation.json").write_text('{"holders": 10, "source": "nyt"}')
    assert [(one.name, one.own) for one in prepared()] == [("clean-4", True), ("nyt-10", False)]


def spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same texts with blanks around them, and their accents written otherwise."""
    return [{**r, "text": f" {unicodedata.normalize('NFD', r['text'])}\t"} for r in rows]


@pytest.mark.parametrize("change", [list, spread, lambda rows: rows[:3], lambda rows: rows[::-1]])
def test_training_text_is_no_held_out_text(
    tmp_path: Path, cache: Path, change: Callable[[list[dict[str, str]]], list[Any]]
) -> None:
    train = [{**row, "text": f"{NAME} {row['text']}"} for row in tiny.rows(20, 1)]
    scenario = load_scenario(described(tmp_path, train, change(train)))
    with pytest.raises(ConfideError, match=r"data\.held-out.*val\.jsonl.*train\.jsonl") as caught:
        prepare(scenario)
    assert "Name another file" in caught.value.hint
    assert not cache.exists(), "no copy is left of what is refused"


def test_one_file_for_both_is_refused(tmp_path: Path) -> None:
    path = described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2), val="train.jsonl")
    with pytest.raises(ConfideError, match=r"data\.held-out"):
        prepare(load_scenario(path))


def test_held_out_text_that_is_training_text_in_part_is_counted(tmp_path: Path) -> None:
    train, other = tiny.rows(20, 1), tiny.rows(9, 2)
    said: list[str] = []
    path = described(tmp_path, train, [*train[:4], *other], person="person")
    prepare(load_scenario(path), said.append)
    assert "4 of 13 held-out records are training text" in said[0]
    assert "3 persons have records in the training and in the held-out text" in said[1]


def test_public_text_of_a_prepared_federation_that_is_training_text_is_refused(
    tmp_path: Path,
) -> None:
    path = described(tmp_path, tiny.rows(20, 1), tiny.rows(9, 2))
    scenario = load_scenario(path)
    folder = prepare(scenario)
    check_text(folder, _settings(scenario))
    mixed = [r for n in (0, 1) for r in _rows(folder / f"holder-{n:02d}.jsonl")[:3]]
    tiny.write_jsonl(folder / "public.jsonl", mixed)
    with pytest.raises(ConfideError, match=r"data\.held-out"):
        check_text(folder, _settings(scenario))


def _settings(scenario: Any) -> Any:
    from confide.common.settings import from_flat

    return from_flat(run_config(scenario))


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_person_in_two_forms_lies_at_one_holder_and_one_label_is_one_class(
    tmp_path: Path,
) -> None:
    """khmer-ocr#9: whole persons, also where Unicode writes them in two ways."""
    other = unicodedata.normalize("NFD", NAME)
    people = [NAME, other, "Ana", "Ben"]
    rows = [
        {"text": f"a day {i}", "label": (NAME, other, "x")[i % 3], "person": people[i % 4]}
        for i in range(24)
    ]
    val = [{**row, "text": f"another {i}"} for i, row in enumerate(rows[:9])]
    scenario = load_scenario(described(tmp_path, rows, val, person="person"))
    settings = _settings(scenario)
    assert settings.task.label_names == (NAME, "x")
    folder = check_text(prepare(scenario), settings)
    held = [{r.person for r in read_records(f, person="person")} for f in folder.glob("holder-*")]
    assert sorted(map(len, held)) == [1, 2]
    assert set.union(*held) == {NAME, "Ana", "Ben"}
