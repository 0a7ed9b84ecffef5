"""Federations on disk: nobody on both sides, the same bytes again, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.text.readers import Record, read_records
from confide.simulations.partition import prepare_federation
from confide.simulations.sources import Split

PERSONS, RECORDS_EACH = 20, 3
PUBLIC_PERSONS = 3  # 15 % of them
TRAINING = (PERSONS - PUBLIC_PERSONS) * RECORDS_EACH
HOLDERS = 4
Prepare = Callable[..., Path]


def source(name: str) -> Split:
    """Text without a test split."""
    return Split(records_of(name), [])


def with_test_split(name: str) -> Split:
    """The same, and ten records of people who are nowhere else."""
    return Split(records_of(name), [Record(f"test {i}", "a", f"tester {i}") for i in range(10)])


def records_of(name: str) -> list[Record]:
    """Each person's records lie far apart; labels alternate."""
    return [
        Record(f"{name} {person} said {number} \u201cé\u201d", "ab"[person % 2], str(person))
        for number in range(RECORDS_EACH)
        for person in range(PERSONS)
    ]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))

    def call(name: str = "test", **options: Any) -> Path:
        chosen = {"source": "text", "holders": HOLDERS, "partition": "unit", "load": source}
        return prepare_federation(name, **{**chosen, **options})

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def holders(folder: Path) -> list[list[Record]]:
    return [read_records(path, person="person") for path in sorted(folder.glob("holder-*.jsonl"))]


def public(folder: Path) -> list[Record]:
    return read_records(folder / "public.jsonl", person="person")


def people(records: list[Record]) -> set[str | None]:
    return {record.person for record in records}


def texts(parts: list[list[Record]]) -> list[str]:
    return sorted(record.text for part in parts for record in part)


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
@pytest.mark.parametrize("count", [1, 2, HOLDERS])
def test_every_record_lies_in_exactly_one_file(
    prepare: Prepare, partition: str, count: int
) -> None:
    folder = prepare(partition=partition, holders=count)
    parts = holders(folder)
    assert len(parts) == count
    assert all(parts)
    assert texts([*parts, public(folder)]) == texts([records_of("text")])


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
def test_every_record_of_a_holder_names_its_person(prepare: Prepare, partition: str) -> None:
    whose = {record.text: record.person for record in records_of("text")}
    for part in holders(prepare(partition=partition)):
        assert {record.text: record.person for record in part}.items() <= whose.items()


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
def test_nobody_is_both_held_out_and_trained_on(prepare: Prepare, partition: str) -> None:
    folder = prepare(partition=partition)
    trained = people([record for part in holders(folder) for record in part])
    assert len(people(public(folder))) == PUBLIC_PERSONS
    assert not people(public(folder)) & trained


def test_the_unit_partition_gives_whole_persons_in_about_equal_numbers(prepare: Prepare) -> None:
    parts = [people(part) for part in holders(prepare())]
    assert sum(map(len, parts)) == len(set.union(*parts)) == PERSONS - PUBLIC_PERSONS
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", range(1, PERSONS - PUBLIC_PERSONS + 1))
def test_there_are_as_many_holders_as_were_asked_for(prepare: Prepare, count: int) -> None:
    assert len(holders(prepare(holders=count))) == count


def test_the_iid_partition_gives_equally_many_records(prepare: Prepare) -> None:
    sizes = [len(part) for part in holders(prepare(partition="iid"))]
    assert max(sizes) - min(sizes) <= 1
    assert len(people(holders(prepare(partition="iid"))[0])) > (PERSONS - PUBLIC_PERSONS) // HOLDERS


def spread(folder: Path) -> float:
    """How far the label's share differs between holders."""
    shares = [sum(r.target == "a" for r in part) / len(part) for part in holders(folder)]
    return max(shares) - min(shares)


def test_a_small_alpha_is_more_uneven_than_a_large_one(prepare: Prepare) -> None:
    uneven = spread(prepare("uneven", partition="dirichlet", alpha=0.3))
    even = spread(prepare("even", partition="dirichlet", alpha=1000))
    assert uneven > 0.5 > 0.3 > even


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
def test_the_same_arguments_give_the_same_bytes(
    prepare: Prepare, partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = contents(prepare(partition=partition, limit=30))
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "elsewhere"))
    assert contents(prepare(partition=partition, limit=30)) == first


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
def test_another_seed_holds_out_others_and_shares_out_differently(
    prepare: Prepare, partition: str
) -> None:
    first = contents(prepare(partition=partition))
    second = contents(prepare(partition=partition, seed=1))
    assert first["public.jsonl"] != second["public.jsonl"]
    assert first["holder-00.jsonl"] != second["holder-00.jsonl"]


def test_what_is_held_out_does_not_depend_on_the_partition(prepare: Prepare) -> None:
    first = contents(prepare(partition="unit"))["public.jsonl"]
    assert contents(prepare(partition="iid", holders=2, limit=9))["public.jsonl"] == first


def test_a_federation_that_is_there_is_reused(prepare: Prepare) -> None:
    def gone(name: str) -> Split:
        raise ConfideError("assets.missing", "gone", "fetch")

    first = prepare()
    made = (first / "federation.json").stat().st_ino
    assert (prepare(load=gone) / "federation.json").stat().st_ino == made


@pytest.mark.parametrize("file", ["holder-00.jsonl", "public.jsonl", "federation.json"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_federation_is_made_again(prepare: Prepare, file: str, damage: str) -> None:
    before = contents(folder := prepare())
    if damage == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(before[file][:-20])
    assert contents(prepare()) == before


@pytest.mark.parametrize(
    "other",
    [
        {"holders": 3},
        {"partition": "iid"},
        {"seed": 5},
        {"limit": 10},
        {"public_limit": 5},
        {"public_fraction": 0.5},
        {"source": "other"},
    ],
    ids=str,
)
def test_other_arguments_make_it_again(prepare: Prepare, other: dict[str, Any]) -> None:
    before = contents(prepare())
    after = contents(folder := prepare(**other))
    assert after != before
    assert len(holders(folder)) == other.get("holders", HOLDERS)


def test_a_failed_preparation_leaves_the_old_one(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder := prepare())

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("confide.simulations.partition._write", fail)
    with pytest.raises(ConfideError, match=r"cache\.write"):
        prepare(seed=1)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_limit_thins_out_the_training_records_only(prepare: Prepare) -> None:
    whole, thinned = prepare("whole"), prepare("thinned", limit=20)
    assert sum(map(len, holders(thinned))) == 20
    assert set(texts(holders(thinned))) < set(texts(holders(whole)))
    assert public(thinned) == public(whole)


def test_a_limit_beyond_what_there_is_changes_nothing(prepare: Prepare) -> None:
    assert sum(map(len, holders(prepare(limit=10_000)))) == TRAINING


@pytest.mark.parametrize("partition", ["unit", "iid", "dirichlet"])
def test_a_sources_own_test_split_is_held_out_and_nothing_else(
    prepare: Prepare, partition: str
) -> None:
    folder = prepare(partition=partition, load=with_test_split)
    assert public(folder) == with_test_split("text").test
    assert texts(holders(folder)) == texts([records_of("text")])


@pytest.mark.parametrize("load", [source, with_test_split])
def test_a_public_limit_thins_out_what_is_held_out_only(
    prepare: Prepare, load: Callable[[str], Split]
) -> None:
    whole = prepare("whole", load=load)
    thinned = prepare("thinned", load=load, public_limit=4)
    assert len(public(thinned)) == 4
    assert set(texts([public(thinned)])) < set(texts([public(whole)]))
    assert holders(thinned) == holders(whole)


def test_a_column_that_the_source_does_not_have_is_not_written(prepare: Prepare) -> None:
    def plain(name: str) -> Split:
        return Split([Record(r.text, None, r.person) for r in records_of(name)], [])

    folder = prepare(load=plain)
    rows = [json.loads(line) for line in (folder / "public.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("text", "person")}


def test_the_manifest_says_what_was_made(prepare: Prepare) -> None:
    folder = prepare(partition="dirichlet", alpha=0.7, seed=3)
    manifest = json.loads((folder / "federation.json").read_text())
    assert manifest["records"] == [len(part) for part in holders(folder)]
    assert manifest["public"] == len(public(folder))
    assert {"federation.json", *manifest["sha256"]} == set(contents(folder))
    chosen = ("name", "source", "partition", "alpha", "seed", "holders")
    assert [manifest[key] for key in chosen] == ["test", "text", "dirichlet", 0.7, 3, HOLDERS]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"holders": PERSONS}, "only 17 persons"),
        ({"holders": TRAINING + 1, "partition": "iid"}, f"only {TRAINING} records"),
        ({"holders": 0}, "holders = 0"),
        ({"partition": "dirichlets"}, "Did you mean 'dirichlet'"),
        ({"partition": "dirichlet", "alpha": 0}, "alpha = 0"),
        ({"partition": "dirichlet", "alpha": float("nan")}, "alpha = nan"),
        ({"partition": "dirichlet", "alpha": 1e-4, "holders": 8}, "alpha = 0.0001"),
        ({"limit": 0}, "limit = 0"),
        ({"public_limit": 0}, "public_limit = 0"),
        ({"public_fraction": 1.0}, "public_fraction = 1.0"),
        ({"load": lambda name: Split(records_of(name)[:1], [])}, "1 person"),
        ({"name": "../escape"}, "'../escape'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_cannot_be_met_is_refused(
    prepare: Prepare, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        prepare(**options)
    assert caught.value.code == "data.partition"
    assert found in str(caught.value)
    assert caught.value.hint
