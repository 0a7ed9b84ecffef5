"""The table of sources: what is missing is said, what is there has the size that it states."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.text.readers import read_records
from confide.simulations.assets import ASSETS
from confide.simulations.partition import prepare_federation
from confide.simulations.sources import SOURCES, load_source

WITHOUT_TARGET = {"shakespeare"}


@pytest.mark.parametrize("name", SOURCES)
def test_text_that_was_not_fetched_is_answered_with_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    assets = " ".join(SOURCES[name].assets)
    with pytest.raises(ConfideError, match=rf"assets\.missing.*confide assets fetch {assets}\."):
        load_source(name)


def test_one_missing_file_of_many_is_not_read_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    asset = ASSETS["shakespeare"]
    asset.folder.mkdir(parents=True)
    for file in asset.files:
        (asset.folder / file).touch()
    (asset.folder / "macbeth_gut.txt").unlink()
    with pytest.raises(ConfideError, match=r"assets\.missing.*macbeth_gut\.txt"):
        load_source("shakespeare")


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfideError, match=r"data\.unknown-source.*Did you mean 'movies'"):
        load_source("movie")


@pytest.mark.parametrize("name", SOURCES)
def test_a_fetched_source_is_as_large_and_as_clean_as_it_says(name: str, real_cache: Path) -> None:
    source = SOURCES[name]
    missing = [asset for asset in source.assets if not ASSETS[asset].folder.is_dir()]
    if missing:
        pytest.skip(f"confide assets fetch {' '.join(missing)} was not run here")
    training, test = load_source(name)
    assert (len(training), len(test)) == (source.training, source.test)
    for record in (*training, *test):
        assert record.text == record.text.strip() != ""
        assert record.person
        assert (record.target is None) == (name in WITHOUT_TARGET)
        assert record.target is None or record.target == record.target.strip() != ""
    assert not {record.text for record in training} & {record.text for record in test}
    assert not {record.person for record in training} & {record.person for record in test}


def test_the_dictionarys_parts_have_their_shares(real_cache: Path) -> None:
    from confide.simulations.sources.pronunciations import read_central

    folder = ASSETS["cmudict"].folder
    if not folder.is_dir():
        pytest.skip("confide assets fetch cmudict was not run here")
    central = read_central(folder)
    training, test = load_source("cmudict")
    sizes = [len(central), len(training), len(test)]
    assert [round(100 * size / sum(sizes)) for size in sizes] == [25, 65, 10]
    assert not {r.text for r in central} & {r.text for r in (*training, *test)}


def test_every_role_of_the_plays_speaks_often(real_cache: Path) -> None:
    if not ASSETS["shakespeare"].folder.is_dir():
        pytest.skip("confide assets fetch shakespeare was not run here")
    speeches = Counter(record.person for record in load_source("shakespeare").training)
    assert (len(speeches), min(speeches.values())) == (600, 10)


def test_a_benchmark_in_the_cache_becomes_a_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    place = tmp_path / "benchmarks" / "superglue" / "rte"
    place.mkdir(parents=True)
    rows = [{"premise": f"P{n}.", "hypothesis": "H.", "label": n % 2, "idx": n} for n in range(20)]
    for file, part in (("train", rows[:16]), ("validation", rows[16:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (place / f"{file}.jsonl").write_text(lines, encoding="utf-8")
    folder = prepare_federation("rte", source="superglue/rte", holders=2)
    found = [r for path in sorted(folder.glob("*.jsonl")) for r in read_records(path)]
    assert len(found) == len(rows)
    assert {(r.text, r.target) for r in found} == {
        (f"hypothesis: H. premise: P{n}.", ("entailment", "not_entailment")[n % 2])
        for n in range(20)
    }
    assert len(read_records(folder / "public.jsonl")) == 4


def test_a_benchmark_that_is_nowhere_says_where_it_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    with pytest.raises(ConfideError, match=r"benchmark\.missing.*sst2/train"):
        load_source("glue/sst2")
    with pytest.raises(ConfideError, match=r"data\.unknown-source.*Did you mean 'glue/sst2'"):
        load_source("glue/sst-2")
