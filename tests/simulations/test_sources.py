"""Rated sentences become labelled records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.text.readers import Record, read_records
from confide.simulations.partition import prepare_federation
from confide.simulations.sources import load_source, parse_ratings

CONTENT = (
    "1_1\t1.5\tIt's \u201cgood\u201d.\r\n1_2\t0.5\tSo so.\r\n12_1\t-0.6\tBad\there.\r\n7\t-0.5\tX\n"
)


def test_the_sign_is_the_label_and_the_unclear_are_left_out() -> None:
    assert parse_ratings(CONTENT) == [
        Record("It's \u201cgood\u201d.", "positive", "1"),
        Record("Bad\there.", "negative", "12"),
    ]


def test_an_id_without_an_underscore_is_a_person_of_its_own() -> None:
    assert parse_ratings("7\t2\tGood.") == [Record("Good.", "positive", "7")]


def test_text_that_was_not_fetched_is_answered_with_the_command(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    with pytest.raises(ConfideError, match=r"assets\.missing.*confide assets fetch vader"):
        load_source("nyt")


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfideError, match=r"data\.unknown-source.*Did you mean 'movies'"):
        load_source("movie")


def test_a_benchmark_in_the_cache_becomes_a_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    file = tmp_path / "benchmarks" / "superglue" / "rte" / "train.jsonl"
    file.parent.mkdir(parents=True)
    rows = [{"premise": f"P{n}.", "hypothesis": "H.", "label": n % 2, "idx": n} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = prepare_federation("rte", source="superglue/rte", holders=2)
    found = [r for path in sorted(folder.glob("*.jsonl")) for r in read_records(path)]
    assert len(found) == len(rows)
    assert {(r.text, r.target) for r in found} == {
        (f"hypothesis: H. premise: P{n}.", ("entailment", "not_entailment")[n % 2])
        for n in range(20)
    }


def test_a_benchmark_that_is_nowhere_says_where_it_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    with pytest.raises(ConfideError, match=r"benchmark\.missing.*sst2/train"):
        load_source("glue/sst2")
    with pytest.raises(ConfideError, match=r"data\.unknown-source.*Did you mean 'glue/sst2'"):
        load_source("glue/sst-2")
